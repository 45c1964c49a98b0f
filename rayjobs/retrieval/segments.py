"""Segments: vectors, the compressed index of them, and the Parquet file that their ids are rows of.

Digests are checked before FAISS reads anything, and what it has read is checked before anything is searched. All is mapped into memory: the
processes of a machine share one copy, which the system may drop and read again.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from rayjobs import geo
from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval.kinds import KINDS, STORES, Effort, Exact, Found, Kind, ranked, selector_of
from rayjobs.retrieval.manifest import IndexManifest, SegmentEntry
from rayjobs.retrieval.metadata import Metadata

if TYPE_CHECKING:
    from pathlib import Path

    from rayjobs.storage import FileDigest, Version

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

_UNIT_TOLERANCE = 1e-3
_CORNERS = {"xmin": 0, "ymin": 1, "xmax": 2, "ymax": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The loaded vectors of a segment. Immutable: safe to search from several threads."""

    kind: str
    """Key of `KINDS`."""
    dimension: int
    """Numbers in a vector."""
    index: Any
    """The vectors themselves, mapped: the FAISS index of the kind `store`."""
    compressed: Any
    """What `approximate` searches; refers to `index`. None for exact kinds."""
    base: Any
    """The compressed FAISS index alone, mapped; kept, since `compressed` only refers to it."""

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return int(self.index.ntotal)

    @property
    def store(self) -> Exact:
        """What keeps the vectors themselves."""
        return STORES[KINDS[self.kind].store]

    def exact(self, queries: Vectors, count: int, chosen: BoolArray | None = None) -> Found:
        """Compare each query with every vector, or with every chosen one.

        The score of a pair is the same number whatever else is asked in the same call, and equal vectors have equal scores.

        Args:
            queries: (q, dim) float32 of length 1.
            count: hits per query, 1 or more.
            chosen: (rows,) which rows may be found; None for all.

        Returns:
            scores and rows, as `Found` says.
        """
        wanted = min(count, self.rows if chosen is None else int(np.count_nonzero(chosen)))
        if not wanted or not len(queries):
            return _padded(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), count)
        return _padded(*self.store.nearest(self.index, queries, wanted, chosen), count)

    def approximate(self, queries: Vectors, count: int, chosen: BoolArray | None, effort: Effort) -> Found:
        """Search the compressed index, and rank what it finds by the exact vectors; exact for exact kinds.

        Fewer than `count` hits may come back although more were chosen: ask `exact` then.

        Args:
            queries: (q, dim) float32 of length 1.
            count: hits per query, 1 or more.
            chosen: (rows,) which rows may be found; None for all.
            effort: how hard to try.

        Returns:
            scores and rows, as `Found` says.
        """
        if self.compressed is None:
            return self.exact(queries, count, chosen)
        selector = None if chosen is None else selector_of(chosen)
        scores, rows = self.compressed.search(queries, min(count, self.rows), params=KINDS[self.kind].parameters(effort, selector))
        return _padded(*ranked(np.where(rows < 0, np.float32(-np.inf), scores), rows), count)

    def vector_of(self, row: int) -> Vectors:
        """Return the (dim,) float32 vector of a row."""
        vector: Vectors = self.vectors_of(np.array([row]))[0]
        return vector

    def vectors_of(self, rows: Rows) -> Vectors:
        """Return the (n, dim) float32 vectors of rows."""
        return self.store.vectors_of(self.index, rows, self.dimension)


def _padded(scores: Vectors, rows: Rows, count: int) -> Found:
    """Fill hits up to `count` columns."""
    if rows.shape[1] == count:
        return scores, rows
    width = ((0, 0), (0, count - rows.shape[1]))
    return np.pad(scores, width, constant_values=-np.inf), np.pad(rows, width, constant_values=-1)


def build_segment(
    name: str, vectors: Vectors, table: pa.Table, *, kind: str = "flat", quantiser: bytes | None = None
) -> tuple[SegmentEntry, dict[str, bytes]]:
    """Return a segment's entry in the manifest and its files by name.

    Args:
        name: `segment-00000`.
        vectors: (rows, dim) float32 of length 1.
        table: what is known of each row, sorted by `tile_id`. A column `bbox` is made anew from `geometry`.
        kind: key of `KINDS`.
        quantiser: the file `quantiser.faiss`, for kinds that train.

    Raises:
        ValueError: vectors that are not finite, not of length 1, or no codes where the kind keeps such; a table of another length or not
            sorted by distinct ids; or a trained kind without its quantiser.
        IndexCorruptError: the quantiser is not one of that kind and dimension.
    """
    _check_rows(name, vectors, table)
    if (quantiser is not None) != KINDS[kind].trains:
        raise ValueError(f"{name}: kind {kind} {'needs its' if KINDS[kind].trains else 'has no'} quantiser")
    geometries: geo.GeometryArray = shapely.from_wkb(table["geometry"].to_numpy())
    files = {
        f"{name}.vectors": _compressed(vectors, STORES[KINDS[kind].store], None),
        f"{name}.parquet": _parquet(table, geometries),
    }
    if not KINDS[kind].exact:
        files[f"{name}.faiss"] = _compressed(vectors, KINDS[kind], quantiser)
    return SegmentEntry(name=name, rows=len(vectors), bounds=_bounds(geometries), dates=_dates(table)), files


def _check_rows(name: str, vectors: Vectors, table: pa.Table) -> None:
    if len(vectors) != table.num_rows or not len(vectors):
        raise ValueError(f"{name}: {len(vectors)} vectors and {table.num_rows} rows; a segment has one row per vector, and at least one")
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.all(np.abs(lengths - 1) < _UNIT_TOLERANCE):
        raise ValueError(f"{name}: vectors must have length 1; found {lengths.min():.4f} to {lengths.max():.4f}")
    ids = table["tile_id"].combine_chunks()
    if not pc.all(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py() and len(ids) > 1:
        raise ValueError(f"{name}: rows must be sorted by tile_id, and no id twice")


def _compressed(vectors: Vectors, kind: Kind, quantiser: bytes | None) -> bytes:
    empty = kind.trained(vectors[:1]) if quantiser is None else kind.read_quantiser(quantiser, vectors.shape[1])
    return kind.dumped(kind.filled(empty, vectors))


def _parquet(table: pa.Table, geometries: geo.GeometryArray) -> bytes:
    """Return GeoParquet 1.1 with a covering: a column `bbox` of boxes, xmin > xmax over the antimeridian, null where there is no place."""
    missing = shapely.is_missing(geometries)
    boxes = geo.bboxes(geometries)
    corners = [pa.array(boxes[:, number], pa.float64()) for number in _CORNERS.values()]
    column = pa.StructArray.from_arrays(corners, names=list(_CORNERS), mask=pa.array(missing))
    said = json.loads(geo.geoparquet_metadata(geometries))
    said["columns"]["geometry"]["covering"] = {"bbox": {corner: ["bbox", corner] for corner in _CORNERS}}
    covered = table.drop_columns([name for name in table.column_names if name == "bbox"]).append_column("bbox", column)
    buffer = io.BytesIO()
    pq.write_table(covered.replace_schema_metadata({"geo": json.dumps(said, sort_keys=True)}), buffer, compression="zstd")
    return buffer.getvalue()


def _bounds(geometries: geo.GeometryArray) -> tuple[float, float, float, float] | None:
    known = geometries[~shapely.is_missing(geometries)]
    if not len(known):
        return None
    west, south, east, north = geo.bbox_of(shapely.GeometryCollection(list(shapely.get_parts(known))))
    return float(west), float(south), float(east), float(north)


def _dates(table: pa.Table) -> tuple[str, str] | None:
    ends = pc.min_max(table["datetime"]).as_py()
    return None if ends["min"] is None else (ends["min"].isoformat(), ends["max"].isoformat())


def load_segment(version: Version, entry: SegmentEntry, manifest: IndexManifest, cache: Path) -> Segment:
    """Fetch a segment's vectors to this machine and open them.

    Args:
        version: the index version.
        entry: which of its segments.
        manifest: of the version: kind and dimension.
        cache: folder for copies of files that lie in a bucket.

    Raises:
        IndexCorruptError: a file differs from its digest, or is not what the manifest says.
    """
    kind = KINDS[manifest.kind]
    vectors = _verified_path(version, f"{entry.name}.vectors", cache)
    compressed = None if kind.exact else _verified_path(version, f"{entry.name}.faiss", cache)
    index = _opened(entry, vectors, STORES[kind.store], manifest.dimension)
    base = None if compressed is None else _opened(entry, compressed, kind, manifest.dimension)
    attached = None if base is None else kind.attached(base, index)
    return Segment(kind=kind.name, dimension=manifest.dimension, index=index, base=base, compressed=attached)


def load_table(version: Version, entry: SegmentEntry, cache: Path) -> Metadata:
    """Fetch a segment's metadata to this machine and open it; arguments and errors as of `load_segment`."""
    name = f"{entry.name}.parquet"
    table = Metadata.open(_verified_path(version, name, cache), cache, sha256=_digest(version, name).sha256)
    if table.rows != entry.rows:
        raise IndexCorruptError(
            f"{entry.name} has {table.rows} rows of metadata, not the {entry.rows} of its manifest; publish the index again"
        )
    return table


def _opened(entry: SegmentEntry, path: Path, kind: Kind, dimension: int) -> Any:
    try:
        index = kind.read(path)
        kind.check(index, dimension, entry.rows)
    except IndexCorruptError as error:
        raise IndexCorruptError(f"{entry.name}: {error}") from error
    return index


def _verified_path(version: Version, name: str, cache: Path) -> Path:
    digest = _digest(version, name)
    path = version.store.fetch(digest.key(version.prefix), cache)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest.sha256:
        if path.parent == cache:
            path.unlink(missing_ok=True)  # so that it is downloaded again
        raise IndexCorruptError(f"{version.store.address(digest.key(version.prefix))} differs from its manifest; publish the index again")
    return path


def _digest(version: Version, name: str) -> FileDigest:
    for entry in version.files:
        if entry.name == name:
            return entry
    raise IndexCorruptError(f"{version.store.address(version.prefix)} lists no file {name}; publish the index again")
