"""Trained on 8 classes of aerial scenes and measured on the 7 others: does metric learning beat the frozen pretrained encoder there?

The protocol of "A metric learning reality check" (Musgrave et al., 2020). For each of several partitions of the classes, every choice (the
settings of each loss, then the loss) is made by class-wise cross-validation inside the training classes: trained on one half of them,
measured on the other, and the reverse, from the candidates in `CANDIDATES`, all with one budget of steps. Then each loss is trained on all
training classes with its chosen settings and several seeds, and the unseen classes are opened, once.

Training is the project's own (`rayjobs.train`), in this process and without Ray, of `configs/aid-class-disjoint.yaml`. The backbone is
frozen there, and flips and right angles leave only eight images of each: their features are kept, so that a step costs what its projection
costs. Every measurement is appended to a file of JSON lines; what stands there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks import command
from benchmarks.study import DATA, METRICS, Images, Keys, Record, chips_of, images_of, interval_over, measure, train, vectors_of
from rayjobs import experiment as experiments
from rayjobs.models import encoder as encoders
from rayjobs.models.encoder import Encoder, build, standardised, statistics_spec
from rayjobs.models.section import spec_of
from rayjobs.retrieval.intervals import resampled_interval
from rayjobs.tiles.section import SPLITS, SplitsSection
from rayjobs.tiles.splits import class_splits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.models.spec import ModelSpec

CONFIG = Path(__file__).parent.parent / "configs" / "aid-class-disjoint.yaml"
PARTITIONS = range(10)
"""Values of `tiles.splits.seed`."""
SEEDS = (0, 1)
_RATES: list[dict[str, Any]] = [{"train.learning_rate": 1e-5}, {"train.learning_rate": 1e-4}]
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "supcon": [{"loss": {"kind": "supcon", "temperature": 0.1}, **rate} for rate in _RATES],
    "multi_similarity": [{"loss": {"kind": "multi_similarity"}, **rate} for rate in _RATES],
    "proxy_anchor": [{"loss": {"kind": "proxy_anchor"}, **rate} for rate in _RATES],
}
"""By loss, what is tried in cross-validation, beside the settings of the file."""
FROZEN, WHITENED, TRAINED = "frozen-pretrained", "whitened, no loss", "trained, chosen loss"
OTHER_SIDES = (128, 192, 224)
"""Sides of the input at which the frozen row is measured too, so that it is at its best."""


class Kept:
    """Features of a frozen backbone by the image's own bytes, for all trainings of one experiment."""

    def __init__(self, path: Path) -> None:
        """Take up what a file holds, if there is one."""
        self._path, self._new = path, 0
        self._features: dict[bytes, Any] = {}
        if path.exists():
            with np.load(path) as file:
                self._features = {key.tobytes(): features for key, features in zip(file["keys"], file["features"], strict=True)}

    def get(self, encoder: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (n, features) of images (n, bands, side, side)."""
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.numpy()]
        new = [place for place, key in enumerate(keys) if key not in self._features]
        if new:
            with torch.no_grad():
                found = encoder.features(pixels[new]).numpy()
            self._features.update(zip([keys[place] for place in new], found, strict=True))
            self._new += len(new)
        return torch.from_numpy(np.stack([self._features[key] for key in keys]))

    def save(self) -> None:
        """Write the file anew, if there is anything new."""
        if self._new:
            aside = self._path.with_suffix(f".{os.getpid()}.npz")
            keys = np.frombuffer(b"".join(self._features), np.uint8).reshape(len(self._features), -1)
            np.savez(aside, keys=keys, features=np.stack(list(self._features.values())))
            aside.replace(self._path)
            self._new = 0


class Ahead(nn.Module):
    """An encoder whose frozen backbone is computed once for each image."""

    def __init__(self, encoder: Encoder, kept: Kept) -> None:
        """Take an encoder under `model.freeze: all`."""
        super().__init__()
        self.encoder, self._kept = encoder, kept

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002  all pixels of pictures are
        """Embed images as `Encoder.forward` does."""
        return self.encoder.projected(self._kept.get(self.encoder, pixels))


class AheadFeatures(Ahead):
    """The same before the projection."""

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002  likewise
        """Return features as `Encoder.features` does."""
        return self._kept.get(self.encoder, pixels)


def experiment_of(root: str, settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment of the file with some keys changed."""
    changed = {"rasters.sources": [{"kind": "images", "root": root}], **settings}
    return experiments.load(CONFIG, [part for key, value in changed.items() for part in (f"--{key}", json.dumps(value))])


def study_of(root: str) -> str:
    """Return a digest of all settings: the experiment and the candidates."""
    settings = json.dumps([experiment_of(root, {}).to_dict(), CANDIDATES, OTHER_SIDES], sort_keys=True, default=str)
    return hashlib.sha256(settings.encode()).hexdigest()


def spec(experiment: Experiment) -> ModelSpec:
    """Return the encoder of an experiment on pictures, normalised as in pretraining."""
    side = cast("int", experiment.model.input_size)
    # mean and deviation are those of the pretraining, whatever stands here
    return spec_of(
        experiment.model, bands=("red", "green", "blue"), mean=(0,) * 3, std=(1,) * 3, tile_size=side, resolution_m=None, dtype="uint8"
    )


def bare(experiment: Experiment, *, pretrained: bool) -> Encoder:
    """Return the backbone without a projection."""
    return cast("Encoder", build(encoders.bare(spec(experiment)), pretrained=experiment.model.pretrained if pretrained else "none"))


def begin(encoder: Encoder, experiment: Experiment, images: Images, kept: Kept) -> None:
    """Begin the projection as `rayjobs train` does."""
    if experiment.model.whitening is not None:
        features = torch.from_numpy(vectors_of(AheadFeatures(encoder, kept), images.pixels))
        encoder.whiten(features, experiment.model.whitening)


def trained(experiment: Experiment, images: Images, kept: Kept) -> nn.Module:
    """Train on some images and return the encoder; its backbone is computed once for each of them."""

    def begun(encoder: Encoder) -> None:
        begin(encoder, experiment, images, kept)

    return train(experiment, images.tiles, chips_of(images), spec(experiment), begin=begun, wrapped=lambda encoder: Ahead(encoder, kept))


@functools.cache
def images_at(root: str, side: int) -> Images:
    """Read the pictures at another side of the input."""
    return images_of(experiment_of(root, {"model.input_size": side}))


@functools.cache
def random_vectors(root: str) -> np.ndarray[Any, Any]:
    """Embed all pictures by the backbone with random weights."""
    experiment = experiment_of(root, {})
    return vectors_of(bare(experiment, pretrained=False), images_of(experiment).pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all partitions have in common."""

    root: str
    """The folder of pictures."""
    images: Images
    kept: Kept
    record: Record
    seeds: Sequence[int]

    def trained(self, key: Keys, settings: Mapping[str, Any], learn: Sequence[str], ask: Sequence[str]) -> dict[str, Any]:
        """Train on some classes and measure on others."""

        def work() -> dict[str, Any]:
            encoder, images = trained(experiment_of(self.root, settings), self.images.of(learn), self.kept), self.images.of(ask)
            return measure(vectors_of(encoder, images.pixels), images.labels)

        return self.record.once(key, work)

    def frozen(self, key: Keys, ask: Sequence[str], *, side: int | None = None) -> dict[str, Any]:
        """Measure the pretrained backbone as it is, at the experiment's own side of the input or at another."""

        def work() -> dict[str, Any]:
            images = (self.images if side is None else images_at(self.root, side)).of(ask)
            encoder = bare(experiment_of(self.root, {} if side is None else {"model.input_size": side}), pretrained=True)
            return measure(vectors_of(Ahead(encoder, self.kept), images.pixels), images.labels)

        return self.record.once(key, work)

    def random(self, key: Keys, ask: Sequence[str]) -> dict[str, Any]:
        """Measure the backbone with random weights."""

        def work() -> dict[str, Any]:
            asked = np.isin(self.images.labels, list(ask))
            return measure(random_vectors(self.root)[asked], self.images.labels[asked])

        return self.record.once(key, work)

    def whitened(self, key: Keys, learn: Sequence[str], ask: Sequence[str]) -> dict[str, Any]:
        """Measure where training begins: the frozen backbone with its features whitened over the training images."""

        def work() -> dict[str, Any]:
            experiment = experiment_of(self.root, {})
            encoder = cast("Encoder", build(spec(experiment), pretrained=experiment.model.pretrained))
            begin(encoder, experiment, self.images.of(learn), self.kept)
            images = self.images.of(ask)
            return measure(vectors_of(Ahead(encoder, self.kept), images.pixels), images.labels)

        return self.record.once(key, work)

    def statistics(self, key: Keys, learn: Sequence[str], ask: Sequence[str]) -> dict[str, Any]:
        """Measure image statistics, standardised over the training images as in `rayjobs evaluate`."""

        def work() -> dict[str, Any]:
            wanted = spec(experiment_of(self.root, {}))
            known = {name: getattr(wanted, name) for name in ("bands", "mean", "std", "tile_size", "resolution_m", "dtype")}
            plain = statistics_spec(**known)
            fitted = standardised(plain, vectors_of(build(plain), self.images.of(learn).pixels))
            images = self.images.of(ask)
            return measure(vectors_of(build(fitted), images.pixels), images.labels, fitted.distance)

        return self.record.once(key, work)


def divided(classes: Sequence[str], section: SplitsSection) -> tuple[list[str], list[str]]:
    """Return the classes that train, and the others."""
    splits = class_splits(classes, section)
    trains = [name for name, split in splits.items() if SPLITS[split] == "train"]
    return trains, [name for name in splits if name not in trains]


def choose(study: Study, partition: int, classes: Sequence[str]) -> tuple[dict[str, int], str]:
    """Return the best candidate of each loss, and the best loss, by cross-validation inside the training classes."""
    first, second = divided(classes, SplitsSection(train=0.5, val=0, test=0.5, by="class", seed=partition))
    found = {(loss, number): 0.0 for loss, candidates in CANDIDATES.items() for number in range(len(candidates))}
    for fold, (learn, ask) in enumerate(((first, second), (second, first))):
        study.frozen((f"{partition}", "choose", FROZEN, f"{fold}"), ask)
        study.whitened((f"{partition}", "choose", WHITENED, f"{fold}"), learn, ask)
        for loss, number in found:
            key = (f"{partition}", "choose", loss, f"candidate {number}", f"{fold}")
            found[loss, number] += study.trained(key, CANDIDATES[loss][number], learn, ask)[METRICS[0]]
    ranked = sorted(found, key=lambda choice: found[choice])
    return {loss: dict(ranked)[loss] for loss in CANDIDATES}, ranked[-1][0]


def open_unseen(study: Study, partition: int, *, baselines: bool) -> dict[str, dict[str, float]]:
    """Return the metrics of every row on the unseen classes of a partition; of trained ones, means over seeds."""
    section = experiment_of(study.root, {"tiles.splits.seed": partition}).tiles.splits
    learn, unseen = divided(sorted(set(study.images.labels.tolist())), section)
    best, chosen = choose(study, partition, learn)
    key = (f"{partition}", "open")
    rows: dict[str, list[dict[str, Any]]] = {}
    for loss, number in best.items():
        rows[loss] = [
            study.trained(
                (*key, loss, f"candidate {number}", f"seed {seed}"), CANDIDATES[loss][number] | {"train.seed": seed}, learn, unseen
            )
            for seed in study.seeds
        ]
    rows[TRAINED] = rows[chosen]
    rows[WHITENED] = [study.whitened((*key, WHITENED), learn, unseen)]
    rows[FROZEN] = [study.frozen((*key, FROZEN), unseen)]
    if baselines:
        rows |= {f"{FROZEN}, {side} px": [study.frozen((*key, f"{FROZEN}-{side}"), unseen, side=side)] for side in OTHER_SIDES}
        rows["image-statistics"] = [study.statistics((*key, "image-statistics"), learn, unseen)]
        rows["random-init"] = [study.random((*key, "random-init"), unseen)]
    study.kept.save()
    print(f"partition {partition}: learns {', '.join(sorted(learn))}; chose {chosen}, candidates {best}", flush=True)
    return {name: {metric: float(np.mean([entry[metric] for entry in found])) for metric in METRICS} for name, found in rows.items()}


def show(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Print the table of rows over partitions, and return the figures."""
    print(f"{'row':<28}" + "".join(f"{metric:>28}" for metric in METRICS) + f"{'MAP@R minus frozen':>30}{'best':>7}")
    frozen = [entry[METRICS[0]] for entry in rows[FROZEN]]
    figures: dict[str, float] = {}
    for name, entries in rows.items():
        gaps = [entry[METRICS[0]] - base for entry, base in zip(entries, frozen, strict=True)]
        columns = [interval_over([entry[metric] for entry in entries]) for metric in METRICS]
        text = "".join(f"{f'{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]':>28}" for found in columns)
        gap = interval_over(gaps)
        print(
            f"{name:<28}{text}{f'{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]':>30}{sum(value > 0 for value in gaps):>5}/{len(gaps)}"
        )
        short = name.replace(", ", "_").replace(" ", "_")
        figures |= {short: columns[0].value, f"{short}_minus_frozen": gap.value, f"{short}_low": gap.low, f"{short}_high": gap.high}
    for base in (FROZEN, WHITENED):
        figures |= _gap(rows, base)
    return {name: round(value, 4) for name, value in figures.items()}


def _gap(rows: Mapping[str, Sequence[Mapping[str, float]]], base: str) -> dict[str, float]:
    """Print and return what the chosen loss gains over another row, also with the interval of Nadeau and Bengio (2003).

    Partitions of one pool share classes, so Student's interval speaks of further partitions of these; the wider one allows for that.
    """
    pairs = zip(rows[TRAINED], rows[base], strict=True)
    gaps = np.array([ours[METRICS[0]] - theirs[METRICS[0]] for ours, theirs in pairs])
    plain, wide = interval_over(gaps.tolist()), resampled_interval(gaps, 7 / 8)
    print(
        f"{TRAINED} minus {base}: {plain.value:+.4f} [{plain.low:+.4f}, {plain.high:+.4f}], "
        f"allowing for shared classes [{wide.low:+.4f}, {wide.high:+.4f}]; above 0 in {(gaps > 0).sum()} of {len(gaps)}"
    )
    name = f"trained_minus_{base.partition(',')[0].partition('-')[0]}"
    return {
        name: plain.value,
        f"{name}_low": plain.low,
        f"{name}_high": plain.high,
        f"{name}_wide_low": wide.low,
        f"{name}_wide_high": wide.high,
    }


def run(root: str, out: Path, partitions: Sequence[int], *, quick: bool, baselines: bool) -> dict[str, float]:
    """Do what the file of measurements lacks, print the table, and return the figures."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    record, kept = Record(out, study_of(root)), Kept(out.with_suffix(".features.npz"))
    study = Study(root=root, images=images_of(experiment_of(root, {})), kept=kept, record=record, seeds=SEEDS[:1] if quick else SEEDS)
    found = [open_unseen(study, partition, baselines=baselines) for partition in partitions]
    return show({name: [rows[name] for rows in found] for name in found[0]})


def main() -> None:
    """Run from the command line."""
    parser = command.parser("class_disjoint", __doc__, quick="two partitions, one seed, few baselines")
    parser.add_argument(
        "--out", type=Path, default=Path("class_disjoint.jsonl"), help="file of measurements, which a second run goes on from"
    )
    parser.add_argument(
        "--partitions", type=int, nargs="+", help="some of them alone: several processes may share one file of measurements"
    )
    parser.add_argument("--no-baselines", action="store_true", help="leave out rows that take the whole network")
    options = parser.parse_args()
    root = str(Path(DATA, "aid_15classes").resolve())
    partitions = options.partitions or (PARTITIONS[:2] if options.quick else PARTITIONS)
    figures = run(root, options.out, partitions, quick=options.quick, baselines=not (options.quick or options.no_baselines))
    if options.json:
        command.end("class_disjoint", figures, ("rayjobs", "torch", "timm", "numpy"))


if __name__ == "__main__":
    main()
