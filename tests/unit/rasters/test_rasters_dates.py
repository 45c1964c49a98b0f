"""Dates as imagery writes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from rayjobs.rasters import dates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-06-29", datetime(2020, 6, 29, tzinfo=UTC)),
        ("20200629", datetime(2020, 6, 29, tzinfo=UTC)),
        ("20200629T103101", datetime(2020, 6, 29, 10, 31, 1, tzinfo=UTC)),
        ("2020-06-29T10:30:00Z", datetime(2020, 6, 29, 10, 30, tzinfo=UTC)),
        ("2020-06-29T10:30:00+02:00", datetime(2020, 6, 29, 8, 30, tzinfo=UTC)),
        ("2020:06:29 10:30:00", datetime(2020, 6, 29, 10, 30, tzinfo=UTC)),
        ("2020:06:29", datetime(2020, 6, 29, tzinfo=UTC)),
        ("2020366", datetime(2020, 12, 31, tzinfo=UTC)),
        ("2020", datetime(2020, 1, 1, tzinfo=UTC)),
        ("2020-06", datetime(2020, 6, 1, tzinfo=UTC)),
    ],
)
def test_an_instant_is_read_in_utc(text, expected):
    found = dates.instant(text)
    assert found == expected
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["", "soon", "2020-13-01", "29.06.2020", "2021366"])
def test_what_is_no_date_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="write 2020-06-29"):
        dates.instant(text)


@pytest.mark.parametrize("text", ["9999", "9999-12", "0001-01-01T00:00+05:00", "9999-12-31T23:00-05:00"])
def test_what_lies_beyond_the_calendar_is_no_date(text):
    for asked in (text, f"2020/{text}"):
        with pytest.raises(ValueError, match=f"cannot read '{re.escape(text)}' as a date"):
            dates.interval(asked)
    assert dates.interval("2020/9999-12-31").holds(dates.instant("9999-12-31T23:59:59Z"))


def test_a_tag_beyond_the_calendar_is_illegible():
    assert dates.from_tags({"ACQUISITION_DATE": "9999"}) is None
    assert dates.from_tags({"ACQUISITION_DATE": "9999", "TIFFTAG_DATETIME": "2024:01:01"}) == datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("2020-06-29", "2020-06-29T23:59:59Z", "2020-06-30"),
        ("2020", "2020-12-31T23:59:59Z", "2021-01-01"),
        ("2020-02", "2020-02-29T12:00:00Z", "2020-03-01"),
        ("2020-12", "2020-12-31T12:00:00Z", "2021-01-01"),
        ("2020-01-01/2020-03-01", "2020-03-01T18:00:00Z", "2020-03-02"),
        ("../2020-03-01", "1972-07-23", "2020-03-02"),
        ("2020-03-01/..", "2030-01-01", "2020-02-29"),
        ("2020-03-01/", "2030-01-01", "2020-02-29"),
        ("2020-06-29T10:00:00Z", "2020-06-29T10:00:00Z", "2020-06-29T10:00:01Z"),
    ],
)
def test_an_interval_holds_both_its_ends(text, inside, outside):
    span = dates.interval(text)
    assert span.holds(dates.instant(inside))
    assert not span.holds(dates.instant(outside))


def test_an_interval_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValueError, match="ends before it starts"):
        dates.interval("2021-01-01/2020-01-01")


def test_the_date_of_taking_outranks_the_date_of_writing():
    tags = {"TIFFTAG_DATETIME": "2024:01:01 00:00:00", "ACQUISITION_DATE": "2020-06-29"}
    assert dates.from_tags(tags) == datetime(2020, 6, 29, tzinfo=UTC)
    assert dates.from_tags({"TIFFTAG_DATETIME": "2024:01:02 03:04:05"}) == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_illegible_tags_are_no_date():
    assert dates.from_tags({"TIFFTAG_DATETIME": "0000:00:00 00:00:00"}) is None
    assert dates.from_tags({}) is None


def test_a_moment_elsewhere_is_compared_in_utc():
    span = dates.interval("2020-06-29")
    assert not span.holds(datetime(2020, 6, 29, 23, 0, tzinfo=timezone(timedelta(hours=-3))))
