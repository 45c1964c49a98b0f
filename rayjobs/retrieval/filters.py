"""Which tiles may be answered: by place, date, label, scene and any column of the metadata."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayjobs import geo
from rayjobs.errors import QueryError, first_few
from rayjobs.retrieval.metadata import NO_MOMENT, Metadata, common_columns
from rayjobs.retrieval.places import Area, BoxRegion, Region

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

Instant = datetime.datetime | None
Scalar = str | int | float | bool | None

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFilter:
    """Which tiles may be answered: those that pass all of it. Empty, it lets all pass."""

    bbox: geo.BBox | None = None
    """Tiles whose footprint's box meets this one; tiles without a place never do."""
    intersects: Any = None
    """A shapely Polygon or MultiPolygon in degrees, read as `places.Area` says; tiles whose footprint meets it."""
    interval: tuple[Instant, Instant] | None = None
    """First and last datetime, both included; None leaves an end open. Tiles without a datetime never pass."""
    labels: tuple[str, ...] = ()
    """Tiles that have one of these labels; empty lets all pass."""
    scenes: tuple[str, ...] = ()
    """Tiles of one of these scenes; empty lets all pass."""
    where: Mapping[str, Scalar | Sequence[Scalar]] = field(default_factory=dict)
    """For columns of the metadata the value, or the values, of which tiles have one; None stands for no value."""

    @property
    def is_empty(self) -> bool:
        """Whether all tiles pass."""
        return not self.wanted and self.bbox is None and self.intersects is None and self.interval is None

    @property
    def wanted(self) -> list[tuple[str, Sequence[Scalar]]]:
        """Columns, each with the values that tiles may have there."""
        named: list[tuple[str, Sequence[Scalar]]] = [("label", self.labels), ("scene_id", self.scenes)]
        further = [(name, (value,) if isinstance(value, Scalar) else value) for name, value in self.where.items()]
        return [(name, values) for name, values in named if values] + further


def passing(segments: Sequence[Metadata], only: SearchFilter, *, placed: bool = False) -> list[BoolArray]:
    """Return which rows of each segment pass, (rows,) bool.

    Args:
        segments: their metadata.
        only: the filter.
        placed: whether tiles without a place are left out besides.

    Raises:
        QueryError: a polygon that is none, a column that the metadata does not have or whose values are of another kind, or a filter by
            what no tile has: a place, a datetime.
    """
    _check_places(segments, only, placed=placed)
    regions: list[Region] = [] if only.bbox is None else [BoxRegion(only.bbox)]
    regions += [] if only.intersects is None else [Area(only.intersects)]
    _check_dates(segments, only)
    _check_columns(segments, only)
    masks = [metadata.places.known if placed else np.ones(metadata.rows, bool) for metadata in segments]
    return [mask & _passing(metadata, only, regions) for mask, metadata in zip(masks, segments, strict=True)]


def _check_places(segments: Sequence[Metadata], only: SearchFilter, *, placed: bool) -> None:
    asked = {"bbox": only.bbox is not None, "intersects": only.intersects is not None, "spread_m": placed}
    names = " and ".join(name for name, there in asked.items() if there)
    if names and not any(metadata.places.count for metadata in segments):
        raise QueryError(f"no tile of the index has a place on the ground, so that {names} can find none; leave {names} out")


def _check_dates(segments: Sequence[Metadata], only: SearchFilter) -> None:
    if only.interval is not None and not any(metadata.dated for metadata in segments):
        raise QueryError("no tile of the index has a datetime, so that datetime can find none; leave datetime out")


def _check_columns(segments: Sequence[Metadata], only: SearchFilter) -> None:
    names = columns_to_filter(segments) if only.wanted else []
    for name in (name for name, _ in only.wanted if name not in names):
        near = difflib.get_close_matches(name, names, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {first_few(names, most=40, between=', ')}"
        raise QueryError(f"the index has no column {name[:80]!r} to filter by; {remedy}")


def _passing(metadata: Metadata, only: SearchFilter, regions: Sequence[Region]) -> BoolArray:
    mask = np.ones(metadata.rows, bool)
    for region in regions:
        there = np.zeros(metadata.rows, bool)
        there[metadata.places.meeting(region)] = True
        mask &= there
    if only.interval is not None:
        mask &= _dated(metadata, *only.interval)
    for name, values in only.wanted:
        mask &= _one_of(metadata, name, values)
    return mask


def _dated(metadata: Metadata, first: Instant, last: Instant) -> BoolArray:
    least = NO_MOMENT + 1 if first is None else (first - _EPOCH) // _MICROSECOND
    most = np.iinfo(np.int64).max if last is None else (last - _EPOCH) // _MICROSECOND
    return np.greater_equal(metadata.moments, least) & np.less_equal(metadata.moments, most)


def _one_of(metadata: Metadata, name: str, values: Sequence[Scalar]) -> BoolArray:
    """Tell which rows have one of some values in a column."""
    column = metadata.column(name)
    wanted = [value for value in values if value is not None]
    if pa.types.is_dictionary(column.type):
        words = _equal_to_one(column.dictionary, name, wanted)
        codes = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
        mask = (words[codes] if len(words) else np.zeros(len(codes), bool)) & column.is_valid().to_numpy(zero_copy_only=False)
    else:
        mask = _equal_to_one(column, name, wanted)
    if None in values:
        mask = mask | column.is_null().to_numpy(zero_copy_only=False)
    return np.asarray(mask, np.bool_)


def columns_to_filter(segments: Sequence[Metadata]) -> list[str]:
    """Return the names of the columns that `SearchFilter.where` takes: those of values that all segments have."""
    nested = {field.name for metadata in segments for field in metadata.columns if pa.types.is_nested(field.type)}
    return [name for name in common_columns(segments) if name not in nested and name != "geometry"]


def _equal_to_one(column: pa.Array, name: str, wanted: Sequence[Scalar]) -> BoolArray:
    try:
        values = pa.array([_of_kind(value, column.type) for value in wanted], column.type)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise QueryError(f"the column {name!r} holds {column.type}, and cannot be compared with {wanted!r:.200} ({error})") from None
    mask: BoolArray = pc.is_in(column, value_set=values).to_numpy(zero_copy_only=False)
    return mask


def _of_kind(value: Scalar, kind: pa.DataType) -> Any:
    """Return a value of a request as one of a column's kind; Arrow itself would take a boolean for a number, and no text for a moment."""
    if isinstance(value, str) != (pa.types.is_string(kind) or pa.types.is_temporal(kind)):
        raise ValueError("another kind of value")
    if isinstance(value, bool) != pa.types.is_boolean(kind):
        raise ValueError("another kind of value")
    if isinstance(value, float) and pa.types.is_integer(kind) and not value.is_integer():
        raise ValueError("not a whole number")
    return _instant(value, value) if isinstance(value, str) and pa.types.is_timestamp(kind) else value


def parse_interval(text: str) -> tuple[Instant, Instant]:
    """Read an instant or an interval in the words of STAC: `T`, `FROM/TO`, `../TO`, `FROM/..`; a date alone is the whole day.

    Raises:
        QueryError: it is none of these, or ends before it begins.
    """
    first, slash, last = text.partition("/")
    begin, end = _end_of(first, text), _end_of(last if slash else first, text, day=datetime.time.max)
    if begin and end and end < begin:
        raise QueryError(f"the interval {text!r} ends before it begins")
    return begin, end


def _end_of(part: str, text: str, *, day: datetime.time = datetime.time.min) -> Instant:
    """Return an end of an interval; None where it is open."""
    return None if part in {"", ".."} else _instant(part, text, day=day)


def _instant(part: str, text: str, *, day: datetime.time = datetime.time.min) -> datetime.datetime:
    """Return the instant that a part of a text names; of a date alone the time of `day`."""
    try:
        if _DAY.fullmatch(part):
            return datetime.datetime.combine(datetime.date.fromisoformat(part), day, datetime.UTC)
        found = datetime.datetime.fromisoformat(part)
        return found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        raise QueryError(f"datetime {text!r} is not FROM/TO of RFC 3339 dates, such as 2020-01-01/2020-12-31") from None
