"""Filters by column, label and scene, beside one row at a time in Python; places are asked in test_retrieval_places.py."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.errors import QueryError
from rayjobs.geo import BBox
from rayjobs.retrieval.filters import SearchFilter, columns_to_filter, passing
from rayjobs.retrieval.metadata import Metadata, common_columns

DAY = datetime.datetime(2021, 6, 1, tzinfo=datetime.UTC)
COUNT = 300


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    rows = [
        {
            "tile_id": f"{row:04d}",
            "geometry": None if row % 9 == 0 else shapely.to_wkb(shapely.box(row / 10, 0, row / 10 + 0.1, 0.1)),
            "datetime": None if row % 11 == 0 else DAY + datetime.timedelta(hours=row),
            "label": [None, "pond", "field", "town"][rng.integers(4)],
            "scene_id": f"scene-{row % 4}",
            "place_id": f"place-{row // 2}",
            "cloud": None if row % 13 == 0 else int(rng.integers(5)),
            "purity": float(rng.integers(4)) / 4,
            "clear": bool(row % 2),
            "shares": [0.5, 0.5],
        }
        for row in range(COUNT)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(1, "geometry", pa.array([row["geometry"] for row in rows], pa.binary()))
    table = table.set_column(2, "datetime", pa.array([row["datetime"] for row in rows], pa.timestamp("us", tz="UTC")))
    return [Metadata.of(table.slice(0, 120)), Metadata.of(table.slice(120))], rows


def rows_that_pass(world, only, **more):
    return np.flatnonzero(np.concatenate(passing(world[0], only, **more))).tolist()


words = st.sampled_from(["pond", "field", "town", "sea"])
wheres = st.fixed_dictionaries(
    {},
    optional={
        "cloud": st.one_of(st.integers(0, 6), st.none(), st.lists(st.one_of(st.integers(0, 6), st.none()), max_size=3)),
        "purity": st.sampled_from([0.25, 0, [0.5, 0.75], 2]),
        "clear": st.booleans(),
        "label": st.one_of(words, st.none(), st.lists(st.one_of(words, st.none()), max_size=3)),
        "place_id": st.integers(0, 160).map("place-{}".format),
        "datetime": st.integers(0, 310).map(lambda hours: (DAY + datetime.timedelta(hours=hours)).isoformat()),
    },
)


@settings(max_examples=150, deadline=None)
@given(where=wheres, labels=st.lists(words, max_size=2), scenes=st.lists(st.integers(0, 5).map("scene-{}".format), max_size=2))
def test_columns_pass_as_one_row_at_a_time(world, where, labels, scenes):
    def passes(row):
        for name, wanted in where.items():
            value = row[name].isoformat() if name == "datetime" and row[name] else row[name]
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return (not labels or row["label"] in labels) and (not scenes or row["scene_id"] in scenes)

    only = SearchFilter(where=where, labels=tuple(labels), scenes=tuple(scenes))
    assert rows_that_pass(world, only) == [number for number, row in enumerate(world[1]) if passes(row)]


def test_an_empty_filter_lets_all_pass(world):
    assert SearchFilter().is_empty
    assert not SearchFilter(where={"cloud": 1}).is_empty
    assert rows_that_pass(world, SearchFilter()) == list(range(COUNT))
    assert rows_that_pass(world, SearchFilter(), placed=True) == [row for row in range(COUNT) if row % 9]


def test_all_of_a_filter_must_pass(world):
    only = SearchFilter(bbox=BBox(0.95, 0, 3.05, 1), interval=(DAY + datetime.timedelta(hours=12), None), scenes=("scene-1",))
    assert rows_that_pass(world, only) == [row for row in range(12, 31) if row % 9 and row % 11 and row % 4 == 1]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"clod": 1}, r"no column 'clod' to filter by; did you mean 'cloud'\?"),
        ({"xyzzy": 1}, "there are tile_id, datetime, label"),
        ({"geometry": "x"}, "no column 'geometry'"),
        ({"shares": 0.5}, "no column 'shares'"),
        ({"_west": 0}, "no column '_west'"),
        ({"cloud": "three"}, "'cloud' holds int64, and cannot be compared"),
        ({"cloud": True}, "'cloud' holds int64"),
        ({"cloud": 1.5}, "'cloud' holds int64"),
        ({"cloud": 10**30}, "'cloud' holds int64"),
        ({"label": 3}, "'label' holds"),
        ({"clear": 1}, "'clear' holds bool"),
        ({"datetime": "last tuesday"}, "not FROM/TO"),
        ({"datetime": ".."}, "not FROM/TO"),
        ({"datetime": ["2021-06-01", ""]}, "not FROM/TO"),
        ({"datetime": 5}, "'datetime' holds timestamp"),
    ],
)
def test_what_cannot_be_compared_is_refused(world, where, message):
    with pytest.raises(QueryError, match=message):
        passing(world[0], SearchFilter(where=where))


def test_the_columns_that_can_be_asked_are_named(world):
    assert columns_to_filter(world[0]) == ["tile_id", "datetime", "label", "scene_id", "place_id", "cloud", "purity", "clear"]


def test_what_only_some_segments_have_cannot_be_asked(world):
    [first, second], _ = world
    fewer = Metadata.of(
        pa.table({"tile_id": ["z"], "geometry": pa.nulls(1, pa.binary()), "datetime": pa.nulls(1, pa.timestamp("us", "UTC")), "own": [1]})
    )
    assert columns_to_filter([first, second, fewer]) == columns_to_filter([fewer, first]) == ["tile_id", "datetime"]
    assert common_columns([first, fewer]) == ["tile_id", "geometry", "datetime"]
    assert fewer.take(np.array([0]), columns=common_columns([first, fewer])).num_rows == 1
    for name in ("cloud", "own"):
        with pytest.raises(QueryError, match=f"no column '{name}' to filter by; there are tile_id, datetime"):
            passing([first, fewer], SearchFilter(where={name: 1}))


def test_spread_is_named_where_no_tile_has_a_place(world):
    nowhere = Metadata.of(
        pa.table({"tile_id": ["a"], "geometry": pa.nulls(1, pa.binary()), "datetime": pa.nulls(1, pa.timestamp("us", "UTC"))})
    )
    with pytest.raises(QueryError, match="bbox and spread_m can find none; leave bbox and spread_m out"):
        passing([nowhere], SearchFilter(bbox=BBox(0, 0, 1, 1)), placed=True)
