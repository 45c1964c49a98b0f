"""What an index version says of itself: its encoder, its kind and why, its segments. Read from a file that may be hostile."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import shapely

from rayjobs.errors import IndexCorruptError
from rayjobs.geo import BBox, bbox_of, polygon_of_box
from rayjobs.retrieval.kinds import KINDS, Effort

if TYPE_CHECKING:
    from rayjobs.storage import Version

QUANTISER = "quantiser.faiss"
"""File of a version of a trained kind: the trained, empty index of which every segment's is a filled copy."""
TOMBSTONES = "tombstones.parquet"
"""File of a version of which something was deleted: one column `tile_id`, sorted."""

_SEGMENT = re.compile(r"segment-[0-9]{5}")
_STRICT = pydantic.ConfigDict(extra="forbid")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_DIMENSION = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEntry:
    """One immutable piece of an index: its vectors, the compressed index of them, and a Parquet file whose rows their ids are."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT

    name: str
    """`segment-00000`, unique in a version, where a new segment is numbered one above the greatest. Another version may have another
    segment of that name. The files are `<name>.vectors`, `<name>.parquet` and, of every kind but `flat`, `<name>.faiss`; their digests are
    in the version's `files`."""
    rows: int
    bounds: tuple[float, float, float, float] | None
    """west, south, east, north in degrees of all its tiles (west > east over the antimeridian); None where none has a place."""
    dates: tuple[str, str] | None
    """First and last datetime (RFC 3339); None where no tile has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallEstimate:
    """How many of the truly nearest an approximate search found, on sample queries."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT

    at: int
    """Hits per query."""
    value: float
    """Mean share of the `at` nearest that were found."""
    queries: int
    """Sample queries; none of their own rows counted."""

    def __post_init__(self) -> None:
        """Refuse what no sample gives."""
        if self.at < 1 or self.queries < 1 or not 0 <= self.value <= 1:
            raise ValueError("the recall estimate is out of range")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexManifest:
    """What the parts of an index version have in common."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT

    encoder_uri: str
    """Where its encoder lies, relative to the version's folder."""
    encoder_fingerprint: str
    distance: Literal["cosine"]
    dimension: int
    kind: str
    """Key of `KINDS`."""
    why: str
    """Why this kind, in one sentence."""
    effort: Effort
    """How hard a search tries where the request does not say."""
    recall: RecallEstimate | None
    """What that effort finds; None for exact kinds, and where nothing was measured."""
    quantiser: str | None
    """sha256 of `quantiser.faiss`, which all segments share; None for kinds that do not train."""
    segments: tuple[SegmentEntry, ...]
    deleted: int
    """Tiles that are in segments but deleted; their ids are in `tombstones.parquet`, which is absent where there are none."""

    def __post_init__(self) -> None:
        """Refuse what no index of ours says."""
        names = [entry.name for entry in self.segments]
        if not _SHA256.fullmatch(self.encoder_fingerprint):
            raise ValueError("encoder_fingerprint is no sha256")
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind of index {self.kind[:40]!r}")
        if (self.quantiser is not None) != KINDS[self.kind].trains or not _SHA256.fullmatch(self.quantiser or "0" * 64):
            raise ValueError("quantiser is no sha256, or one where the kind has none")
        if not names or any(not _SEGMENT.fullmatch(name) for name in names):
            raise ValueError("a segment has a name that none of ours has, or there is none")
        if len(set(names)) < len(names):
            raise ValueError("a segment is listed twice")
        if not 1 <= self.dimension <= _MAX_DIMENSION or any(entry.rows < 1 for entry in self.segments):
            raise ValueError("dimension or rows are out of range")
        if not 0 <= self.deleted <= self.stored:
            raise ValueError("more is deleted than there is")

    @property
    def stored(self) -> int:
        """Rows of all segments, deleted ones too."""
        return sum(entry.rows for entry in self.segments)

    @property
    def bounds(self) -> BBox | None:
        """west, south, east, north of all tiles, degrees; None where none has a place."""
        boxes = [polygon_of_box(*entry.bounds) for entry in self.segments if entry.bounds]
        return bbox_of(shapely.GeometryCollection(list(shapely.get_parts(boxes)))) if boxes else None

    @property
    def dates(self) -> tuple[str, str] | None:
        """First and last datetime of all tiles (RFC 3339); None where none has one."""
        dates = [entry.dates for entry in self.segments if entry.dates]
        return (min(first for first, _ in dates), max(last for _, last in dates)) if dates else None

    def fields(self) -> dict[str, Any]:
        """Return the manifest's own fields, to be published."""
        return {"index": dataclasses.asdict(self)}


def read_index_manifest(manifest: Mapping[str, Any], address: str) -> IndexManifest:
    """Read the manifest of a version.

    Raises:
        IndexCorruptError: it is not what we write.
    """
    try:
        return pydantic.TypeAdapter(IndexManifest).validate_json(json.dumps(manifest.get("index")), strict=True)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]["msg"]
        raise IndexCorruptError(f"{address} has no valid index manifest ({fault}); publish the index again with `rayjobs index`") from None


def tombstone_bytes(ids: Iterable[str]) -> bytes:
    """Return the file `tombstones.parquet` of deleted tiles."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"tile_id": pa.array(sorted(set(ids)), pa.string())}), buffer, compression="zstd")
    return buffer.getvalue()


def read_tombstones(version: Version, manifest: IndexManifest) -> tuple[str, ...]:
    """Return the ids of an index version's deleted tiles, sorted.

    Raises:
        IndexCorruptError: they are not as many as the manifest says, or not readable.
        DamagedError: the file differs from its digest.
    """
    if not manifest.deleted:
        return ()
    try:
        ids = pq.read_table(io.BytesIO(version.read(TOMBSTONES)), columns=["tile_id"])["tile_id"].cast(pa.string()).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise IndexCorruptError(f"{TOMBSTONES} cannot be read ({error}); publish the index again") from error
    if None in ids or len(ids) != manifest.deleted or ids != sorted(set(ids)):
        raise IndexCorruptError(f"{TOMBSTONES} does not hold {manifest.deleted} distinct, sorted ids; publish the index again")
    return tuple(ids)
