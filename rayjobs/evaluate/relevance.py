"""What a query should find, what it may not count, which queries are independent of each other, and what is known of what tiles hold."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from rayjobs.errors import ConfigError
from rayjobs.retrieval.metrics import AnyOf, PairList, Pairs, SameLabel
from rayjobs.retrieval.ranking import BoolArray, FloatArray, IntArray, blocks
from rayjobs.tiles import places
from rayjobs.tiles.neighbours import outlines, overlapping_pairs, positive_pairs
from rayjobs.tiles.positions import Spots, positions, sizes, spots

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from rayjobs.evaluate.section import EvaluateSection

UNKNOWN = -1
"""Code of tiles that have no class."""

Names = np.ndarray[Any, Any]

_NEIGHBOURS = "tiles whose centres lie within {} tile sizes of the query's"
_SAME_PLACE = "tiles of another date whose centres lie within {:g} tile sizes of the query's, date by date"
_OVERLAP = "the query itself, and tiles whose ground overlaps its own"
_DIVISIONS = {"observation": "source observations", "date": "dates"}
_WITHOUT_CLASSES = "set rasters.label_map, or"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatePair:
    """Queries of one date that ask another."""

    asking: str
    """A day, as 2015-09-26."""
    asked: str
    gap_days: int
    """From the one to the other, negative where the other is the earlier."""
    queries: IntArray
    """Positions among the question's queries."""
    gallery: int
    """Tiles of the date that is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of some tiles: each query is compared with all of them but what it may not count."""

    tile_ids: list[str]
    queries: IntArray
    """(queries,) the tile that asks; all tiles once, but for places, of which those of the split ask each other date."""
    relevance: Pairs
    """Which tiles each query should find."""
    excluded: Pairs
    """Which it may not count."""
    shared: PairList
    """Each tile with itself and those whose ground overlaps its own."""
    units: Names
    """(tiles,) name of the block, scene, observation or class that is resampled for intervals."""
    ground: Names
    """(tiles,) name of the block of ground, or of the image or its observation, that each tile belongs to: what probes are split by."""
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
    dates: tuple[DatePair, ...]
    """Of places: which queries ask which date; else none."""
    relevant_means: str
    """The rule in words."""
    excluded_means: str
    """What a query may not count, in words."""
    unit_means: str
    ground_means: str
    spots: Spots | None = None
    """Where the tiles lie; None: nowhere."""


def ask(
    tiles: pa.Table,
    settings: EvaluateSection,
    *,
    classes: Sequence[str] = (),
    divided_by: str,
    min_label_coverage: float = 0.0,
    place_tolerance: float = 0.25,
) -> Question:
    """Make the question of a split.

    Args:
        tiles: its rows of the tile table, sorted by tile id; of places those of all splits.
        settings: the experiment's evaluate section.
        classes: names of the set's classes, in the order of `label_fractions`.
        divided_by: `tiles.splits.by`: what `block_id` names, but for plain images, which have no blocks of ground.
        min_label_coverage: tiles of which the label map knows a smaller share have no proportions, as they have no label.
        place_tolerance: greatest distance between the centres of tiles of one place, in tile sizes.

    Raises:
        ConfigError: relevance or intervals by class, and no classes; intervals by block, and no blocks; places, and one date.
    """
    count = tiles.num_rows
    overlapping = overlapping_pairs(outlines(tiles))
    itself = np.repeat(np.arange(count)[:, None], 2, axis=1)
    shared = PairList(np.concatenate([itself, _both_ways(overlapping)]), count)
    neighbours = PairList(_both_ways(positive_pairs(positions(tiles), sizes(tiles), 0.0, settings.radius)), count)
    across_dates = settings.relevance == "place"  # then the tiles of training are there, too: nothing of them is measured but by place
    found, codes = ((), np.full(count, UNKNOWN)) if across_dates else _classes(tiles, classes)
    asked = _asked(tiles, settings, codes, neighbours, shared, place_tolerance)
    ground_means = _ground_means(tiles, divided_by)
    units, unit_means = _units(tiles, settings, ground_means)
    return Question(
        tile_ids=tiles["tile_id"].to_pylist(),
        queries=asked.queries,
        relevance=asked.relevance,
        excluded=asked.excluded,
        shared=shared,
        units=units,
        ground=_names(tiles, "block_id"),
        near=PairList(np.concatenate([shared.pairs, neighbours.pairs]), count),
        codes=codes,
        classes=found,
        proportions=None if across_dates else _proportions(tiles, classes, min_label_coverage),
        held_classes=tuple(classes),
        dates=asked.dates,
        relevant_means=asked.means,
        excluded_means=asked.without,
        unit_means=unit_means,
        ground_means=ground_means,
        spots=spots(tiles),
    )


def findable(question: Question) -> IntArray:
    """Return the queries that have a relevant tile: those that can be measured."""
    parts = list(blocks(len(question.queries), 4 * len(question.tile_ids)))
    found = [(question.relevance.rows(rows) & ~question.excluded.rows(rows)).any(axis=1) for rows in parts]
    return np.flatnonzero(np.concatenate(found)) if found else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The part of a question that depends on what counts as relevant."""

    queries: IntArray
    relevance: Pairs
    excluded: Pairs
    means: str
    without: str
    dates: tuple[DatePair, ...] = ()


def _asked(
    tiles: pa.Table, settings: EvaluateSection, codes: IntArray, neighbours: PairList, shared: PairList, place_tolerance: float
) -> _Asked:
    if settings.relevance == "place":
        return _of_places(tiles, settings.split, place_tolerance)
    relevance, means = _by_label(codes) if settings.relevance == "label" else (neighbours, _NEIGHBOURS.format(settings.radius))
    excluded, without = (shared, _OVERLAP) if settings.exclude == "overlap" else _beyond(tiles, settings.exclude, shared)
    return _Asked(queries=np.arange(tiles.num_rows), relevance=relevance, excluded=excluded, means=means, without=without)


def _beyond(tiles: pa.Table, part: str, shared: PairList) -> tuple[AnyOf, str]:
    """Leave out what shares ground with the query, and all else of its scene or observation."""
    names = tiles["scene_id"] if part == "scene" else _observations(tiles, "evaluate.exclude", "overlap")
    _, same = np.unique(names.to_numpy(), return_inverse=True)
    if not same.any():
        raise ConfigError(
            f"evaluate.exclude is {part}, and all tiles are of one; nothing would be left to find. Set evaluate.exclude: overlap"
        )
    return AnyOf((shared, SameLabel(same, same))), f"{_OVERLAP}, and all others of its {part}"


@dataclass(frozen=True, slots=True)
class _OtherDates:
    """All tiles but those of the date that a query asks."""

    asked: IntArray
    """(queries,) number of the date."""
    dates: IntArray
    """(tiles,) number of each tile's date."""

    def rows(self, queries: IntArray) -> BoolArray:
        other: BoolArray = self.asked[queries][:, None] != self.dates[None, :]
        return other


def _of_places(tiles: pa.Table, split: str, tolerance: float) -> _Asked:
    """Have each tile of the split ask each other date for its place."""
    if tiles["datetime"].null_count:
        undated = tiles.filter(tiles["datetime"].is_null())["scene_id"][0].as_py()
        raise ConfigError(
            f"evaluate.relevance is place, and the date of {undated} is not known; give the source a `datetime`, or a pattern with a group "
            "`date`, and sample again"
        )
    names, dates = np.unique(places.dates(tiles), return_inverse=True)
    if len(names) <= 1:
        raise ConfigError(
            "evaluate.relevance is place, and all tiles are of one date; add scenes of others, or set relevance: neighbourhood"
        )
    asking = np.flatnonzero(pc.equal(tiles["split"], split).to_numpy(zero_copy_only=False))
    queries, asked = (found.ravel() for found in np.meshgrid(asking, np.arange(len(names)), indexing="ij"))
    other = dates[queries] != asked
    queries, asked = queries[other], asked[other]
    return _Asked(
        queries=queries,
        relevance=_same_place(tiles, dates, queries, asked, tolerance),
        excluded=_OtherDates(asked, dates),
        dates=tuple(_pairs_of_dates(names, dates, queries, asked)),
        means=_SAME_PLACE.format(tolerance),
        without="tiles of all dates but the one that is asked",
    )


def _same_place(tiles: pa.Table, dates: IntArray, queries: IntArray, asked: IntArray, tolerance: float) -> PairList:
    """Return the pairs of query and tile of the date that it asks which show one place."""
    near = _both_ways(places.across_dates(positions(tiles), sizes(tiles), dates, tolerance))
    near = near[np.argsort(near[:, 0], kind="stable")]
    first, end = (np.searchsorted(near[:, 0], queries, side) for side in ("left", "right"))
    query = np.repeat(np.arange(len(queries)), end - first)
    at = np.arange(len(query)) + np.repeat(first - np.concatenate([[0], np.cumsum(end - first)[:-1]]), end - first)
    found = near[at, 1]
    of_date = dates[found] == asked[query]
    return PairList(np.stack([query, found], axis=1)[of_date], tiles.num_rows)


def _pairs_of_dates(names: Names, dates: IntArray, queries: IntArray, asked: IntArray) -> Iterator[DatePair]:
    for one, other in itertools.permutations(range(len(names)), 2):
        of_pair = np.flatnonzero((dates[queries] == one) & (asked == other))
        yield DatePair(
            asking=str(names[one]),
            asked=str(names[other]),
            gap_days=_days_between(str(names[one]), str(names[other])),
            queries=of_pair,
            gallery=int((dates == other).sum()),
        )


def _days_between(one: str, other: str) -> int:
    return (datetime.date.fromisoformat(other) - datetime.date.fromisoformat(one)).days


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


def _ground_means(tiles: pa.Table, divided_by: str) -> str:
    """Return in words what `block_id` names."""
    if divided_by in _DIVISIONS:
        return _DIVISIONS[divided_by]
    if divided_by == "block" and tiles["geometry"].null_count < tiles.num_rows:
        return "spatial blocks"
    return "scenes" if tiles["place"].null_count else "places"


def _units(tiles: pa.Table, settings: EvaluateSection, ground_means: str) -> tuple[Names, str]:
    if settings.unit == "block" and ground_means != "spatial blocks":
        raise ConfigError(
            f"evaluate.unit is block, and the tiles are divided by {ground_means}; set tiles.splits.by: block, or evaluate.unit: auto"
        )
    if settings.unit == "class":
        if tiles["label"].null_count == tiles.num_rows:
            raise ConfigError(f"evaluate.unit is class, and no tile has one; {_WITHOUT_CLASSES} evaluate.unit: auto")
        return _names(tiles, "label"), "classes"
    if settings.unit == "scene":
        return _names(tiles, "scene_id"), "scenes"
    if settings.unit == "observation":
        return _observations(tiles, "evaluate.unit", "auto").to_numpy(), "source observations"
    return _names(tiles, "block_id"), ground_means


def _observations(tiles: pa.Table, key: str, otherwise: str) -> pa.ChunkedArray:
    if tiles["observation"].null_count:
        raise ConfigError(
            f"{key} is observation, and not every tile has one; name them in the source of images (csv_observation_column, or a group "
            f"`observation` of pattern), or set {key}: {otherwise}"
        )
    return tiles["observation"]


def _by_label(codes: IntArray) -> tuple[Pairs, str]:
    if (codes == UNKNOWN).all():
        raise ConfigError(f"evaluate.relevance is label, and no tile has one; {_WITHOUT_CLASSES} relevance: neighbourhood")
    return SameLabel(codes, codes), "tiles of the query's class"
