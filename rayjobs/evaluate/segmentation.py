"""The segmentation probe of `rayjobs evaluate`: how well each row's feature map tells the class of single pixels.

`segment` runs on one worker. A linear probe is fitted on cells of training tiles and tested on all pixels of tiles of the measured split;
of both parts a random sample of tiles is read. Memory: the chips and classes of those tiles, the cells, and the feature maps of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rayjobs.embed.stack import stack
from rayjobs.errors import ConfigError
from rayjobs.models.checkpoint import from_files
from rayjobs.rasters.scenes import read_scenes
from rayjobs.retrieval.segmentation import (
    SEGMENTATION,
    Cells,
    PixelProbe,
    class_iou,
    confusion,
    joined,
    sample_cells,
    segmentation_interval,
)
from rayjobs.tiles.chips import Chip, read_chips, shard_name
from rayjobs.tiles.table import read_geoparquet, read_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rayjobs.models.checkpoint import Checkpointed
    from rayjobs.rasters.label_map import LabelMap
    from rayjobs.retrieval.intervals import Interval
    from rayjobs.storage import Version

IntArray = np.ndarray[Any, np.dtype[np.int64]]

MAJORITY = "majority-class"
"""Name of the row that takes every pixel for the training pixels' most frequent class."""

_BATCH = 64
"""Tiles whose feature maps are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Tiles with the classes of their pixels, sorted by tile id."""

    chips: list[Chip]
    labels: list[IntArray]
    """(height, width) of each: position in the label map's names, -1 where there is no class or the pixel is invalid."""
    units: np.ndarray[Any, Any]
    """(tiles,) block of ground, or scene."""


def segment(
    source: Version,
    label_map: LabelMap,
    encoders: Mapping[str, Mapping[str, bytes]],
    *,
    split: str,
    ours: str,
    tiles: int = 200,
    cells: int = 20_000,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the `segmentation` part of a report, as plain values of JSON.

    Args:
        source: the set; its training split fits the probes.
        label_map: the classes of pixels.
        encoders: `model_json` and `tensors` of each row; of image statistics the feature map is the pixels themselves.
        split: what is measured.
        ours: name of the row that the others are subtracted from.
        tiles: most tiles of each of the two splits.
        cells: most cells that a probe is fitted on.
        resamples: bootstrap resamples of units behind each interval.
        seed: of the samples, the probes and the resampling.

    Raises:
        ConfigError: a split has no tile, or no pixel with a class.
        LabelMapError: the label map cannot be read.
    """
    rng = np.random.default_rng(seed)
    fitted, tested = (_labelled(source, label_map, part, tiles, rng) for part in ("train", split))
    classes = len(label_map.names)
    confusions = {MAJORITY: _majority(fitted, tested, classes)}
    penalties: dict[str, float] = {}
    for name, files in encoders.items():
        found = _Mapped(from_files(**files))
        probe = PixelProbe.fit(_cells(found, fitted, classes, cells, seed), seed=seed)
        penalties[name] = probe.penalty
        confusions[name] = _confusions(found, probe, tested, classes)
    rows = [_row(name, of_row, confusions[ours], tested.units, resamples, seed) for name, of_row in confusions.items()]
    names = label_map.names
    for row in rows:
        row["penalty"] = penalties.get(row["name"])
        row["iou"] = dict(zip(names, row["iou"], strict=True))
    return {"rows": rows, "protocol": _protocol(source, split, fitted, tested, names, resamples, seed)}


def _labelled(source: Version, label_map: LabelMap, split: str, count: int, rng: np.random.Generator) -> Labelled:
    """Draw tiles of a split and read their pixels and classes."""
    table = read_tiles(source.read("tiles.parquet"))
    table = table.filter(pc.equal(table["split"], split)).sort_by("tile_id")
    if table.num_rows > count:
        table = table.take(np.sort(rng.choice(table.num_rows, count, replace=False)))
    chips = _chips(source, table)
    found = _classes(source, label_map, table)
    labels = [_of_chip(chip, found[chip.tile_id]) for chip in chips]
    if not any((of_tile >= 0).any() for of_tile in labels):
        raise ConfigError(
            f"no pixel of {len(chips)} tiles of the {split} split has a class, so none can be segmented; "
            "check rasters.label_map, or set evaluate.segmentation to null"
        )
    return Labelled(chips=chips, labels=labels, units=np.array(table["block_id"].to_pylist()))


def _of_chip(chip: Chip, classes: IntArray) -> IntArray:
    """Return the class of each pixel of a chip: none where it is not valid, as where a tile at the edge was filled up."""
    found = np.full(chip.valid.shape, -1, np.int64)
    found[: classes.shape[0], : classes.shape[1]] = classes
    return np.where(chip.valid, found, -1)


def _chips(source: Version, table: pa.Table) -> list[Chip]:
    """Return the chips of tiles, in the order of their ids."""
    wanted = set(table["tile_id"].to_pylist())
    shards = sorted(pc.unique(table["shard"]).to_pylist())
    found = {chip.tile_id: chip for shard in shards for chip in read_chips(source.read(shard_name(shard)), wanted)}
    return [found[tile_id] for tile_id in table["tile_id"].to_pylist()]


def _classes(source: Version, label_map: LabelMap, table: pa.Table) -> dict[str, IntArray]:
    """Return the classes of each tile's pixels, by its id."""
    scenes = {scene.scene_id: scene for scene in read_scenes(read_geoparquet(source.read("scenes.parquet")))}
    found: dict[str, IntArray] = {}
    for scene_id in pc.unique(table["scene_id"]).to_pylist():
        of_scene = table.filter(pc.equal(table["scene_id"], scene_id))
        windows = np.column_stack([of_scene[name].to_numpy() for name in ("row", "col", "height", "width")])
        found |= dict(zip(of_scene["tile_id"].to_pylist(), label_map.classes_many(scenes[scene_id].grid, windows), strict=True))
    return found


class _Mapped:
    """Gives the feature maps of chips, a batch at a time."""

    def __init__(self, encoder: Checkpointed) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._module, self._spec = encoder.module.eval().to(self._device), encoder.spec

    def __call__(self, tiles: Labelled) -> Iterator[tuple[slice, np.ndarray[Any, np.dtype[np.float32]]]]:
        """Yield which tiles, and their maps (tiles, features, h, w)."""
        for start in range(0, len(tiles.chips), _BATCH):
            rows = slice(start, start + _BATCH)
            chips = tiles.chips[rows]
            pixels, valid = stack(chips, self._spec.tile_size, nearest=self._spec.maps_of(len(chips[0].pixels)))
            with torch.inference_mode():
                found = self._module.feature_map(pixels.to(self._device), valid.to(self._device))  # type: ignore[operator]  # a method
            yield rows, found.cpu().numpy()


def _cells(found: _Mapped, tiles: Labelled, classes: int, most: int, seed: int) -> Cells:
    """Return what a probe is fitted on: as many cells of each tile as there is room for."""
    per_tile, rng = max(1, most // len(tiles.chips)), np.random.default_rng(seed)
    return joined(
        [
            sample_cells(features, tiles.labels[rows], tiles.units[rows], classes, per_tile=per_tile, rng=rng)
            for rows, features in found(tiles)
        ]
    )


def _confusions(found: _Mapped, probe: PixelProbe, tiles: Labelled, classes: int) -> IntArray:
    """Return (tiles, classes, classes) pixels by true and predicted class."""
    confusions = []
    for rows, features in found(tiles):
        labels = tiles.labels[rows]
        predicted = probe.predict(features, [(of_tile.shape[0], of_tile.shape[1]) for of_tile in labels])
        confusions += [confusion(of_tile, guess, classes) for of_tile, guess in zip(labels, predicted, strict=True)]
    return np.stack(confusions)


def _majority(fitted: Labelled, tested: Labelled, classes: int) -> IntArray:
    counts = sum(np.bincount(of_tile[of_tile >= 0], minlength=classes) for of_tile in fitted.labels)
    most = int(np.argmax(counts))
    return np.stack([confusion(of_tile, np.full_like(of_tile, most), classes) for of_tile in tested.labels])


def _row(name: str, of_row: IntArray, of_ours: IntArray, units: np.ndarray[Any, Any], resamples: int, seed: int) -> dict[str, Any]:
    def interval(metric: str, confusions: IntArray, minus: IntArray | None = None) -> dict[str, float | None]:
        return _entry(segmentation_interval(metric, confusions, units, minus=minus, resamples=resamples, seed=seed))

    return {
        "name": name,
        "metrics": {metric: interval(metric, of_row) for metric in SEGMENTATION},
        "trained_minus": None if of_row is of_ours else {metric: interval(metric, of_ours, of_row) for metric in SEGMENTATION},
        "iou": [_known(value) for value in class_iou(of_row.sum(axis=0)).tolist()],
    }


def _entry(interval: Interval) -> dict[str, float | None]:
    alone = interval.units == 1  # a single unit has no spread
    ends = (None, None) if alone else (_known(interval.low), _known(interval.high))
    return {"value": _known(interval.value), "low": ends[0], "high": ends[1]}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _protocol(
    source: Version, split: str, fitted: Labelled, tested: Labelled, names: tuple[str, ...], resamples: int, seed: int
) -> dict[str, Any]:
    pixels = np.concatenate([of_tile[of_tile >= 0] for of_tile in tested.labels])
    counts = np.bincount(pixels, minlength=len(names)).tolist()
    units = len(np.unique(tested.units))
    return {
        "set_version": source.version,
        "split": split,
        "fitted_tiles": len(fitted.chips),
        "tested_tiles": len(tested.chips),
        "tested_pixels": dict(zip(names, counts, strict=True)),
        "probe": "logistic regression on standardised cells of the last feature map, its penalty chosen on held-out training units; "
        "logits interpolated to the tile's pixels",
        "means": "mIoU: mean over the classes that a tested pixel has; both metrics of all tested pixels together",
        "interval": f"95 %, {resamples} bootstrap resamples of {units} units",
        "units": units,
        "seed": seed,
    }
