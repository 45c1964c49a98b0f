"""Landforms on Mars: what do codes of 32 to 256 bits lose to the floats they come from, and do they beat frozen float features?

HiRISE pictures of six classes cut from 70 observations, on the tiles of `configs/mars-hash.yaml`: five folds of observations. Of each fold,
its pictures ask and are found; the recipe of the codes is chosen on the fold after it, among candidates that have learned from the three
others alone, and these three train what is then measured, with two seeds. From row to row only bits, terms and features change. The
backbone's rows (a classifier, triplets, and codes on the features of either) have one recipe each, fixed beforehand, and one seed.

`mAP@64` is of all pictures of the fold but the query's own; beside it stand the figures without the classes that are no landforms, and
without pictures of the query's observation. Intervals resample observations; differences are paired by query, and by the mean of the seeds.
Every measurement is appended to a file of JSON lines; what stands there is not done again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from benchmarks import command
from benchmarks.study import DATA, Images, Record, chips_of, features_of, images_of, train, vectors_of
from rayjobs import experiment as experiments
from rayjobs.models.encoder import Encoder, bare, build, standardised, statistics_spec
from rayjobs.models.section import spec_of
from rayjobs.rasters.sources import discover
from rayjobs.retrieval.intervals import bootstrap_interval, paired_difference, resampled_interval
from rayjobs.retrieval.metrics import SameLabel, score
from rayjobs.tiles.table import plan_tiles
from rayjobs.train.augment import Draws, augment
from rayjobs.train.features import FeatureCache
from rayjobs.train.shown import Projected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from rayjobs.experiment import Experiment
    from rayjobs.models.spec import ModelSpec
    from rayjobs.train.section import AugmentSection

CONFIG = Path(__file__).parent.parent / "configs" / "mars-hash.yaml"
FOLDS = 5
METRICS = ("mAP@64/min", "mAP@64/found")
"""The first is what choices are made by."""
REST = ("0", "6")
PARTS = ("all", "landforms", "other observations")
VERSIONS = 8
"""Of each training picture: as it is, and turned."""
_ON_ALL = {"miner": {"kind": "none"}, "train.batch_size": 240, "train.tiles_per_group": 40}
CANDIDATES: dict[str, dict[str, Any]] = {
    "triplet, as published": {},
    "triplet, push 1": {"hashing.push": 1.0},
    "supcon, push 0.1": {"loss": {"kind": "supcon"}, "hashing.push": 0.1, **_ON_ALL},
    "supcon, push 1": {"loss": {"kind": "supcon"}, "hashing.push": 1.0, **_ON_ALL},
    "supcon, push 3": {"loss": {"kind": "supcon"}, "hashing.push": 3.0, **_ON_ALL},
    "supcon, push 1, twice as long": {"loss": {"kind": "supcon"}, "hashing.push": 1.0, **_ON_ALL, "train.epochs": 8},
}
"""Recipes of 128 bits on frozen features: changes of `BASE`."""
FIXED: dict[str, Any] = {
    "model.pretrained": "imagenet-package",
    "model.input_size": 128,
    "model.freeze": "all",
    "model.projection": "hash",
    "model.dim": 128,
    "hashing.balance": 1.0,
    "train.supervision": "labels",
    "train.frozen_features": 1,
}
"""What the rows begin with, whatever the file recommends: 128 bits on frozen features."""
BASE: dict[str, Any] = {
    "loss": {"kind": "triplet"},
    "miner": {"kind": "semi_hard"},
    "hashing.push": 0.001,
    "train.batch_size": 96,
    "train.tiles_per_group": 16,
    "train.epochs": 4,
    "train.steps_per_epoch": 10,
    "train.learning_rate": 3e-4,
}
WHITENED = {"model.domain_whitening": {"group_size": 32}}
UNSUPERVISED: dict[str, Any] = BASE | {
    "train.supervision": "views",
    "train.tiles_per_group": 2,
    "train.augment": {"rotate_degrees": 180, "crop_scale": [0.5, 1.0], "jitter": 0.1, "brightness": 0.3, "noise": 0.1},
    "loss": {"kind": "ntxent"},
    "miner": {"kind": "none"},
    "projector.dim": 128,
}
TUNING: dict[str, Any] = {
    "model.freeze": 5,
    "model.projection": "none",
    "model.dim": None,
    "train.frozen_features": 0,
    "train.precision": "fp32",
    "train.batch_size": 48,
    "train.tiles_per_group": 8,
    "train.epochs": 4,
    "train.steps_per_epoch": 8,
    "train.learning_rate": 3e-4,
}
"""Stem and four stages stay as they are, 32 steps."""
TUNED: dict[str, dict[str, Any]] = {
    "classifier": {"loss": {"kind": "softmax"}, "miner": {"kind": "none"}},
    "triplet": {"loss": {"kind": "triplet"}, "miner": {"kind": "semi_hard"}},
}
"""What the last stages learn: changes of `TUNING`."""
ABOVE = "supcon, push 1"
"""The candidate that learns codes on tuned features."""
FLOAT = "frozen float"

Array = np.ndarray[Any, Any]


def experiment_of(settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment of the file on the pictures that are there, as `FIXED` has it, with some keys changed."""
    folder = DATA / "hirise_mars"
    source = {"kind": "images", "root": str(folder / "images"), "labels": "csv", "csv": str(folder / "labels.csv"), "body": "mars"}
    columns = {"csv_label_column": "class_id", "csv_observation_column": "observation"}
    changed = {"rasters.sources": [source | columns], **FIXED, **settings}
    return experiments.load(CONFIG, [part for key, value in changed.items() for part in (f"--{key}", json.dumps(value))])


def spec(experiment: Experiment) -> ModelSpec:
    """Return the encoder of an experiment, normalised as in pretraining."""
    bands = experiment.rasters.bands
    return spec_of(
        experiment.model, bands=bands, mean=(0,) * len(bands), std=(1,) * len(bands), tile_size=227, resolution_m=None, dtype="uint8"
    )


def _pairs(tiles: pa.Table) -> list[tuple[str, str]]:
    return list(zip(tiles["tile_id"].to_pylist(), tiles["split"].to_pylist(), strict=True))


def folds_of(experiment: Experiment, tile_ids: Sequence[str]) -> Array:
    """Return (tiles,) the fold that tests each tile."""
    scenes, fold_of = discover(experiment.rasters).scenes, {}
    for fold in range(FOLDS):
        tiles = plan_tiles(scenes, dataclasses.replace(experiment.tiles, splits=dataclasses.replace(experiment.tiles.splits, fold=fold)))
        fold_of |= {tile_id: fold for tile_id, split in _pairs(tiles) if split == "test"}
    return np.array([fold_of[tile_id] for tile_id in tile_ids])


def measure(vectors: Array, images: Images, distance: str = "cosine") -> dict[str, Any]:
    """Rank the images for each of them, as `rayjobs evaluate` does: {part: {metric: {tile: value}}}, and the means of the first part.

    The query itself is excluded; the second part leaves out classes, which neither ask nor are found; the third excludes the query's
    whole observation.
    """
    labels, observations = (np.unique(images.tiles[name].to_numpy(), return_inverse=True)[1] for name in ("label", "observation"))
    everyone = np.arange(len(labels))
    landforms = np.flatnonzero(~np.isin(images.labels, REST))
    names, found = images.tiles["tile_id"].to_numpy(), {}
    for part, kept, without in zip(PARTS, (everyone, landforms, everyone), (everyone, everyone, observations), strict=True):
        of_part = score(
            vectors[kept],
            vectors[kept],
            relevance=SameLabel(labels[kept], labels[kept]),
            excluded=SameLabel(without[kept], without[kept]),
            ks=(64,),
            distance=cast("Any", distance),
        )
        tiles = names[kept][of_part.queries]
        found[part] = {name: dict(zip(tiles, of_part.values[name].round(5).tolist(), strict=True)) for name in METRICS}
    return {"by_tile": found, **{name: float(np.mean(list(found["all"][name].values()))) for name in METRICS}}


@torch.inference_mode()
def versions_of(encoder: Encoder, pixels: Array, section: AugmentSection, count: int, seed: int = 0) -> Array:
    """Return (images, count, features) of the frozen backbone: of the images as they are, then of versions that `section` makes."""
    found = [features_of(encoder, pixels)]
    valid = torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.bool)
    for version in range(1, count):
        draws = Draws(generator=torch.Generator().manual_seed(seed * 1000 + version), batch=len(pixels), share=slice(0, len(pixels)))
        changed, kept = augment(torch.from_numpy(pixels), valid, section, encoder.spec.mean, encoder.spec.std, draws)
        changed = torch.where(kept[:, None], changed, torch.tensor(encoder.spec.mean)[:, None, None].to(changed.dtype))
        found.append(features_of(encoder, changed.numpy()))
    return np.stack(found, axis=1)


def embedded(encoder: Encoder, features: Array, projection: str) -> Array:
    """Embed features with the encoder's head, as `projection` gives them: codes or activations of the same weights."""
    other = Encoder(dataclasses.replace(encoder.spec, projection=projection))
    other.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        return Projected(other.eval())(torch.from_numpy(features)).numpy()


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all rows have in common."""

    images: Images
    fold: Array
    """(images,) the fold that tests each."""
    record: Record
    seeds: Sequence[int]

    def tested(self, fold: int) -> Array:
        """Return (images,) bool."""
        found: Array = self.fold == fold % FOLDS
        return found

    def learned_from(self, fold: int) -> Array:
        """Return (images,) bool: those of neither this fold nor the next."""
        return ~self.tested(fold) & ~self.tested(fold + 1)

    @functools.cached_property
    def frozen(self) -> Encoder:
        """The pretrained backbone."""
        experiment = experiment_of({})
        return cast("Encoder", build(spec(experiment), pretrained=experiment.model.pretrained))

    @functools.cached_property
    def turned(self) -> Array:
        """(images, versions, features) of the frozen backbone."""
        return versions_of(self.frozen, self.images.pixels, experiment_of({}).train.augment, VERSIONS)

    @functools.cached_property
    def changed(self) -> Array:
        """Likewise, of versions that views are made of."""
        return versions_of(self.frozen, self.images.pixels, experiment_of(UNSUPERVISED).train.augment, 2 * VERSIONS)

    def whole(self, name: str, vectors: Callable[[int], Array], distance: str = "cosine") -> None:
        """Measure what learns nothing of the labels: vectors of the images of a fold."""
        for fold in range(FOLDS):
            work = functools.partial(lambda fold: measure(vectors(fold), self.images.where(self.tested(fold)), distance), fold)
            self.record.once((name, str(fold)), work)

    def baselines(self) -> None:
        """Measure the rows that every table has, and the frozen features of larger pictures."""

        def features(encoder: Encoder, pixels: Array) -> Callable[[int], Array]:
            found = functools.cache(lambda: features_of(encoder, pixels))
            return lambda fold: unit(found()[self.tested(fold)])

        def statistics(fold: int) -> Array:
            plain = self.frozen.spec
            given = statistics_spec(
                bands=plain.bands, mean=plain.mean, std=plain.std, tile_size=plain.tile_size, resolution_m=None, dtype=plain.dtype
            )
            known = vectors_of(build(given), self.images.pixels[self.learned_from(fold)])
            return vectors_of(build(standardised(given, known)), self.images.pixels[self.tested(fold)])

        self.whole("random-init", features(cast("Encoder", build(bare(self.frozen.spec))), self.images.pixels))
        self.whole("image statistics", statistics, "euclidean")
        self.whole(FLOAT, features(self.frozen, self.images.pixels))
        for side in (160, 224):
            larger = experiment_of({"model.input_size": side})
            encoder = cast("Encoder", build(spec(larger), pretrained=larger.model.pretrained))
            self.whole(f"{FLOAT}, {side} px", features(encoder, images_of(larger).pixels))

    def head(self, name: str, settings: Mapping[str, Any], fold: int, features: Array, *, on: int, target: Array | None = None) -> None:
        """Train codes on the features (images, versions, features) of what a fold may learn from, and measure them on the fold `on`."""

        def work() -> dict[str, Any]:
            experiment, kept = experiment_of(settings), self.learned_from(fold)
            shown = None if target is None else FeatureCache(values=features[target])
            tiles, of_kept = self.images.where(kept).tiles, FeatureCache(values=features[kept])
            encoder = cast("Encoder", train(experiment, tiles, of_kept, spec(experiment), target=shown))
            return self.of_codes(encoder, features[self.tested(on), 0], on)

        self.record.once((name, str(fold)), work)

    def of_codes(self, encoder: Encoder, features: Array, on: int) -> dict[str, Any]:
        """Measure codes, and the floats that they come from."""
        images = self.images.where(self.tested(on))
        of_float = measure(embedded(encoder, features, "activations"), images)
        return {**measure(embedded(encoder, features, "hash"), images), "float": of_float["by_tile"]}

    def choose(self, fold: int) -> dict[str, Any]:
        """Return the recipe that is best on the next fold, without a look at this one."""
        found = {}
        for name, settings in CANDIDATES.items():
            key = f"choice, {name}"
            self.head(key, BASE | settings, fold, self.turned, on=fold + 1)
            found[name] = self.record.entries[key, str(fold)][METRICS[0]]
        return BASE | CANDIDATES[max(found, key=lambda name: found[name])]

    def heads(self) -> None:
        """Measure the codes on frozen features."""
        for fold in range(FOLDS):
            chosen = self.choose(fold)
            rows: dict[str, dict[str, Any]] = {f"hash {bits}": chosen | {"model.dim": bits} for bits in (32, 64, 128, 256)}
            rows |= {"hash 128, inter-class": chosen | {"interclass.weight": 1.0}}
            rows |= {"hash 128, whitening": chosen | WHITENED, "hash 128, as published": BASE}
            for seed in self.seeds:
                for name, settings in rows.items():
                    self.head(_key(name, seed), settings | {"train.seed": seed}, fold, self.turned, on=fold)
                adapted = chosen | WHITENED | {"adaptation.target": "val", "train.seed": seed}
                self.head(_key("hash 128, adapted", seed), adapted, fold, self.turned, on=fold, target=self.tested(fold + 1))
                self.head(_key("hash 128, unsupervised", seed), UNSUPERVISED | {"train.seed": seed}, fold, self.changed, on=fold)

    def tuned(self) -> None:
        """Measure what the last stages of the backbone learn, and codes on that, with one seed."""
        for name, settings in TUNED.items():
            for fold in range(FOLDS):
                self.backbone(name, settings | {"train.seed": self.seeds[0]}, fold, self.seeds[0])

    def backbone(self, name: str, settings: Mapping[str, Any], fold: int, seed: int) -> None:
        """Train the last stages; measure the features, and codes learned on these afterwards.

        The entry's `val` is of the codes on the next fold.
        """

        def work() -> dict[str, Any]:
            experiment, images = experiment_of(TUNING | settings), self.images.where(self.learned_from(fold))
            encoder = cast("Encoder", train(experiment, images.tiles, chips_of(images), spec(experiment)))
            features, following = (features_of(encoder, self.images.pixels[self.tested(on)]) for on in (fold, fold + 1))
            shown = FeatureCache(values=versions_of(encoder, images.pixels, experiment.train.augment, VERSIONS // 2))
            above = experiment_of(BASE | CANDIDATES[ABOVE] | {"train.seed": seed})
            head = cast("Encoder", train(above, images.tiles, shown, spec(above)))
            codes, chosen = self.of_codes(head, features, fold), self.of_codes(head, following, fold + 1)
            of_features = measure(unit(features), self.images.where(self.tested(fold)))
            return {**of_features, "codes": codes["by_tile"], "float": codes["float"], "val": chosen[METRICS[0]]}

        self.record.once((_key(name, seed), str(fold)), work)


def unit(vectors: Array) -> Array:
    """Return vectors at length 1."""
    found: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def _key(name: str, seed: int) -> str:
    return f"{name}, seed {seed}"


Row = dict[str, dict[str, dict[str, float]]]
"""{part: {metric: {tile: mean over the seeds}}}."""


def row_of(entries: Mapping[tuple[str, ...], Mapping[str, Any]], name: str, of: str = "by_tile") -> Row:
    """Return what a row has of each tile, over the folds and seeds that there are of it."""
    mine = [entry[of] for (key, *_), entry in entries.items() if (key == name or key.startswith(f"{name}, seed ")) and of in entry]
    found: Row = {part: {metric: {} for metric in METRICS} for part in PARTS}
    for part in PARTS:
        for metric in METRICS:
            of_tile: dict[str, list[float]] = {}
            for entry in mine:
                for tile, value in entry[part][metric].items():
                    of_tile.setdefault(tile, []).append(value)
            found[part][metric] = {tile: float(np.mean(values)) for tile, values in of_tile.items()}
    return found


def rows_of(entries: Mapping[tuple[str, ...], Mapping[str, Any]]) -> dict[str, tuple[Row, Row]]:
    """Return each row that there is, with the floats that its codes come from (empty where it has no codes)."""
    names = dict.fromkeys(key.split(", seed ")[0] for key, *_ in entries if not key.startswith("choice"))
    found = {name: (row_of(entries, name), row_of(entries, name, "float" if name.startswith("hash") else "none")) for name in names}
    on = {f"hash 128, on {name}": (row_of(entries, name, "codes"), row_of(entries, name, "float")) for name in names if name in TUNED}
    return found | {name: row for name, row in on.items() if row[0]["all"][METRICS[0]]}


def show(entries: Mapping[tuple[str, ...], Mapping[str, Any]], units: Mapping[str, str], folds: Mapping[str, int]) -> dict[str, float]:
    """Print the tables, and return the figures.

    Args:
        entries: of the record.
        units: observation of each tile.
        folds: fold of each tile.
    """
    rows, figures = rows_of(entries), {}
    for part in PARTS:
        for metric in METRICS:
            print(f"\n{part}, {metric}: mean [95 % over observations], minus {FLOAT!r}, minus its own floats")
            for name, (row, floats) in rows.items():
                told = [_told(row[part][metric], None, units)]
                against = {"gain": rows[FLOAT][0], "rounding": floats}
                for what, other in against.items():
                    if other[part][metric]:
                        told.append(_told(row[part][metric], other[part][metric], units))
                        figures[f"{part}, {metric}, {name}, {what}"] = float(told[-1].split()[0])
                figures[f"{part}, {metric}, {name}"] = float(told[0].split()[0])
                print(f"  {name:34}" + "   ".join(told) + f"   by fold {_by_fold(row[part][metric], folds)}")
    name, metric = "hash 128", METRICS[0]
    each = np.array([entry[metric] - _of_fold(entries, key[1]) for key, entry in entries.items() if key[0].startswith(f"{name}, seed ")])
    wide = resampled_interval(each, 1 / (FOLDS - 2))
    print(f"\n{name} minus {FLOAT!r} over {len(each)} folds x seeds: {wide.value:+.4f} [{wide.low:+.4f}, {wide.high:+.4f}]")
    return figures


def _of_fold(entries: Mapping[tuple[str, ...], Mapping[str, Any]], fold: str) -> float:
    return float(entries[FLOAT, fold][METRICS[0]])


def _told(values: Mapping[str, float], other: Mapping[str, float] | None, units: Mapping[str, str]) -> str:
    tiles = sorted(values.keys() & (values if other is None else other).keys())
    own, of_unit = np.array([values[tile] for tile in tiles]), np.array([units[tile] for tile in tiles])
    if other is None:
        found = bootstrap_interval(own, of_unit)
        return f"{found.value:.4f} [{found.low:.3f}, {found.high:.3f}]"
    found = paired_difference(own, np.array([other[tile] for tile in tiles]), of_unit)
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _by_fold(values: Mapping[str, float], folds: Mapping[str, int]) -> str:
    return " ".join(f"{np.mean([value for tile, value in values.items() if folds[tile] == fold] or [np.nan]):.3f}" for fold in range(FOLDS))


def main() -> None:
    """Run from the command line."""
    parser = command.parser("mars_codes", __doc__, quick="one seed, and no tuned backbones")
    parser.add_argument("--out", type=Path, default=Path("mars_codes.jsonl"), help="file of measurements, which a second run goes on from")
    parser.add_argument("--part", choices=("all", "heads", "tuned", "none"), default="all", help="rows that are worked out; all are shown")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    experiment = experiment_of({})
    images = images_of(experiment)
    fold = folds_of(experiment, images.tiles["tile_id"].to_pylist())
    settings = [{name: value for name, value in experiment.to_dict().items() if name != "rasters"}, BASE, CANDIDATES, UNSUPERVISED, TUNED]
    digest = hashlib.sha256(json.dumps([*settings, TUNING, ABOVE, VERSIONS], sort_keys=True, default=str).encode()).hexdigest()
    record = Record(options.out, digest, METRICS)
    study = Study(images=images, fold=fold, record=record, seeds=(0,) if options.quick else (0, 1))
    if options.part in {"all", "heads"}:
        study.baselines()
        study.heads()
    if options.part in {"all", "tuned"} and not options.quick:
        study.tuned()
    ids = images.tiles["tile_id"].to_pylist()
    units = dict(zip(ids, images.tiles["observation"].to_pylist(), strict=True))
    figures = show(record.entries, units, dict(zip(ids, fold.tolist(), strict=True)))
    if options.json:
        command.end("mars_codes", figures, ("rayjobs", "torch", "timm", "numpy"))


if __name__ == "__main__":
    main()
