"""What is known of the rows of a segment: a Parquet file turned once on each machine into columns that are mapped into memory.

No row costs memory of the process: ids are sorted and found by bisection, boxes and moments are columns of numbers in a file that all
processes of a machine map, and a geometry is parsed only when it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from rayjobs import geo
from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval.mapped import mapped
from rayjobs.retrieval.places import Places, packed_order, unrolled

IntArray = np.ndarray[Any, np.dtype[np.int64]]
GeometryArray = np.ndarray[Any, np.dtype[np.object_]]
Bytes = np.ndarray[Any, np.dtype[np.bytes_]]

NEEDED = ("tile_id", "geometry", "datetime")
"""Columns that search reads; the others are only filtered by and shown."""

NO_MOMENT = np.iinfo(np.int64).min
"""What stands for no datetime among `Metadata.moments`."""

_FORMAT = 1
"""Raised when the same Parquet file would give another mapped file."""
_OWN = "_"
"""How the names of columns begin that are ours, and never shown."""
_BOX = ("_west", "_south", "_east", "_north")
_UTC = pa.timestamp("us", tz="UTC")
_MOST_WORDS = 2**16
"""Columns of text with no more distinct values are stored as numbers of a dictionary."""
_GEOMETRIES_AT_ONCE = 2**16


class Metadata:
    """The rows of one segment, sorted by `tile_id`. Immutable: safe to read from several threads."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Take rows as `prepared` makes them; `open` and `of` are the ways to one."""
        self._batch = batch
        self.rows: int = batch.num_rows
        """How many there are."""
        self.ids = _bytes_of(self._batch["_id"])
        """(rows,) ids as bytes, ascending, shorter ones padded with zeros."""
        self.moments: IntArray = self._numbers("_moment")
        """(rows,) microseconds since 1970, UTC; `NO_MOMENT` where there is none."""
        self.dated = bool((self.moments != NO_MOMENT).any())
        """Whether any tile has a datetime."""
        self.places = Places(boxes=[self._numbers(name) for name in _BOX], order=self._numbers("_order"), geometries=self.geometries)
        """Where the tiles lie."""

    @classmethod
    def open(cls, path: Path, cache: Path, *, sha256: str) -> Metadata:
        """Map the metadata of a Parquet file; the first process of a machine makes the file to be mapped.

        Args:
            path: the Parquet file.
            cache: folder for what is made of it.
            sha256: the Parquet file's digest, which was checked; what is made of it is named after that.

        Raises:
            IndexCorruptError: it is no table with the columns of `NEEDED`, or its rows are not sorted by distinct ids.
            StorageError: what is made of it cannot be written, or belongs to another user.
        """
        found = cls(mapped(cache / "metadata" / f"{sha256}-{_FORMAT}.arrow", lambda: _read(path)))
        pa.default_memory_pool().release_unused()
        return found

    @classmethod
    def of(cls, table: pa.Table) -> Metadata:
        """Return a table's metadata, kept in memory. Raises `IndexCorruptError` as `open` does."""
        return cls(prepared(table))

    def _numbers(self, name: str) -> Any:
        return self._batch[name].to_numpy(zero_copy_only=True)

    @functools.cached_property
    def columns(self) -> pa.Schema:
        """The columns as the Parquet file has them, `embedding` and boxes apart; text of few values as dictionaries."""
        return pa.schema([field for field in self._batch.schema if not field.name.startswith(_OWN)])

    def column(self, name: str) -> pa.Array:
        """Return one column, (rows,)."""
        return self._batch[name]

    def row_of(self, tile_id: str) -> int | None:
        """Return the row of an id; None where there is none."""
        found = self.rows_of([tile_id])
        return int(found[0]) if len(found) else None

    def rows_of(self, ids: Sequence[str]) -> IntArray:
        """Return the rows of those ids that are here, in the order of the ids."""
        wanted = np.array([tile_id.encode() for tile_id in ids], np.bytes_)
        rows = np.searchsorted(self.ids, wanted)
        there = rows < self.rows
        there[there] = self.ids[rows[there]] == wanted[there]
        return rows[there]

    def geometries(self, rows: IntArray) -> GeometryArray:
        """Return (n,) shapely geometries of some rows; None where a tile has no place."""
        found: GeometryArray = shapely.from_wkb(self.column("geometry").take(pa.array(rows)).to_numpy(zero_copy_only=False))
        return found

    def take(self, rows: IntArray, *, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """Return what is known of some rows, (n,) in their order: some of `columns`, default all; text as text."""
        names = list(columns or self.columns.names)
        taken = self._batch.select(names).take(pa.array(rows))
        return pa.record_batch([_spelled_out(column) for column in taken.columns], names)


def common_columns(segments: Sequence[Metadata]) -> list[str]:
    """Return the names of the columns that all of some segments have, in the order of the first: what `take` gives of each of them."""
    everywhere = set.intersection(*(set(metadata.columns.names) for metadata in segments))
    return [name for name in segments[0].columns.names if name in everywhere]


def _spelled_out(column: pa.Array) -> pa.Array:
    """Return text in place of a dictionary, which differs between segments."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _read(path: Path) -> pa.RecordBatch:
    try:
        return prepared(pq.read_table(path))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise IndexCorruptError(f"{path.name} cannot be read as metadata ({error}); publish the index again") from error


def prepared(table: pa.Table) -> pa.RecordBatch:
    """Return a metadata table with what search reads as columns of numbers: ids, boxes, moments, and rows packed by place.

    Raises:
        IndexCorruptError: a column of `NEEDED` is absent, there is no row, rows are not sorted by distinct ids, or they are more than one
            batch can hold, of which taking rows costs less than of a table.
    """
    absent = [name for name in NEEDED if name not in table.column_names]
    if absent or not table.num_rows:
        raise IndexCorruptError(f"the metadata has {table.num_rows} rows and lacks the columns {absent}; publish the index again")
    ids = _padded(table["tile_id"])
    distinct = _bytes_of(ids)
    if not np.all(distinct[:-1] < distinct[1:]):
        raise IndexCorruptError("the metadata is not sorted by distinct tile ids; publish the index again")
    boxes = unrolled(_boxes(table))
    moments = table["datetime"].cast(_UTC).cast(pa.int64()).fill_null(NO_MOMENT)
    shown = [(name, _stored(table[name])) for name in table.column_names if name not in {"bbox", "embedding"}]
    own = {"_id": ids, "_moment": moments, **dict(zip(_BOX, map(pa.array, boxes.T), strict=True)), "_order": packed_order(boxes)}
    return _only_batch(pa.table(dict(shown) | own).combine_chunks())


def _only_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.to_batches()
    if len(batches) != 1:  # a column of text of more than 2 GiB stays in pieces
        raise IndexCorruptError(
            f"the metadata of {table.num_rows:,} rows is more than one batch holds; choose a lower index.rows_per_segment, and build anew"
        )
    return batches[0]


def _padded(ids: pa.ChunkedArray) -> pa.Array:
    """Return ids as binary of one length, so that their bytes can be compared where they lie."""
    width = pc.max(pc.binary_length(ids)).as_py() or 1
    return pc.utf8_rpad(ids.cast(pa.string()), width, padding="\0").combine_chunks().cast(pa.binary()).cast(pa.binary(width))


def _bytes_of(ids: pa.Array) -> Bytes:
    width = ids.type.byte_width
    return np.frombuffer(ids.buffers()[1], f"S{width}", count=len(ids), offset=ids.offset * width)


def _boxes(table: pa.Table) -> geo.FloatArray:
    """Return (rows, 4) boxes, from the GeoParquet covering where there is one, else from the geometries; NaN where there is none."""
    if "bbox" in table.column_names:
        covering = table["bbox"].combine_chunks()
        sides = [covering.field(side).to_numpy(zero_copy_only=False) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes = np.stack(sides, axis=1).astype(np.float64)
        boxes[~covering.is_valid().to_numpy(zero_copy_only=False)] = np.nan
        return boxes
    parts = [table["geometry"].slice(start, _GEOMETRIES_AT_ONCE) for start in range(0, table.num_rows, _GEOMETRIES_AT_ONCE)]
    return np.concatenate([geo.bboxes(shapely.from_wkb(part.to_numpy(zero_copy_only=False))) for part in parts])


def _stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as it is stored: text of few values as a dictionary, geometries with offsets that cannot overflow."""
    if pa.types.is_binary(column.type):
        return column.cast(pa.large_binary())
    if pa.types.is_string(column.type) and pc.count_distinct(column).as_py() <= min(_MOST_WORDS, len(column) // 2):
        return pa.chunked_array([column.combine_chunks().dictionary_encode()])
    return column
