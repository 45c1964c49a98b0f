"""Does SimCLR on unlabelled imagery better the frozen ImageNet encoder on classes of aerial scenes that it has not seen?

For each of several partitions, 8 of the 15 classes of AID and all tiles of one place of NAIP train, without labels, from the packaged
ImageNet weights (`configs/simclr.yaml` with the settings of `BUDGET`); the pictures of the 7 other classes are then each a query against
the others. The recipe was chosen on the training classes of the first partition (docs/experiments.md says among which), and all rows are
shown. Training is the project's own (`rayjobs.train`), in this process and without Ray. Every measurement is appended to a file of JSON
lines; what stands there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch

from benchmarks import command
from benchmarks.class_disjoint import divided, spec
from benchmarks.study import DATA, METRICS, Images, Record, chips_of, images_of, interval_over, measure, train, vectors_of
from rayjobs import experiment as experiments
from rayjobs.models.encoder import build, standardised, statistics_spec
from rayjobs.retrieval.intervals import resampled_interval
from rayjobs.tiles.section import SplitsSection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.experiment import Experiment

CONFIG = Path(__file__).parent.parent / "configs" / "simclr.yaml"
PARTITIONS = range(10)
"""Values of `tiles.splits.seed`, by class."""
SEEDS = (0, 1, 2)
BUDGET: dict[str, Any] = {"model.input_size": 64, "train.batch_size": 64}
"""What two crowded cores have time for, beside the file."""
_LINEAR: dict[str, Any] = {"model.freeze": "all", "model.projection": "linear", "model.dim": 1280, "model.whitening": 0.3}
_EARLIER_VIEWS = {
    "rotate_degrees": 180, "crop_scale": [0.5, 1.0], "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue_degrees": 1.5
}  # fmt: skip
_SIMSIAM: dict[str, Any] = {
    "loss": {"kind": "simsiam"}, "projector": {"dim": 256, "layers": 3, "batch_norm": "all"}, "train.weight_decay": 1e-4,
    "train.optimizer": {"kind": "sgd", "momentum": 0.9}, "train.learning_rate": 0.05 * 32 / 256, "train.warmup_epochs": 0
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "simclr, linear": _LINEAR,
    "whitened, no loss": _LINEAR | {"train.learning_rate": 1e-12, "train.epochs": 1, "train.steps_per_epoch": 1},
    "simclr, moving statistics": {"model.freeze_batch_norm": False},
    "simclr, earlier views": {"train.augment": _EARLIER_VIEWS},
    "simsiam": _SIMSIAM,
}
"""Changes of the file, and beside them a linear layer on the frozen backbone, begun by whitening, with what that does before it learns."""
FROZEN = "frozen-pretrained"


def experiment_of(settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment of the file on the pictures that are there, with some keys changed."""
    source = {"kind": "images", "root": str((DATA / "aid_15classes").resolve())}
    changed = {"rasters.sources": [source], **BUDGET, **settings}
    return experiments.load(CONFIG, [part for key, value in changed.items() for part in (f"--{key}", json.dumps(value))])


@functools.cache
def aid() -> Images:
    """Read the pictures."""
    return images_of(experiment_of({}))


@functools.cache
def naip() -> Images:
    """Read the tiles of one place of NAIP on four dates, of 128 px at 5 m."""
    return images_of(
        experiment_of(
            {
                "rasters.sources": [
                    {"kind": "files", "uris": [str((DATA / "naip_nd").resolve() / "m_*.tif")], "bands": ["red", "green", "blue", "nir"]}
                ],
                "rasters.bands": ["red", "green", "blue"],
                "tiles.size": 128,
                "tiles.sampler": {"kind": "grid", "stride": 96},
                "tiles.splits": {"by": "block", "train": 1, "val": 0, "test": 0},
            }
        )
    )


def joined(first: Images, second: Images) -> Images:
    """Return the images of both, sorted by tile id as training wants them; no label is left."""
    tiles = pa.concat_tables([first.tiles, second.tiles], promote_options="permissive")
    order = np.argsort(np.array(tiles["tile_id"].to_pylist()))
    unlabelled = tiles.set_column(tiles.column_names.index("label"), "label", pa.nulls(len(tiles), pa.string()))
    return Images(tiles=unlabelled.take(order), pixels=np.concatenate([first.pixels, second.pixels])[order])


def trained(settings: Mapping[str, Any], learn: Sequence[str]) -> torch.nn.Module:
    """Train on the pictures of some classes and on NAIP, all unlabelled."""
    experiment, images = experiment_of(settings), joined(aid().of(learn), naip())
    return train(experiment, images.tiles, chips_of(images), spec(experiment))


def started(pretrained: str) -> torch.nn.Module:
    """Return the encoder before training."""
    return build(spec(experiment_of({})), pretrained=pretrained)


def statistics(learn: Sequence[str], ask: Images) -> dict[str, Any]:
    """Measure image statistics, standardised over what trains."""
    wanted = spec(experiment_of({}))
    plain = statistics_spec(**{name: getattr(wanted, name) for name in ("bands", "mean", "std", "tile_size", "resolution_m", "dtype")})
    fitted = standardised(plain, vectors_of(build(plain), joined(aid().of(learn), naip()).pixels))
    return measure(vectors_of(build(fitted), ask.pixels), ask.labels, fitted.distance)


def measured(record: Record, partition: int, seed: int, name: str) -> dict[str, Any]:
    """Return the metrics of a row on the unseen classes of a partition."""
    learn, unseen = divided(sorted(set(aid().labels.tolist())), SplitsSection(train=8 / 15, val=0, test=7 / 15, by="class", seed=partition))
    ask = aid().of(unseen)

    def work() -> dict[str, Any]:
        if name == "image-statistics":
            return statistics(learn, ask)
        starts = {FROZEN: "imagenet-package", "random-init": "none"}
        module = started(starts[name]) if name in starts else trained(ROWS[name] | {"train.seed": seed}, learn)
        return measure(vectors_of(module, ask.pixels), ask.labels)

    return record.once((f"{partition}", name, f"seed {seed}"), work)


def show(rows: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Print MAP@R of each row over partitions, with what it gains over the frozen one, and return the figures.

    The wider interval allows for classes that partitions share (Nadeau and Bengio, 2003).
    """
    figures: dict[str, float] = {}
    for name, values in rows.items():
        found, gaps = interval_over(values), np.subtract(values, rows[FROZEN][: len(values)])
        plain, wide = interval_over(gaps.tolist()), resampled_interval(gaps, 7 / 8)
        print(
            f"{name:<20}{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]   minus frozen {plain.value:+.4f} "
            f"[{plain.low:+.4f}, {plain.high:+.4f}], allowing for shared classes [{wide.low:+.4f}, {wide.high:+.4f}], "
            f"above 0 in {(gaps > 0).sum()} of {len(gaps)}"
        )
        short = name.replace(", ", "_").replace(" / ", "_").replace(" ", "_").replace("-", "_")
        figures |= {short: found.value, f"{short}_minus_frozen": plain.value, f"{short}_low": plain.low, f"{short}_high": plain.high}
        figures |= {f"{short}_wide_low": wide.low, f"{short}_wide_high": wide.high}
    return {name: round(value, 4) for name, value in figures.items()}


def run(out: Path, partitions: Sequence[int], seeds: Sequence[int], rows: Sequence[str]) -> dict[str, float]:
    """Do what the file of measurements lacks, print the table, and return the figures."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    settings = json.dumps([experiment_of(row).to_dict() for row in ({}, *ROWS.values())], sort_keys=True, default=str)
    record = Record(out, hashlib.sha256(settings.encode()).hexdigest())
    tasks = [(name, partition, 0) for name in (FROZEN, "image-statistics", "random-init") for partition in partitions]
    tasks += [(name, partition, seed) for name in rows for seed in seeds for partition in partitions]
    found: dict[str, dict[int, list[float]]] = {}
    for name, partition, seed in tasks:
        entry = measured(record, partition, seed, name)
        found.setdefault(name, {}).setdefault(partition, []).append(cast("float", entry[METRICS[0]]))
    return show({name: [float(np.mean(values)) for values in by_partition.values()] for name, by_partition in found.items()})


def main() -> None:
    """Run from the command line."""
    parser = command.parser("self_supervised", __doc__, quick="two partitions, one seed, one row")
    parser.add_argument(
        "--out", type=Path, default=Path("self_supervised.jsonl"), help="file of measurements, which a second run goes on from"
    )
    parser.add_argument("--partitions", type=int, nargs="+", default=list(PARTITIONS), help="some of them alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of training; the rows' means over them are compared")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="some of the trained rows alone")
    options = parser.parse_args()
    if options.quick:
        options.partitions, options.seeds, options.rows = options.partitions[:2], options.seeds[:1], options.rows[:1]
    figures = run(options.out, options.partitions, options.seeds, options.rows)
    if options.json:
        command.end("self_supervised", figures, ("rayjobs", "torch", "timm", "numpy"))


if __name__ == "__main__":
    main()
