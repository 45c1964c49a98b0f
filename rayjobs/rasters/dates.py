"""When imagery was taken: dates as people, file names, tags and STAC write them; always in UTC."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import NamedTuple

_TAGS = (
    "ACQUISITION_DATE",
    "ACQUISITIONDATETIME",
    "DATE_ACQUIRED",
    "EXIF_DateTimeOriginal",
    "TIFFTAG_DATETIME",
)
"""Most telling first: the last is often when the file was written."""
_TIFF_DATE = re.compile(r"(\d{4}):(\d\d):(\d\d)([ T].*)?")
_DAY_OF_YEAR = re.compile(r"\d{7}")
_YEAR_OR_MONTH = re.compile(r"(\d{4})(?:-(\d\d))?")


class Interval(NamedTuple):
    """A span of time, both ends included; None is open."""

    start: datetime.datetime | None
    end: datetime.datetime | None

    def holds(self, moment: datetime.datetime) -> bool:
        """Whether a moment lies in the span."""
        return (self.start is None or self.start <= moment) and (self.end is None or moment <= self.end)


ANY_TIME = (datetime.datetime(1850, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC))
"""What an item says whose imagery nobody can date, as STAC asks for a span then: no picture from the air is older, and readers that
count nanoseconds end in 2262."""


def instant(text: str) -> datetime.datetime:
    """Read a date or a moment: ISO 8601 with or without separators, `YYYYDDD` (day of the year), TIFF's `YYYY:MM:DD`.

    Returns:
        Aware, UTC; the first moment of a year, a month or a day. Without a time zone UTC is meant.

    Raises:
        ValueError: it is none of these; fit to be shown.
    """
    return _span(text)[0]


def interval(text: str) -> Interval:
    """Read a STAC interval `a/b`, open on a side with `..`, or a single year, month, day or moment.

    Raises:
        ValueError: it is no interval, or ends before it starts; fit to be shown.
    """
    first, slash, last = text.partition("/")
    if not slash:
        return Interval(*_span(first))
    open_ends = {"", ".."}
    start = None if first in open_ends else _span(first)[0]
    end = None if last in open_ends else _span(last)[1]
    if start and end and start > end:
        raise ValueError(f"the interval {text!r} ends before it starts")
    return Interval(start, end)


def written(moment: datetime.datetime) -> str:
    """Return a moment as STAC writes it, `2020-06-29T10:30:00Z`."""
    return moment.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")


def from_tags(tags: Mapping[str, str]) -> datetime.datetime | None:
    """Return when a file's tags say that it was taken; None where they do not, or not legibly."""
    for name in _TAGS:
        try:
            if name in tags:
                return instant(tags[name])
        except ValueError:
            continue
    return None


def _span(text: str) -> tuple[datetime.datetime, datetime.datetime]:
    """Return the first and the last moment (to the microsecond) of what a text names.

    Raises:
        ValueError: it is no date, or its ends lie beyond the calendar.
    """
    text = text.strip()
    coarse = _YEAR_OR_MONTH.fullmatch(text)
    try:
        if coarse:
            return _year_or_month(int(coarse[1]), int(coarse[2]) if coarse[2] else None)
        start, whole_day = _fine(text)
    except (ValueError, OverflowError):  # the latter where an end lies beyond the calendar
        raise ValueError(f"cannot read {text!r} as a date; write 2020-06-29, 20200629 or 2020-06-29T10:30:00Z") from None
    return start, start + datetime.timedelta(days=1, microseconds=-1) if whole_day else start


def _year_or_month(year: int, month: int | None) -> tuple[datetime.datetime, datetime.datetime]:
    start = datetime.datetime(year, month or 1, 1, tzinfo=datetime.UTC)
    later = start + datetime.timedelta(days=31 if month else 366)
    following = later.replace(day=1) if month else later.replace(month=1, day=1)
    return start, following - datetime.timedelta(microseconds=1)


def _fine(text: str) -> tuple[datetime.datetime, bool]:
    """Return a moment, and whether it stands for a whole day."""
    if _DAY_OF_YEAR.fullmatch(text):
        day = datetime.datetime.strptime(text, "%Y%j").replace(tzinfo=datetime.UTC)
        if day.year != int(text[:4]):  # day 366 of a common year
            raise ValueError(text)
        return day, True
    tiff = _TIFF_DATE.fullmatch(text)
    if tiff:
        text = f"{tiff[1]}-{tiff[2]}-{tiff[3]}{tiff[4] or ''}"
    found = datetime.datetime.fromisoformat(text)
    whole_day = re.fullmatch(r"\d{4}-?\d\d-?\d\d", text) is not None
    return (found.astimezone(datetime.UTC) if found.tzinfo else found.replace(tzinfo=datetime.UTC)), whole_day
