"""Accuracy against the share of labels: frozen ImageNet features, features that SimCLR has changed, and classifiers trained from each.

Pictures of 15 classes of AID, divided by picture: the training split's labels are withheld but for a share of each class
(`train.pool.share`), and a logistic regression on the embeddings of the pictures that keep theirs tells the classes of the test split. The
embeddings are those of a frozen encoder, or of one that `configs/classifier.yaml` has trained on the same share of labels, with the
settings of `BUDGET`. SimCLR (`configs/simclr.yaml`) sees the whole training split without labels. Every classifier has the same budget of
steps, so that what is trained from nothing shows what that budget buys. Training is the project's own, in this process and without Ray.
Every measurement is appended to a file of JSON lines; what stands there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import command
from benchmarks.class_disjoint import spec
from benchmarks.study import DATA, Images, Record, chips_of, images_of, interval_over, train, vectors_of
from rayjobs import experiment as experiments
from rayjobs.evaluate.pictures.look import look, mark, png
from rayjobs.models.encoder import build
from rayjobs.train.ground import pooled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.experiment import Experiment

CONFIGS = Path(__file__).parent.parent / "configs"
SHARES = (0.05, 0.1, 0.25, 1.0)
"""Of 36 pictures of a class: 2, 4, 9 and all."""
SEEDS = (0, 1, 2)
"""Of splits, of labels that are kept, and of training; each is one partition of the pictures."""
BUDGET: dict[str, Any] = {"model.input_size": 64, "train.epochs": 4, "train.steps_per_epoch": 6}
OF_SIMCLR: dict[str, Any] = {"train.batch_size": 64, "train.epochs": 10, "train.steps_per_epoch": 16}
STARTS = {"imagenet": "imagenet-package", "simclr": "run:simclr", "scratch": "none"}
ROWS = tuple(f"{start}, {use}" for start in STARTS for use in ("frozen", "trained"))
ACCURACY = "accuracy"


def experiment_of(name: str, settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a file on the pictures that are there, with some keys changed."""
    source = {"kind": "images", "root": str((DATA / "aid_15classes").resolve())}
    changed = {"rasters.sources": [source], **BUDGET, **settings}
    return experiments.load(CONFIGS / f"{name}.yaml", [part for key, value in changed.items() for part in (f"--{key}", json.dumps(value))])


@functools.cache
def pictures(seed: int) -> tuple[Images, Images]:
    """Read the pictures of the training and of the test split, by tile id."""
    found = images_of(experiment_of("classifier", {"tiles.splits.seed": seed}))
    order = np.argsort(np.array(found.tiles["tile_id"].to_pylist()))
    found = Images(tiles=found.tiles.take(order), pixels=found.pixels[order])
    splits = np.array(found.tiles["split"].to_pylist())
    return found.where(splits == "train"), found.where(splits == "test")


@functools.cache
def simclr(seed: int, folder: Path) -> str:
    """Train on the training pictures without their labels, once, and return where the weights lie."""
    path = folder / f"simclr-{seed}.safetensors"
    if not path.exists():
        images, experiment = pictures(seed)[0], experiment_of("simclr", OF_SIMCLR | {"train.seed": seed})
        encoder = train(experiment, images.tiles, chips_of(images), spec(experiment))
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, path)
    return str(path)


def kept(images: Images, experiment: Experiment) -> Images:
    """Return the images that keep their labels."""
    ids = pooled(images.tiles, experiment)["tile_id"]
    return images.where(pc.is_in(images.tiles["tile_id"], value_set=ids.combine_chunks()).to_numpy(zero_copy_only=False))


def measured(row: str, share: float, seed: int, folder: Path) -> dict[str, Any]:
    """Return the accuracy of a row on the test split."""
    start, use = row.split(", ")
    weights = simclr(seed, folder) if start == "simclr" else STARTS[start]
    of_scratch = {"model.freeze": 0, "model.freeze_batch_norm": False, "train.backbone_rate": 0.1} if start == "scratch" else {}
    experiment = experiment_of(
        "classifier", {"model.pretrained": weights, "train.pool": {"share": share, "seed": seed}, "train.seed": seed, **of_scratch}
    )
    learn, test = pictures(seed)
    learn = kept(learn, experiment)
    if use == "trained":
        encoder = train(experiment, learn.tiles, chips_of(learn), spec(experiment))
    else:
        encoder = build(spec(experiment), seed, pretrained=weights)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    head.fit(vectors_of(encoder, learn.pixels), learn.labels)
    return {ACCURACY: float(head.score(vectors_of(encoder, test.pixels), test.labels)), "labels": len(learn.labels)}


def drawn(found: Mapping[str, Mapping[float, Sequence[float]]]) -> bytes:
    """Draw accuracy against the share of labels, a line for each row, and return the PNG."""
    with look():
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.subplots()
        for number, (row, by_share) in enumerate(found.items()):
            colour, marker = mark(number)
            means = [interval_over(values) for values in by_share.values()]
            bars = [[each.value - each.low for each in means], [each.high - each.value for each in means]]
            axes.errorbar(
                [100 * share for share in by_share], [each.value for each in means], bars if len(SEEDS) > 1 else None,
                label=row, color=colour, marker=marker, markersize=4, linewidth=1.3, capsize=2,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="share of labels, %", ylabel="accuracy", ylim=(0, 1))
        axes.set_xticks([100 * share for share in SHARES], [f"{100 * share:g}" for share in SHARES])
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.legend(fontsize=8, frameon=False)
        return png(figure)


def run(out: Path, shares: Sequence[float], seeds: Sequence[int], rows: Sequence[str]) -> dict[str, float]:
    """Do what the file of measurements lacks, print the table, draw the picture, and return the figures."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    settings = [experiment_of("classifier", {}).to_dict(), experiment_of("simclr", OF_SIMCLR).to_dict()]
    record = Record(out, hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(), (ACCURACY,))
    found: dict[str, dict[float, list[float]]] = {row: {share: [] for share in shares} for row in rows}
    for seed in seeds:
        for row in rows:
            for share in shares:
                work = functools.partial(measured, row, share, seed, out.parent)
                found[row][share].append(record.once((row, f"{share:g}", f"seed {seed}"), work)[ACCURACY])
    out.with_suffix(".png").write_bytes(drawn(found))
    figures = {}
    for row, by_share in found.items():
        print(f"{row:<20}" + "".join(f"{100 * share:>6g} %: {np.mean(values):.3f}" for share, values in by_share.items()))
        figures |= {f"{row}_{share:g}".replace(", ", "_"): round(float(np.mean(values)), 4) for share, values in by_share.items()}
    return figures


def main() -> None:
    """Run from the command line."""
    parser = command.parser("label_share", __doc__, quick="one seed, two shares, frozen encoders")
    measurements = "file of measurements, which a second run goes on from; the picture and SimCLR's weights lie beside it"
    parser.add_argument("--out", type=Path, default=Path("label_share.jsonl"), help=measurements)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="of the labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="some of them alone")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="some of them alone")
    options = parser.parse_args()
    if options.quick:
        options.shares, options.seeds, options.rows = options.shares[:2], options.seeds[:1], [row for row in ROWS if "frozen" in row]
    figures = run(options.out, options.shares, options.seeds, options.rows)
    if options.json:
        command.end("label_share", figures, ("rayjobs", "torch", "timm", "numpy"))


if __name__ == "__main__":
    main()
