"""What a query should find, what it may not count, which queries are independent of each other, and what is known of what tiles hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from rayjobs.errors import ConfigError
from rayjobs.retrieval.metrics import PairList, Pairs, SameLabel
from rayjobs.retrieval.ranking import FloatArray, IntArray, blocks
from rayjobs.tiles.neighbours import outlines, overlapping_pairs, positive_pairs
from rayjobs.tiles.positions import positions, sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from rayjobs.evaluate.section import EvaluateSection

UNKNOWN = -1
"""Code of tiles that have no class."""

Names = np.ndarray[Any, Any]

_NEIGHBOURS = "tiles whose centres lie within {} tile sizes of the query's"
_WITHOUT_CLASSES = "set rasters.label_map, or"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The tiles of a split as queries and gallery at once."""

    tile_ids: list[str]
    relevance: Pairs
    excluded: PairList
    units: Names
    """(tiles,) name of the block, scene or class that is resampled for intervals."""
    ground: Names
    """(tiles,) name of the block of ground, or of the image, that each tile belongs to: what probes are split by."""
    near: PairList
    """Tiles that share ground or lie within `evaluate.radius`: the buffer between the ground of a probe's training and of its test."""
    codes: IntArray
    """(tiles,) number of each tile's class in `classes`; `UNKNOWN` of tiles that have none."""
    classes: tuple[str, ...]
    """Names of the classes that tiles of the split have, in the order of the set."""
    proportions: FloatArray | None
    """(tiles, len(held_classes)) how much of each class a tile holds, rows of sum 1; rows of 0 where the label map does not tell.
    None where it tells of no tile, or there is none."""
    held_classes: tuple[str, ...]
    """Names of all classes of the set."""
    relevant_means: str
    """The rule in words."""
    unit_means: str
    ground_means: str


def ask(
    tiles: pa.Table, settings: EvaluateSection, *, classes: Sequence[str] = (), by_block: bool, min_label_coverage: float = 0.0
) -> Question:
    """Make the question of a split.

    Args:
        tiles: its rows of the tile table, sorted by tile id.
        settings: the experiment's evaluate section.
        classes: names of the set's classes, in the order of `label_fractions`.
        by_block: whether `block_id` names blocks of ground, as opposed to scenes.
        min_label_coverage: tiles of which the label map knows a smaller share have no proportions, as they have no label.

    Raises:
        ConfigError: relevance or intervals by class, and no classes; intervals by block, and no blocks.
    """
    count = tiles.num_rows
    overlapping = overlapping_pairs(outlines(tiles))
    itself = np.repeat(np.arange(count)[:, None], 2, axis=1)
    excluded = PairList(np.concatenate([itself, _both_ways(overlapping)]), count)
    neighbours = PairList(_both_ways(positive_pairs(positions(tiles), sizes(tiles), 0.0, settings.radius)), count)
    found, codes = _classes(tiles, classes)
    relevance, means = _by_label(codes) if settings.relevance == "label" else (neighbours, _NEIGHBOURS.format(settings.radius))
    on_ground = by_block and tiles["geometry"].null_count < count
    units, unit_means = _units(tiles, settings, on_ground=on_ground)
    return Question(
        tile_ids=tiles["tile_id"].to_pylist(),
        relevance=relevance,
        excluded=excluded,
        units=units,
        ground=_names(tiles, "block_id"),
        near=PairList(np.concatenate([excluded.pairs, neighbours.pairs]), count),
        codes=codes,
        classes=found,
        proportions=_proportions(tiles, classes, min_label_coverage),
        held_classes=tuple(classes),
        relevant_means=means,
        unit_means=unit_means,
        ground_means="spatial blocks" if on_ground else "scenes",
    )


def findable(question: Question) -> IntArray:
    """Return the tiles that have another relevant one: the queries that can be measured."""
    count = len(question.tile_ids)
    parts = list(blocks(count, 4 * count))
    found = [(question.relevance.rows(rows) & ~question.excluded.rows(rows)).any(axis=1) for rows in parts]
    return np.flatnonzero(np.concatenate(found))


def _both_ways(pairs: IntArray) -> IntArray:
    return np.concatenate([pairs, pairs[:, ::-1]])


def _names(tiles: pa.Table, column: str) -> Names:
    return np.array(pc.fill_null(tiles[column], "").to_pylist())


def _classes(tiles: pa.Table, classes: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """Return the names of the classes that occur, in the order of the set, and each tile's number among them."""
    labels = tiles["label"].to_pylist()
    place = {name: number for number, name in enumerate(classes)}
    found = sorted({label for label in labels if label is not None}, key=lambda label: (place.get(label, len(place)), label))
    code = {label: number for number, label in enumerate(found)} | {None: UNKNOWN}
    return tuple(found), np.array([code[label] for label in labels], np.int64)


def _proportions(tiles: pa.Table, classes: Sequence[str], min_coverage: float) -> FloatArray | None:
    if not classes or "label_fractions" not in tiles.column_names:
        return None
    column = tiles["label_fractions"].combine_chunks()
    told = column.is_valid().to_numpy(zero_copy_only=False)
    held = np.zeros((tiles.num_rows, len(classes)))
    held[told] = column.flatten().to_numpy().reshape(-1, len(classes))
    held[pc.fill_null(tiles["label_coverage"], 0.0).to_numpy() < min_coverage] = 0
    sums = held.sum(axis=1, keepdims=True)
    held /= np.where(sums > 0, sums, 1)
    return held if held.any() else None


def _units(tiles: pa.Table, settings: EvaluateSection, *, on_ground: bool) -> tuple[Names, str]:
    if settings.unit == "block" and not on_ground:
        raise ConfigError("evaluate.unit is block, and the tiles are divided by scene; set tiles.splits.by: block, or evaluate.unit: scene")
    if settings.unit == "class":
        if tiles["label"].null_count == tiles.num_rows:
            raise ConfigError(f"evaluate.unit is class, and no tile has one; {_WITHOUT_CLASSES} evaluate.unit: auto")
        return _names(tiles, "label"), "classes"
    if settings.unit == "scene":
        return _names(tiles, "scene_id"), "scenes"
    return _names(tiles, "block_id"), "spatial blocks" if on_ground else "scenes"


def _by_label(codes: IntArray) -> tuple[Pairs, str]:
    if (codes == UNKNOWN).all():
        raise ConfigError(f"evaluate.relevance is label, and no tile has one; {_WITHOUT_CLASSES} relevance: neighbourhood")
    return SameLabel(codes, codes), "tiles of the query's class"
