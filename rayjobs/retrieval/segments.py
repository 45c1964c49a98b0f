"""Segments: a FAISS file and the Parquet file that its ids are rows of. Digests are checked before FAISS reads anything."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from rayjobs import geo
from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval.manifest import SegmentEntry

if TYPE_CHECKING:
    from pathlib import Path

    from rayjobs.storage import FileDigest, Version

NEEDED = ("tile_id", "geometry", "datetime")
"""Columns of the metadata that search reads; the others are only shown."""

_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A loaded segment."""

    index: Any
    """The FAISS index, mapped into memory; inner product of unit vectors."""
    table: pa.Table
    """One row per vector: `tile_id`, `geometry` (WKB or null), `datetime`, `scene_id`, `label`, the window, ..."""


def build_segment(name: str, vectors: np.ndarray[Any, np.dtype[np.float32]], table: pa.Table) -> tuple[SegmentEntry, dict[str, bytes]]:
    """Return a segment's entry in the manifest and its files by name.

    Args:
        name: `segment-00000`.
        vectors: (rows, dim) float32 of length 1.
        table: what is known of each row.

    Raises:
        ValueError: vectors that are not finite or not of length 1, or a table of another length.
    """
    if len(vectors) != table.num_rows or not len(vectors):
        raise ValueError(f"{name}: {len(vectors)} vectors and {table.num_rows} rows; a segment has one row per vector, and at least one")
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.all(np.abs(lengths - 1) < _UNIT_TOLERANCE):
        raise ValueError(f"{name}: vectors must have length 1; found {lengths.min():.4f} to {lengths.max():.4f}")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    entry = SegmentEntry(name=name, rows=len(vectors), bounds=_bounds(table), dates=_dates(table))
    return entry, {f"{name}.faiss": faiss.serialize_index(index).tobytes(), f"{name}.parquet": buffer.getvalue()}


def _bounds(table: pa.Table) -> tuple[float, float, float, float] | None:
    known = [geometry for geometry in table["geometry"].to_pylist() if geometry is not None]
    if not known:
        return None
    west, south, east, north = geo.bbox_of(shapely.GeometryCollection(list(shapely.get_parts(shapely.from_wkb(known)))))
    return float(west), float(south), float(east), float(north)


def _dates(table: pa.Table) -> tuple[str, str] | None:
    ends = pc.min_max(table["datetime"]).as_py()
    return None if ends["min"] is None else (ends["min"].isoformat(), ends["max"].isoformat())


def load_segment(version: Version, entry: SegmentEntry, dimension: int, cache: Path) -> Segment:
    """Fetch a segment to this machine and open it.

    Args:
        version: the index version.
        entry: which of its segments.
        dimension: that the manifest promises.
        cache: folder for copies of files that lie in a bucket.

    Raises:
        IndexCorruptError: a file differs from its digest, or is not what the manifest says.
    """
    index_path = _verified_path(version, f"{entry.name}.faiss", cache)
    table_path = _verified_path(version, f"{entry.name}.parquet", cache)
    try:
        index = faiss.read_index(str(index_path), faiss.IO_FLAG_MMAP_IFC)
        table = pq.read_table(table_path)
    except (RuntimeError, MemoryError, pa.ArrowException, OSError) as error:
        raise IndexCorruptError(f"{entry.name} cannot be opened ({error}); publish the index again") from error
    absent = [column for column in NEEDED if column not in table.column_names]
    if not isinstance(index, faiss.IndexFlatIP) or absent:
        raise IndexCorruptError(
            f"{entry.name} is a {type(index).__name__} and lacks columns {absent}, not as we write it; publish the index again"
        )
    if not (index.d == dimension and index.ntotal == entry.rows == table.num_rows):
        raise IndexCorruptError(
            f"{entry.name} holds {index.ntotal} vectors of {index.d} numbers and {table.num_rows} rows of metadata, "
            f"not the {entry.rows} of {dimension} of its manifest; publish the index again"
        )
    return Segment(index=index, table=table)


def _verified_path(version: Version, name: str, cache: Path) -> Path:
    digest = _digest(version, name)
    path = version.store.fetch(digest.key(version.prefix), cache)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest.sha256:
        raise IndexCorruptError(f"{version.store.address(digest.key(version.prefix))} differs from its manifest; publish the index again")
    return path


def _digest(version: Version, name: str) -> FileDigest:
    for entry in version.files:
        if entry.name == name:
            return entry
    raise IndexCorruptError(f"{version.store.address(version.prefix)} lists no file {name}; publish the index again")
