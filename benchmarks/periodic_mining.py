"""Training with periodic mining against the same without: what does it add to MAP@R on ground and classes that were never trained on?

Two tasks on real imagery, each on six partitions. On AID, trained on 8 classes of pictures and asked on the 7 others, as in
`benchmarks.class_disjoint`. On NAIP, the same place on other dates is alike: trained on some blocks of ground, and on others each tile
looks for its own ground on the three other dates, among all tiles of all dates. Frozen ImageNet features, a projection that learns.

Both sides have the same steps, batches, rates and seeds, and as many candidates: with mining its schedule (when, share of mined negatives,
semi-hard band, guards, mined positives), without it the band or the temperature. Each side's is chosen for each partition on validation
classes or blocks; then the test part is opened, once, with several seeds, for the chosen ones and for the first of each side ("as set").
Every measurement is appended to a file of JSON lines; what stands there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from benchmarks import class_disjoint, command
from benchmarks.study import DATA, METRICS, Images, Keys, Record, images_of, interval_over, vectors_of
from rayjobs.retrieval.intervals import resampled_interval
from rayjobs.retrieval.metrics import PairList, score
from rayjobs.tiles.section import SplitsSection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Settings = dict[str, Any]


def _band(margin: float) -> Settings:
    return {"miner": {"kind": "semi_hard", "margin": margin}}


_MINED: Settings = {"mining.every": 1, "mining.first": 1, "mining.share": 0.5}
SCHEDULES: list[Settings] = [
    _MINED,
    _MINED | {"mining.share": 1.0},
    _MINED | {"mining.first": 3, "mining.every": 2},
    _MINED | {"mining.beyond_positives": True, "mining.max_similarity": 0.9},
    _MINED | {"mining.positives": 5},
]
"""Each epoch for half the anchors; for all that have room; later and more rarely; with guards against false negatives; with positives."""
WITHOUT: dict[str, list[Settings]] = {
    "triplet": [_band(margin) for margin in (0.2, 0.1, 0.3, 0.4, 0.6, 0.8)],
    "supcon": [{"loss": {"kind": "supcon", "temperature": temperature}} for temperature in (0.1, 0.05, 0.07, 0.15, 0.2)],
}
WITH: dict[str, list[Settings]] = {
    "triplet": [*(_band(0.2) | schedule for schedule in SCHEDULES), _band(0.4) | _MINED],
    "supcon": SCHEDULES,
}
"""By loss, what is tried on each side: equally many, so that none gains by more tries; the first of each is what one would take unseen."""
LOSSES: dict[str, Settings] = {"triplet": {"loss": {"kind": "triplet", "margin": 0.2}}, "supcon": {"loss": {"kind": "supcon"}}}
SEEDS = (0, 1)
OF_PICTURES: Settings = {"train.tiles_per_group": 2, "train.epochs": 7, "train.steps_per_epoch": 4, "train.learning_rate": 1e-4}
OF_DATES: Settings = {
    "rasters.sources": [
        {
            "kind": "files",
            "uris": [str(Path(DATA, "naip_nd", "m_*.tif").resolve())],
            "pattern": r"_(?P<date>\d{8})\.tif$",
            "bands": ["red", "green", "blue", "nir"],
        }
    ],
    "tiles.size": 64,
    "tiles.sampler": {"kind": "grid", "stride": 32},
    "tiles.min_pos_dist": 0.0,
    "tiles.max_pos_dist": 0.1,  # the same place: the dates' grids lie 1 to 3 m apart, a tile is 320 m wide
    "tiles.min_neg_dist": 1.5,
    "tiles.splits": {"train": 0.5, "val": 0.2, "test": 0.3, "block_m": 1000},
    "model.input_size": 96,
    "train.supervision": "geography",
    **OF_PICTURES,
    "train.learning_rate": 1e-3,  # of 1e-4 and 1e-3 the better one on the validation blocks of the first partition, with and without mining
}


class Task(Protocol):
    """Imagery, what is alike on it, and how it is divided."""

    partitions: Sequence[int]
    losses: Sequence[str]

    def validated(self, key: Keys, settings: Settings, partition: int) -> float:
        """Return MAP@R on validation classes or blocks of a partition."""

    def tested(self, key: Keys, settings: Settings, partition: int) -> float:
        """Return MAP@R on its test classes or blocks."""


class UnseenClasses:
    """AID: 8 classes train; validation by cross-validation inside them."""

    partitions: Sequence[int] = range(6)
    losses: Sequence[str] = ("triplet", "supcon")

    def __init__(self, record: Record, kept: class_disjoint.Kept) -> None:
        """Read all pictures."""
        self._root = str(Path(DATA, "aid_15classes").resolve())
        images = images_of(class_disjoint.experiment_of(self._root, {}))
        self._study = class_disjoint.Study(root=self._root, images=images, kept=kept, record=record, seeds=SEEDS)

    def _divided(self, partition: int) -> tuple[list[str], list[str]]:
        section = class_disjoint.experiment_of(self._root, {"tiles.splits.seed": partition}).tiles.splits
        return class_disjoint.divided(sorted(set(self._study.images.labels.tolist())), section)

    def validated(self, key: Keys, settings: Settings, partition: int) -> float:
        """Train on one half of the training classes and measure on the other, and the reverse."""
        halves = SplitsSection(train=0.5, val=0, test=0.5, by="class", seed=partition)
        first, second = class_disjoint.divided(self._divided(partition)[0], halves)
        folds = enumerate(((first, second), (second, first)))
        found = [self._study.trained((*key, f"fold {fold}"), OF_PICTURES | settings, learn, ask) for fold, (learn, ask) in folds]
        return float(np.mean([entry[METRICS[0]] for entry in found]))

    def tested(self, key: Keys, settings: Settings, partition: int) -> float:
        """Train on all 8 and measure on the others."""
        return float(self._study.trained(key, OF_PICTURES | settings, *self._divided(partition))[METRICS[0]])


class OtherDates:
    """NAIP: each place on four dates, found among all tiles of the blocks asked."""

    partitions: Sequence[int] = range(6)
    losses: Sequence[str] = ("triplet", "supcon")

    def __init__(self, record: Record, kept: class_disjoint.Kept) -> None:
        """Take a record."""
        self._record, self._kept = record, kept

    def validated(self, key: Keys, settings: Settings, partition: int) -> float:
        """Measure on the validation blocks."""
        return self._measured(key, settings, partition, "val")

    def tested(self, key: Keys, settings: Settings, partition: int) -> float:
        """Measure on the test blocks."""
        return self._measured(key, settings, partition, "test")

    def _measured(self, key: Keys, settings: Settings, partition: int, split: str) -> float:
        def work() -> dict[str, Any]:
            settled = OF_DATES | settings | {"tiles.splits.seed": partition}
            images = images_of_dates(partition)
            splits = np.array(images.tiles["split"].to_pylist())
            learn, ask = images.where(splits == "train"), images.where(splits == split)
            encoder = class_disjoint.trained(class_disjoint.experiment_of("", settled), learn, self._kept)
            return found_on_other_dates(vectors_of(encoder, ask.pixels), ask) | {"queries": len(ask.pixels)}

        return float(self._record.once(key, work)[METRICS[0]])


@functools.cache
def images_of_dates(partition: int) -> Images:
    """Read the colours of all tiles, divided as the partition says."""
    read = images_of(class_disjoint.experiment_of("", OF_DATES | {"tiles.splits.seed": partition}))
    return Images(tiles=read.tiles, pixels=np.ascontiguousarray(read.pixels[:, :3]))


def found_on_other_dates(vectors: np.ndarray[Any, Any], images: Images) -> dict[str, Any]:
    """Rank all tiles for each, but for itself and those that show a part of its ground: found should be the same ground on other dates."""
    place = np.column_stack([images.tiles[name].to_numpy() for name in ("row", "col")])
    apart = np.abs(place[:, None] - place).max(axis=2)
    itself = np.eye(len(place), dtype=bool)
    relevance = PairList(np.argwhere((apart == 0) & ~itself), len(place))
    excluded = PairList(np.argwhere(((apart > 0) & (apart < OF_DATES["tiles.size"])) | itself), len(place))
    found = score(vectors, vectors, relevance=relevance, excluded=excluded, ks=(1,), distance="cosine")
    return {name: float(found.values[name].mean()) for name in METRICS}


def compared(task: Task, name: str, loss: str, partition: int) -> dict[str, float]:
    """Choose both sides of a partition on its validation part, open its test part, and return MAP@R with and without mining."""
    found = {}
    for side, candidates in (("without", WITHOUT[loss]), ("with", WITH[loss])):
        key = (name, loss, f"{partition}", side)
        tried = [LOSSES[loss] | candidate for candidate in candidates]
        values = [task.validated((*key, "choose", f"{number}"), settings, partition) for number, settings in enumerate(tried)]
        best = int(np.argmax(values))
        print(f"{name}, {loss}, partition {partition}, {side}: chose {best} of {[round(value, 4) for value in values]}", flush=True)
        for number, row in ((best, side), (0, f"{side}, as set")):
            opened = [
                task.tested((*key, "open", f"{number}", f"seed {seed}"), tried[number] | {"train.seed": seed}, partition) for seed in SEEDS
            ]
            found[row] = float(np.mean(opened))
    return found


def summarised(name: str, rows: Sequence[Mapping[str, float]], test_ratio: float) -> dict[str, float]:
    """Print and return both sides and their difference over partitions, also with the interval of Nadeau and Bengio (2003)."""
    short, figures = name.lower().replace(", ", "_"), {}
    for ending, words in (("", "chosen"), (", as set", "as set")):
        without, mined = (np.array([row[side + ending] for row in rows]) for side in ("without", "with"))
        gaps = mined - without
        plain, wide = interval_over(gaps.tolist()), resampled_interval(gaps, test_ratio)
        for side, values in (("without", without), ("with", mined)):
            found = interval_over(values.tolist())
            print(f"{name:<16}{words:<8}{side:<10}MAP@R {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
        print(
            f"{name:<16}{words:<8}with minus without {plain.value:+.4f} [{plain.low:+.4f}, {plain.high:+.4f}], allowing for what "
            f"partitions share [{wide.low:+.4f}, {wide.high:+.4f}]; above 0 in {(gaps > 0).sum()} of {len(gaps)}"
        )
        key = f"{short}_{words.replace(' ', '_')}"
        ends = {"low": plain.low, "high": plain.high, "wide_low": wide.low, "wide_high": wide.high}
        figures |= {f"{key}_difference": plain.value, **{f"{key}_{end}": value for end, value in ends.items()}}
        figures |= {f"{key}_without": float(without.mean()), f"{key}_with": float(mined.mean())}
    return figures


def run(out: Path, names: Sequence[str], *, quick: bool) -> dict[str, float]:
    """Do what the file of measurements lacks, print the table, and return the figures."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    record, kept = Record(out, study()), class_disjoint.Kept(out.with_suffix(".features.npz"))
    figures: dict[str, float] = {}
    for name in names:
        task: Task = UnseenClasses(record, kept) if name == "AID" else OtherDates(record, kept)
        for loss in task.losses:
            rows = [compared(task, name, loss, partition) for partition in task.partitions[: 2 if quick else None]]
            figures |= summarised(f"{name}, {loss}", rows, 7 / 8 if name == "AID" else 0.3 / 0.5)
            kept.save()
    return {name: round(value, 4) for name, value in figures.items()}


def study() -> str:
    """Return a digest of all settings."""
    pictures, dates = (class_disjoint.experiment_of("", settings).to_dict() for settings in ({}, OF_DATES))
    everything = [pictures, OF_PICTURES, dates, LOSSES, WITHOUT, WITH, SEEDS]
    return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()


def main() -> None:
    """Run from the command line."""
    parser = command.parser("periodic_mining", __doc__, quick="two partitions")
    parser.add_argument("--task", choices=("AID", "NAIP"), nargs="+", default=["AID", "NAIP"], help="one of them alone")
    parser.add_argument(
        "--out", type=Path, default=Path("periodic_mining.jsonl"), help="file of measurements, which a second run goes on from"
    )
    options = parser.parse_args()
    figures = run(options.out, options.task, quick=options.quick)
    if options.json:
        command.end("periodic_mining", figures, ("rayjobs", "torch", "timm", "numpy"))


if __name__ == "__main__":
    main()
