"""What an index version says of itself: its encoder, its distance and its segments. Read from a file that may be hostile."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pydantic
import shapely

from rayjobs.errors import IndexCorruptError
from rayjobs.geo import BBox, bbox_of

_SEGMENT = re.compile(r"segment-[0-9]{5}")
_STRICT = pydantic.ConfigDict(extra="forbid")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MAX_DIMENSION = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEntry:
    """One immutable piece of an index: a FAISS file and a Parquet file whose rows its ids are."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT

    name: str
    """`segment-00000`; the files are `<name>.faiss` and `<name>.parquet`, with digests in the manifest's `files`."""
    rows: int
    bounds: tuple[float, float, float, float] | None
    """west, south, east, north in degrees of all its tiles (west > east over the antimeridian); None where none has a place."""
    dates: tuple[str, str] | None
    """First and last datetime (RFC 3339); None where no tile has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexManifest:
    """What the parts of an index version have in common."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT

    encoder_uri: str
    """Where its encoder lies, relative to the version's folder."""
    encoder_fingerprint: str
    distance: Literal["cosine"]
    dimension: int
    quantiser: None
    """Shared quantiser of compressed kinds; the flat kind has none."""
    segments: tuple[SegmentEntry, ...]
    tombstones: tuple[str, ...]
    """Ids of tiles that were deleted."""

    def __post_init__(self) -> None:
        """Refuse what no index of ours says."""
        names = [entry.name for entry in self.segments]
        if not _FINGERPRINT.fullmatch(self.encoder_fingerprint):
            raise ValueError("encoder_fingerprint is no sha256")
        if not names or any(not _SEGMENT.fullmatch(name) for name in names):
            raise ValueError("a segment has a name that none of ours has, or there is none")
        if len(set(names)) < len(names):
            raise ValueError("a segment is listed twice")
        if not 1 <= self.dimension <= _MAX_DIMENSION or any(entry.rows < 1 for entry in self.segments):
            raise ValueError("dimension or rows are out of range")

    @property
    def bounds(self) -> BBox | None:
        """west, south, east, north of all tiles, degrees; None where none has a place."""
        boxes = [entry.bounds for entry in self.segments if entry.bounds]
        halves = [half for box in boxes for half in _halves(*box)]
        return bbox_of(shapely.GeometryCollection([shapely.box(*half) for half in halves])) if halves else None

    @property
    def dates(self) -> tuple[str, str] | None:
        """First and last datetime of all tiles (RFC 3339); None where none has one."""
        dates = [entry.dates for entry in self.segments if entry.dates]
        return (min(first for first, _ in dates), max(last for _, last in dates)) if dates else None

    def fields(self) -> dict[str, Any]:
        """Return the manifest's own fields, to be published."""
        return {"index": dataclasses.asdict(self)}


def _halves(west: float, south: float, east: float, north: float) -> list[BBox]:
    """Cut a box at the antimeridian, if it crosses it."""
    return [BBox(west, south, east, north)] if west <= east else [BBox(west, south, 180.0, north), BBox(-180.0, south, east, north)]


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
