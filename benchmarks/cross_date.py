"""The same place on another date: is it found better after training than by the frozen pretrained encoder, and do maps help?

NAIP aerial imagery of one place in North Dakota on four dates, or a Landsat pair of Taizhou (`--site taizhou`), by
`configs/crossdate-siamese.yaml`. Each of the 154 (144) places of a grid asks each other date, whose gallery is always all of them. The
ground is cut into five strips; the places of a strip are asked of encoders that were trained on windows of the other strips alone, so every
place is measured once, never seen. Learning rates are chosen on the strip after it, by encoders that have learned from neither, so the
strip that is measured has no say. Intervals resample places; differences are paired.

The maps hold six classes of vegetation and brightness, each date's from its own pixels: a map that dates shared would be a key to the
place. One date is left out of training once. Every measurement is appended to a file of JSON lines; what stands there is not done again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import rasterio
import torch

from benchmarks import command
from benchmarks.study import DATA, Images, Record, chips_of, features_of, images_of, train, vectors_of
from rayjobs import experiment as experiments
from rayjobs.evaluate.relevance import ask
from rayjobs.models.encoder import Encoder, bare, build
from rayjobs.models.section import spec_of
from rayjobs.retrieval.intervals import bootstrap_interval, paired_difference
from rayjobs.retrieval.metrics import score
from rayjobs.tiles import places
from rayjobs.train.shown import FeatureCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.models.spec import ModelSpec
    from rayjobs.train.shown import Shown

CONFIG = Path(__file__).parent.parent / "configs" / "crossdate-siamese.yaml"
STRIPS = 5
"""Into which the ground is cut; a window that is learned from lies a quarter of a tile from the next."""
METRICS = ("recall@1", "MRR@5")
RATES = (3e-4, 1e-3)
DIMENSIONS = (64, 256, 512)
LOSSES: dict[str, dict[str, Any]] = {
    "siamese": {"kind": "siamese"},
    "siamese, focal": {"kind": "siamese", "alpha": 0.75, "gamma": 2.0},
    "ntxent": {"kind": "ntxent"},
    "triplet": {"kind": "triplet"},
    "supcon": {"kind": "supcon"},
    "contrastive": {"kind": "contrastive"},
    "multi_similarity": {"kind": "multi_similarity"},
    "circle": {"kind": "circle"},
}
AGAINST = "frozen, cells"
"""The row that the others are compared with: the same features, with no more known than before."""
CHOSEN = "ntxent"
"""The loss of the rows that compare something else: named beforehand, as the strongest of the same task elsewhere."""
BRIEF = {"train.epochs": 6, "train.batch_size": 64, "mining.every": 0}
"""What learns before the backbone costs the whole backbone at each step: maps get fewer and smaller ones, and so does what they are
compared with."""
MAPS = BRIEF | {"model.fusion": {"maps": {"cover": [0, 1, 2, 3, 4, 5]}, "dropout": 0.2}, "train.frozen_features": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Imagery of one place on several dates."""

    files: str
    """Below the folder of test data."""
    pattern: str
    bands: tuple[str, ...]
    side: int
    """Of a tile, pixels."""
    resolution_m: float
    unseen: str
    """Year of the date that is left out once; none where two dates are all there are."""


SITES = {
    "naip": Site(
        files="naip_nd/m_*.tif",
        pattern=r"_(?P<date>\d{8})\.tif$",
        bands=("red", "green", "blue", "nir"),
        side=64,
        resolution_m=5.0,
        unseen="2018",
    ),
    "taizhou": Site(
        files="landsat_cd_taizhou/200?TM",
        pattern=r"(?P<date>\d{4})TM\.tif$",
        bands=("blue", "green", "red", "nir", "swir1", "swir2"),
        side=32,
        resolution_m=30.0,
        unseen="",
    ),
}


def cover(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a map of six classes (height, width) uint8 of one date's red, green, blue and near infrared.

    Thirds of the vegetation index, each dark or bright by the median.
    """
    red, green, blue, nir = pixels.astype(np.float64)
    index, light = (nir - red) / np.maximum(nir + red, 1), red + green + blue
    found: np.ndarray[Any, Any] = np.digitize(index, np.percentile(index, [100 / 3, 200 / 3])) * 2 + (light > np.median(light))
    return found.astype(np.uint8)


def write_scenes(site: Site, folder: Path) -> None:
    """Write each date's red, green and blue with its map as a fourth band."""
    for path in sorted(DATA.glob(site.files)):
        with rasterio.open(path) as source:
            pixels = source.read([1 + site.bands.index(band) for band in ("red", "green", "blue", "nir")])
            profile = {"driver": "GTiff", "dtype": "uint8", "crs": source.crs, "transform": source.transform}
        with rasterio.open(folder / f"{path.stem}.tif", "w", count=4, height=pixels.shape[1], width=pixels.shape[2], **profile) as target:
            target.write(np.concatenate([pixels[:3], cover(pixels)[None]]))


def experiment_of(site: Site, folder: Path, settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment of the file on the written scenes, with some keys changed."""
    source = {"kind": "files", "uris": [str(folder / "*.tif")], "pattern": site.pattern, "bands": ["red", "green", "blue", "cover"]}
    wanted = ["red", "green", "blue", *(["cover"] if "model.fusion" in settings else [])]
    changed = {"rasters.sources": [source], "rasters.bands": wanted, "tiles.size": site.side, **settings}
    return experiments.load(CONFIG, [part for key, value in changed.items() for part in (f"--{key}", json.dumps(value))])


def spec(site: Site, experiment: Experiment) -> ModelSpec:
    """Return the encoder of an experiment, normalised as in pretraining."""
    bands = experiment.rasters.bands or ()
    zeros, ones = (0,) * len(bands), (1,) * len(bands)  # of the imagery, those of the pretraining take their place
    return spec_of(
        experiment.model,
        bands=bands,
        mean=zeros,
        std=ones,
        tile_size=site.side,
        resolution_m=site.resolution_m,
        dtype="uint8",
    )


def column(images: Images, name: str) -> np.ndarray[Any, Any]:
    """Return a column of the tile table."""
    found: np.ndarray[Any, Any] = images.tiles[name].to_numpy()
    return found


def strips_of(grid: Images, side: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (tiles,) the strip of each tile of the grid: as many columns of tiles each as can be."""
    columns = column(grid, "col") // side
    found: np.ndarray[Any, np.dtype[np.int64]] = columns * STRIPS // (columns.max() + 1)
    return found


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all rows have in common."""

    site: Site
    folder: Path
    """Of the scenes."""
    grid: Images
    """The places that ask and are found, with maps."""
    dense: Images
    """The windows that are learned from, likewise."""
    record: Record
    seeds: Sequence[int]

    def measure(self, vectors: np.ndarray[Any, Any], strip: int) -> dict[str, Any]:
        """Have the places of a strip ask every other date: each place's means, over all pairs of dates and over those with the unseen."""
        split = np.where(strips_of(self.grid, self.site.side) == strip, "test", "train")
        tiles = self.grid.tiles.drop_columns(["split"]).append_column("split", [split.tolist()])
        settings = experiment_of(self.site, self.folder, {}).evaluate
        question = ask(tiles, settings, divided_by="block", place_tolerance=0.1)
        found = score(
            vectors[question.queries], vectors, relevance=question.relevance, excluded=question.excluded, ks=(1, 5), distance="cosine"
        )
        asking = column(self.grid, "row") // self.site.side * 100 + column(self.grid, "col") // self.site.side
        place = asking[question.queries[found.queries]]
        unseen = self.site.unseen
        with_unseen = np.concatenate([pair.queries for pair in question.dates if unseen in (pair.asking[:4], pair.asked[:4]) or not unseen])
        parts = {"all": np.ones(len(place), bool), "unseen": np.isin(found.queries, with_unseen)}
        of_part = {part: {name: _by(place[rows], found.values[name][rows]) for name in METRICS} for part, rows in parts.items()}
        return {"by_place": of_part, **{name: float(found.values[name].mean()) for name in METRICS}}

    def frozen(self, name: str, settings: Mapping[str, Any]) -> None:
        """Measure the pretrained backbone's features as they are."""
        experiment = experiment_of(self.site, self.folder, settings)

        @functools.cache
        def vectors() -> np.ndarray[Any, Any]:
            return vectors_of(build(bare(spec(self.site, experiment)), pretrained=experiment.model.pretrained), self.grid.pixels[:, :3])

        for strip in range(STRIPS):
            self.record.once((name, str(strip)), functools.partial(lambda strip: self.measure(vectors(), strip), strip))

    def trained(self, name: str, settings: Mapping[str, Any], strip: int, without: Sequence[int]) -> None:
        """Train on the windows outside of some strips, and measure one of these; with maps also without them, and them alone."""

        def work() -> dict[str, Any]:
            experiment = experiment_of(self.site, self.folder, settings)
            kept = self.learned_from(without, unseen=name.startswith("three dates"))
            fused = experiment.model.fusion is not None
            images = self.dense.where(kept)
            shown: Shown = chips_of(images) if fused else FeatureCache(values=self.features[kept][:, None])
            encoder = cast("Encoder", train(experiment, images.tiles, shown, spec(self.site, experiment)))
            pixels = self.grid.pixels if fused else self.grid.pixels[:, :3]
            entry = self.measure(vectors_of(encoder, pixels), strip)
            for part, bands in (("image alone", slice(0, 3)), ("map alone", slice(3, 4))) if fused else ():
                entry[part] = self.measure(vectors_of(encoder, self.grid.pixels[:, bands]), strip)
            return entry

        self.record.once((name, str(strip)), work)

    def learned_from(self, without: Sequence[int], *, unseen: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return (windows,) which share no ground with some strips; and are not of the date that is left out, if one is."""
        strips, columns, left = strips_of(self.grid, self.site.side), column(self.grid, "col"), column(self.dense, "col")
        kept = np.ones(len(left), bool)
        for strip in without:
            first, end = columns[strips == strip].min(), columns[strips == strip].max() + self.site.side
            kept &= (left + self.site.side <= first) | (left >= end)
        return kept & ~np.char.startswith(places.dates(self.dense.tiles).astype(str), self.site.unseen) if unseen else kept

    @functools.cached_property
    def features(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(windows, features) of the frozen backbone, of all windows."""
        experiment = experiment_of(self.site, self.folder, {})
        encoder = cast("Encoder", build(spec(self.site, experiment), pretrained=experiment.model.pretrained))
        return features_of(encoder, self.dense.pixels[:, :3])

    def choose(self, name: str, strip: int) -> float:
        """Return the learning rate that is best on the next strip, without a look at this one."""
        following = (strip + 1) % STRIPS
        found = {}
        for rate in RATES:
            key = f"choice, {name}, {rate:g}, for strip {strip}"
            self.trained(key, {"loss": LOSSES[name], "train.learning_rate": rate}, following, without=(strip, following))
            found[rate] = self.record.entries[key, str(following)]["MRR@5"]
        return max(found, key=lambda rate: found[rate])

    def run(self) -> None:
        """Do what the record lacks."""
        self.frozen("frozen, mean", {"model.pool_cells": 1})
        self.frozen("frozen, cells", {})
        for strip in range(STRIPS):
            rows = self.rows(strip)
            for seed in self.seeds:
                repeated = rows if seed == self.seeds[0] else {name: rows[name] for name in ("siamese", CHOSEN)}
                for name, settings in repeated.items():
                    key = name if seed == self.seeds[0] else f"{name}, seed {seed}"
                    self.trained(key, settings | {"train.seed": seed}, strip, without=(strip,))
            for name, settings in (("image, as briefly", BRIEF), ("with map", MAPS)):
                self.trained(name, rows[CHOSEN] | settings, strip, without=(strip,))

    def rows(self, strip: int) -> dict[str, dict[str, Any]]:
        """Return what is trained, by name, and with which settings; of two dates alone no more than the comparison with frozen features."""
        rates = {name: self.choose(name, strip) for name in ("siamese", CHOSEN)}
        still = {"train.epochs": 1, "train.steps_per_epoch": 1, "train.learning_rate": 1e-12}
        rows: dict[str, dict[str, Any]] = {"whitened, no loss": still}
        rows |= {name: {"loss": loss, "train.learning_rate": rates.get(name, rates[CHOSEN])} for name, loss in LOSSES.items()}
        chosen = rows[CHOSEN]
        if not self.site.unseen:
            return {name: rows[name] for name in ("whitened, no loss", "siamese", CHOSEN)}
        rows |= {f"{dim} numbers": chosen | {"model.dim": dim} for dim in DIMENSIONS}
        return rows | {"three dates": chosen}


def _by(place: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> dict[str, float]:
    names, inverse = np.unique(place, return_inverse=True)
    means = np.bincount(inverse, values) / np.bincount(inverse)
    return dict(zip(map(str, names.tolist()), means.tolist(), strict=True))


def row_of(
    entries: Mapping[tuple[str, ...], Mapping[str, Any]], name: str, part: str = "all", asked: str = ""
) -> dict[str, dict[str, float]]:
    """Return {metric: {place: mean}} of a row, over the strips and seeds that there are of it."""
    found: dict[str, dict[str, list[float]]] = {metric: {} for metric in METRICS}
    for (key, *_), entry in entries.items():
        if key == name or key.startswith(f"{name}, seed "):
            for metric, by in (entry[asked] if asked else entry)["by_place"][part].items():
                for place, value in by.items():
                    found[metric].setdefault(place, []).append(value)
    return {metric: {place: float(np.mean(values)) for place, values in by.items()} for metric, by in found.items()}


def show(entries: Mapping[tuple[str, ...], Mapping[str, Any]], site: Site) -> dict[str, float]:
    """Print the tables, and return the figures."""
    names = ["frozen, mean", "frozen, cells", "whitened, no loss", *LOSSES, *(f"{dim} numbers" for dim in DIMENSIONS)]
    names += ["image, as briefly", "with map"]
    rows = {name: row_of(entries, name) for name in names}
    rows |= {f"with map, {part}": row_of(entries, "with map", asked=part) for part in ("image alone", "map alone")}
    tables = {"all pairs of dates": rows}
    if site.unseen:
        asked = ("frozen, mean", "frozen, cells", CHOSEN, "three dates")
        tables[f"pairs with {site.unseen}"] = {name: row_of(entries, name, "unseen") for name in asked}
    figures: dict[str, float] = {}
    for title, table in tables.items():
        print(f"\n{title}: mean [95 % over places], and minus {AGAINST!r}")
        for name, row in table.items():
            if row[METRICS[0]]:
                cells = (_cell(row[metric], table[AGAINST][metric], metric, f"{title}, {name}", figures) for metric in METRICS)
                print(f"  {name:24}" + "".join(cells))
    return figures


def _cell(row: Mapping[str, float], other: Mapping[str, float], metric: str, name: str, figures: dict[str, float]) -> str:
    common = sorted(row.keys() & other.keys())
    values, theirs, names = (np.array(part) for part in ([row[p] for p in common], [other[p] for p in common], common))
    own, less = bootstrap_interval(values, names), paired_difference(values, theirs, names)
    figures |= {f"{name}, {metric}": own.value, f"{name}, {metric}, gain": less.value, f"{name}, {metric}, gain, low": less.low}
    return f"   {metric} {own.value:.3f} [{own.low:.3f}, {own.high:.3f}] {less.value:+.3f} [{less.low:+.3f}, {less.high:+.3f}]"


def main() -> None:
    """Run from the command line."""
    parser = command.parser("cross_date", __doc__, quick="one seed")
    parser.add_argument("--site", choices=sorted(SITES), default="naip")
    parser.add_argument("--out", type=Path, help="file of measurements, which a second run goes on from; default cross_date_SITE.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    site = SITES[options.site]
    with tempfile.TemporaryDirectory() as written:
        folder = Path(written)
        write_scenes(site, folder)
        whole = {"model.fusion": MAPS["model.fusion"], "train.frozen_features": 0, "model.input_size": site.side}
        whole["tiles.splits"] = {"train": 1, "val": 0, "test": 0}  # the strips are the splits
        strides = (site.side, site.side // 4)
        grid, dense = (images_of(experiment_of(site, folder, whole | {"tiles.sampler.stride": stride})) for stride in strides)
        settled = [experiment_of(site, Path(), {}).to_dict(), LOSSES, MAPS, RATES]
        digest = hashlib.sha256(json.dumps(settled, sort_keys=True, default=str).encode()).hexdigest()
        record = Record(options.out or Path(f"cross_date_{options.site}.jsonl"), digest, METRICS)
        seeds = (0,) if options.quick else (0, 1)
        Study(site=site, folder=folder, grid=grid, dense=dense, record=record, seeds=seeds).run()
    figures = show(record.entries, site)
    if options.json:
        command.end("cross_date", figures, ("rayjobs", "torch", "timm", "numpy"))


if __name__ == "__main__":
    main()
