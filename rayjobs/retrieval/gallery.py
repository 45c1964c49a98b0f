"""The tiles of all segments of one index version, told apart by one number: their row, counted through the segments in order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from rayjobs import geo
from rayjobs.errors import QueryError, UnknownTileError
from rayjobs.retrieval.filters import SearchFilter, passing

if TYPE_CHECKING:
    from rayjobs.retrieval.metadata import Metadata
    from rayjobs.retrieval.shards import Shards

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Bytes = np.ndarray[Any, np.dtype[np.bytes_]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Part(NamedTuple):
    """Those of some rows that lie in one segment."""

    number: int
    """Of the segment."""
    positions: IntArray
    """(m,) which of the rows these are."""
    rows: IntArray
    """(m,) rows within the segment."""


class Numbering:
    """How rows over all segments become rows of each, and back."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Take the number of rows of each segment."""
        self.sizes = tuple(sizes)
        self._starts = np.cumsum([0, *sizes])

    def parts(self, rows: IntArray) -> Iterator[Part]:
        """Divide rows over all segments into those of each that has some."""
        if len(self.sizes) == 1:
            yield from [Part(0, np.arange(len(rows)), rows)] if len(rows) else []
            return
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            positions = np.flatnonzero(numbers == number)
            yield Part(number, positions, rows[positions] - self._starts[number])

    def joined(self, rows: Sequence[IntArray]) -> IntArray:
        """Return rows of each segment as rows over all, one segment after the other."""
        return np.concatenate([self.over_all(number, of_segment) for number, of_segment in enumerate(rows)])

    def over_all(self, number: int, rows: IntArray) -> IntArray:
        """Return rows of one segment as rows over all."""
        return np.asarray(rows + self._starts[number], np.int64)


class Selection:
    """The rows that may be found."""

    def __init__(self, masks: Sequence[BoolArray | None], numbering: Numbering) -> None:
        """Take a mask (rows,) of each segment; None for all its rows."""
        self.masks = tuple(masks)
        self.numbering = numbering
        self.counts = [size if mask is None else int(mask.sum()) for mask, size in zip(masks, numbering.sizes, strict=True)]
        """Rows of each segment that may be found."""
        self.total = sum(self.counts)

    def holds(self, rows: IntArray) -> BoolArray:
        """Tell which of some rows over all segments may be found."""
        found = np.ones(len(rows), bool)
        for part in self.numbering.parts(rows):
            mask = self.masks[part.number]
            found[part.positions] = True if mask is None else mask[part.rows]
        return found

    @property
    def rows(self) -> IntArray:
        """(total,) the rows over all segments, ascending."""
        masks = zip(self.masks, self.numbering.sizes, strict=True)
        return self.numbering.joined([np.arange(size) if mask is None else np.flatnonzero(mask) for mask, size in masks])

    def within(self, masks: Sequence[BoolArray]) -> Selection:
        """Return what passes further masks, one of each segment."""
        both = zip(self.masks, masks, strict=True)
        return Selection([mask if own is None else own & mask for own, mask in both], self.numbering)

    def without(self, rows: IntArray) -> Selection:
        """Return what remains without some rows over all segments."""
        masks = list(self.masks)
        for part in self.numbering.parts(rows):
            mask = masks[part.number]
            remaining = np.ones(self.numbering.sizes[part.number], bool) if mask is None else mask.copy()
            remaining[part.rows] = False
            masks[part.number] = remaining
        return Selection(masks, self.numbering)


class Gallery:
    """The tiles that can be found, deleted ones not among them. Immutable: safe to read from several threads."""

    def __init__(self, shards: Shards, tables: Sequence[Metadata], *, tombstones: Collection[str] = ()) -> None:
        """Take the segments of one index version, at least one.

        Args:
            shards: where their vectors are.
            tables: the metadata of each.
            tombstones: ids of tiles that were deleted.
        """
        self.shards = shards
        """Where the vectors are."""
        self.tables = tuple(tables)
        """The metadata of each segment."""
        self._numbering = Numbering([table.rows for table in self.tables])
        everything = Selection([None] * len(self.tables), self._numbering)
        self.all = everything.without(self.rows_of(tombstones))
        """All tiles that can be found."""

    @property
    def rows(self) -> int:
        """Tiles that can be found."""
        return self.all.total

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.shards.dimension

    def rows_of(self, ids: Collection[str]) -> IntArray:
        """Return the rows of those ids that a segment holds, deleted or not."""
        if not ids:
            return np.empty(0, np.int64)
        return self._numbering.joined([table.rows_of(sorted(set(ids))) for table in self.tables])

    def row_of(self, tile_id: str) -> int:
        """Return a tile's row.

        Raises:
            UnknownTileError: the index does not hold it.
        """
        rows = self.rows_of([tile_id])
        rows = rows[self.all.holds(rows)]
        if not len(rows):
            raise UnknownTileError(f"the index holds no tile {tile_id!r}")
        return int(rows[-1])

    def select(self, only: SearchFilter, *, placed: bool = False) -> Selection:
        """Return the tiles that pass a filter, and have a place if `placed`.

        Raises:
            QueryError: a filter that cannot be asked; see `filters.passing`.
        """
        return self.all if only.is_empty and not placed else self.all.within(passing(self.tables, only, placed=placed))

    def sample(self, count: int, *, seed: int = 0) -> IntArray:
        """Return tiles drawn at random, (n,) rows ascending: `count`, or all where there are fewer."""
        rows = self.all.rows
        return np.sort(np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False))

    def ids_of(self, rows: IntArray) -> Bytes:
        """Return the ids of some rows, (n,) bytes."""
        width = max(table.ids.dtype.itemsize for table in self.tables)
        found = np.empty(len(rows), f"S{width}")
        for part in self._numbering.parts(rows):
            found[part.positions] = self.tables[part.number].ids[part.rows]
        return found

    def middles(self, rows: IntArray) -> FloatArray:
        """Return longitude and latitude of the middles of some tiles' boxes, (n, 2) degrees; NaN without a place."""
        found = np.empty((len(rows), 2))
        for part in self._numbering.parts(rows):
            found[part.positions] = self.tables[part.number].places.middles(part.rows)
        return found

    def boxes_of(self, rows: IntArray) -> FloatArray:
        """Return the boxes of some tiles, (n, 4) degrees, west > east over the antimeridian; NaN without a place."""
        found = np.empty((len(rows), 4))
        for part in self._numbering.parts(rows):
            found[part.positions] = self.tables[part.number].places.boxes_of(part.rows)
        return found

    def vectors_of(self, rows: IntArray) -> Vectors:
        """Return the embeddings of some rows, (n, dim) float32."""
        found = np.empty((len(rows), self.dimension), np.float32)
        parts = list(self._numbering.parts(rows))
        for part, vectors in zip(parts, self.shards.vectors_of([(part.number, part.rows) for part in parts]), strict=True):
            found[part.positions] = vectors
        return found

    def vector_of(self, tile_id: str) -> Vectors:
        """Return the (dim,) embedding of a tile. Raises `UnknownTileError`."""
        vector: Vectors = self.vectors_of(np.array([self.row_of(tile_id)]))[0]
        return vector

    def moments(self, rows: IntArray) -> IntArray:
        """Return the datetimes of some rows, (n,) microseconds since 1970; see `Metadata.moments`."""
        found = np.empty(len(rows), np.int64)
        for part in self._numbering.parts(rows):
            found[part.positions] = self.tables[part.number].moments[part.rows]
        return found

    def take(self, rows: IntArray, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what is known of some rows, (n,) in their order: columns of the metadata, default all."""
        rows = np.asarray(rows, np.int64)
        parts = list(self._numbering.parts(rows)) or [Part(0, rows, rows)]
        batches = [self.tables[part.number].take(part.rows, columns=columns) for part in parts]
        if len(batches) == 1:
            return pa.Table.from_batches(batches)
        joined = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="permissive")
        return joined.take(pa.array(np.argsort(np.concatenate([part.positions for part in parts]), kind="stable")))

    def describe(self, rows: Sequence[int] | IntArray) -> list[dict[str, Any]]:
        """Return what is known of some rows, one dict each; see `take`."""
        described: list[dict[str, Any]] = self.take(np.asarray(rows, np.int64)).to_pylist()
        return described

    def near(self, middles: FloatArray, distance_m: float) -> IntArray:
        """Return the rows whose middles lie nearer than a distance to one of some places, (n, 2) degrees; some maybe twice."""
        found = [[table.places.within(middle, distance_m) for middle in middles] for table in self.tables]
        return self._numbering.joined([np.concatenate(of_segment) for of_segment in found])

    def tile_at(self, lon: float, lat: float, *, only: SearchFilter | None = None) -> str:
        """Return the id of the tile that holds a place; of several, the one whose middle is nearest.

        Args:
            lon: degrees.
            lat: degrees.
            only: which tiles may be found, say those of a date.

        Raises:
            UnknownTileError: no tile does; says how far the nearest is.
            QueryError: no such place, or a filter that cannot be asked.
        """
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):  # noqa: PLR2004  degrees
            raise QueryError(f"there is no place at lon {lon}, lat {lat}; they are degrees from -180 to 180 and from -90 to 90")
        rows = self._numbering.joined([table.places.holding(lon, lat) for table in self.tables])
        known = rows[self.all.holds(rows)]
        rows = rows[self.select(only or SearchFilter()).holds(rows)]
        if len(known) and not len(rows):
            raise UnknownTileError(f"none of the {len(known)} tiles that hold {lon}, {lat} is of the time that is asked for")
        if not len(rows):
            raise UnknownTileError(f"no tile of the index holds {lon}, {lat}{self._how_far(lon, lat)}")
        nearest = int(np.argmin(geo.great_circle_m(self.middles(rows), np.array([lon, lat]))))
        return str(self.ids_of(rows)[nearest].decode())

    def _how_far(self, lon: float, lat: float) -> str:
        rows = self._numbering.joined([table.places.near(lon, lat) for table in self.tables])
        rows = rows[self.all.holds(rows)]
        if not len(rows):
            return "; its images have no place on the ground: search by tile_id or image"
        nearest = geo.great_circle_m(self.middles(rows), np.array([lon, lat])).min()
        return f"; the middle of the nearest lies {nearest / 1000:,.1f} km away"
