"""Search over the segments of one index version: filter, then exact search of what is left, merged by score."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from rayjobs import geo
from rayjobs.errors import QueryError, UnknownTileError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rayjobs.retrieval.segments import Segment

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

Degrees = np.ndarray[Any, np.dtype[np.float64]]

_ROUND = 360.0
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_UTC = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFilter:
    """Which tiles may be answered. Empty, it lets all pass."""

    bbox: geo.BBox | None = None
    """Tiles whose footprint's box meets this one; tiles without a place never do."""
    interval: tuple[datetime.datetime | None, datetime.datetime | None] | None = None
    """First and last datetime, both included; None leaves an end open. Tiles without a datetime never pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """An answer, best first."""

    rows: IntArray
    """(hits,) row over all segments, in their order; see `Searcher.describe`."""
    scores: Vectors
    """(hits,) float32 cosine similarity."""
    exact: bool
    """Whether these are provably the nearest of all candidates."""
    candidates: int
    """Tiles that the filter left, the excluded ones not counted."""


class Searcher:
    """One index version in memory. Immutable: safe to search from several threads."""

    def __init__(self, segments: Sequence[Segment], *, tombstones: Collection[str] = ()) -> None:
        """Take loaded segments of one index version."""
        self._segments = tuple(segments)
        self._table = pa.concat_tables([segment.table for segment in segments]).combine_chunks()
        self._starts = np.cumsum([0, *(segment.table.num_rows for segment in segments)])
        self._row_of = {tile_id: row for row, tile_id in enumerate(self._table["tile_id"].to_pylist())}
        self._alive = np.ones(self._table.num_rows, bool)
        self._alive[[self._row_of[tile_id] for tile_id in tombstones if tile_id in self._row_of]] = False
        self._geometries = shapely.from_wkb(np.array(self._table["geometry"].to_pylist(), dtype=object))
        self._boxes = geo.bboxes(self._geometries)
        self._tree = shapely.STRtree(self._geometries)

    @property
    def rows(self) -> int:
        """Tiles that can be found."""
        return int(self._alive.sum())

    def search(self, vector: Vectors, limit: int, *, only: SearchFilter | None = None, without: Collection[str] = ()) -> Hits:
        """Return the `limit` nearest tiles that pass the filter, or all of them where fewer do.

        Args:
            vector: (dim,) float32 of length 1.
            limit: most hits.
            only: the filter.
            without: ids of tiles to leave out: the query's own.

        Raises:
            QueryError: `limit` below 1, a vector of another dimension or that is not finite, or a filter by what no tile has: a place, a
                datetime.
        """
        vector = self._checked(vector)
        if limit < 1:
            raise QueryError(f"limit {limit} must be at least 1")
        passing = self._passing(only or SearchFilter())
        passing[[self._row_of[tile_id] for tile_id in without if tile_id in self._row_of]] = False
        found = [self._search_segment(number, vector, limit, passing) for number in range(len(self._segments))]
        rows, scores = np.concatenate([rows for rows, _ in found]), np.concatenate([scores for _, scores in found])
        best = np.lexsort((rows, -scores))[:limit]
        return Hits(rows=rows[best], scores=scores[best], exact=True, candidates=int(passing.sum()))

    def _checked(self, vector: Vectors) -> Vectors:
        dimension = self._segments[0].index.d
        if vector.shape != (dimension,):
            raise QueryError(f"the query has {vector.size} numbers, the index {dimension}")
        if not np.isfinite(vector).all():
            raise QueryError("the query holds numbers that are not finite")
        return np.ascontiguousarray(vector, np.float32)

    def _search_segment(self, number: int, vector: Vectors, limit: int, passing: BoolArray) -> tuple[IntArray, Vectors]:
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        chosen = passing[start:stop]
        count = min(limit, int(chosen.sum()))
        if count == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))  # type: ignore[call-arg,arg-type]  # faiss wraps it
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, rows = self._segments[number].index.search(vector[None], count, params=parameters)
        return rows[0] + start, scores[0]

    def _passing(self, only: SearchFilter) -> BoolArray:
        passing = self._alive.copy()
        if only.bbox is not None:
            if shapely.is_missing(self._geometries).all():
                raise QueryError("no tile of the index has a place on the ground, so that bbox can find none; leave bbox out")
            passing &= _boxes_meet(self._boxes, only.bbox)
        if only.interval is not None:
            first, last = only.interval
            when = self._table["datetime"].cast(_UTC)
            if when.null_count == len(when):
                raise QueryError("no tile of the index has a datetime, so that datetime can find none; leave datetime out")
            conditions = [pc.greater_equal(when, pa.scalar(first, _UTC))] if first else []
            conditions += [pc.less_equal(when, pa.scalar(last, _UTC))] if last else []
            for condition in conditions or [pc.is_valid(when)]:
                passing &= condition.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003  pyarrow's own signature
        return passing

    def vector_of(self, tile_id: str) -> Vectors:
        """Return the (dim,) embedding of a tile. Raises `UnknownTileError`."""
        row = self.row_of(tile_id)
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        vector: Vectors = self._segments[number].index.reconstruct(row - int(self._starts[number]))
        return vector

    def row_of(self, tile_id: str) -> int:
        """Return a tile's row over all segments.

        Raises:
            UnknownTileError: the index does not hold it.
        """
        row = self._row_of.get(tile_id)
        if row is None or not self._alive[row]:
            raise UnknownTileError(f"the index holds no tile {tile_id!r}")
        return row

    def tile_at(self, lon: float, lat: float) -> str:
        """Return the id of the tile that holds a place; of several, the one whose middle is nearest.

        Raises:
            UnknownTileError: no tile does; says how far the nearest is.
            QueryError: no such place.
        """
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):  # noqa: PLR2004  degrees
            raise QueryError(f"there is no place at lon {lon}, lat {lat}; they are degrees from -180 to 180 and from -90 to 90")
        point = shapely.Point(lon, lat)
        rows = self._tree.query(point, predicate="intersects")
        rows = rows[self._alive[rows]]
        if not len(rows):
            raise UnknownTileError(f"no tile of the index holds {lon}, {lat}{self._how_far(lon, lat)}")
        distances = self._distances(rows, lon, lat)
        return str(self._table["tile_id"][int(rows[int(np.argmin(distances))])].as_py())

    def _how_far(self, lon: float, lat: float) -> str:
        rows = np.flatnonzero(self._alive & ~shapely.is_missing(self._geometries))
        if not len(rows):
            return "; its images have no place on the ground: search by tile_id or image"
        nearest = self._distances(rows, lon, lat).min()
        return f"; the middle of the nearest lies {nearest / 1000:,.1f} km away"

    def _distances(self, rows: IntArray, lon: float, lat: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        west, south, east, north = self._boxes[rows].T
        found = np.column_stack([geo.wrapped(west + _span(west, east) / 2), (south + north) / 2])
        return geo.great_circle_m(found, np.broadcast_to([lon, lat], found.shape))

    def describe(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return what is known of some rows: the metadata table's columns."""
        described: list[dict[str, Any]] = self._table.take(pa.array(rows, pa.int64())).to_pylist()
        return described


def _boxes_meet(boxes: np.ndarray[Any, np.dtype[np.float64]], bbox: geo.BBox) -> BoolArray:
    """Whether each box (west, south, east, north; west > east over the antimeridian; NaN for none) meets another."""
    west, south, east, north = boxes.T
    width, other = _span(west, east), _span(np.array(bbox.west), np.array(bbox.east))
    begins_inside = np.mod(west - bbox.west, 360.0) <= other
    reaches_in = np.mod(bbox.west - west, 360.0) <= width
    met: BoolArray = (begins_inside | reaches_in) & (south <= bbox.north) & (north >= bbox.south)
    return met


def _span(west: Degrees, east: Degrees) -> Degrees:
    """Return how far boxes reach eastward; west > east over the antimeridian, all the way round for a box about a pole."""
    return np.where(east - west >= _ROUND, _ROUND, np.mod(east - west, _ROUND))


def parse_interval(text: str) -> tuple[datetime.datetime | None, datetime.datetime | None]:
    """Read an instant or an interval in the words of STAC: `T`, `FROM/TO`, `../TO`, `FROM/..`; a date alone is the whole day.

    Raises:
        QueryError: it is none of these, or ends before it begins.
    """
    first, slash, last = text.partition("/")
    begin, end = _instant(first, text, end=False), _instant(last if slash else first, text, end=True)
    if begin and end and end < begin:
        raise QueryError(f"the interval {text!r} ends before it begins")
    return begin, end


def _instant(part: str, text: str, *, end: bool) -> datetime.datetime | None:
    if part in {"", ".."}:
        return None
    try:
        if _DAY.fullmatch(part):
            day = datetime.date.fromisoformat(part)
            return datetime.datetime.combine(day, datetime.time.max if end else datetime.time.min, datetime.UTC)
        found = datetime.datetime.fromisoformat(part)
        return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        raise QueryError(f"datetime {text!r} is not FROM/TO of RFC 3339 dates, such as 2020-01-01/2020-12-31") from None
