"""The same place on other dates, beside a loop over all tiles."""

from __future__ import annotations

import datetime
import types

import numpy as np
import pyarrow as pa
import pytest
import shapely

from rayjobs.errors import QueryError, UnknownTileError
from rayjobs.geo import BBox
from rayjobs.retrieval.changes import changes, same_place
from rayjobs.retrieval.filters import SearchFilter
from rayjobs.retrieval.gallery import Gallery
from rayjobs.retrieval.metadata import Metadata
from rayjobs.retrieval.shards import LocalShards

DAY = datetime.datetime(2021, 6, 1, tzinfo=datetime.UTC)
COUNT, PLACES = 400, 90


def gallery_of(*segments, tombstones=()):
    """A gallery of vectors and tables."""
    held = [types.SimpleNamespace(dimension=vectors.shape[1], vectors_of=vectors.__getitem__) for vectors, _ in segments]
    return Gallery(LocalShards(held), [Metadata.of(table) for _, table in segments], tombstones=tombstones)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(COUNT, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = rng.integers(0, PLACES, COUNT)
    hours = [None if rng.random() < 0.05 else int(hour) for hour in rng.integers(0, 40, COUNT)]
    rows = pa.table(
        {
            "tile_id": [f"{row:04d}" for row in range(COUNT)],
            "place_id": [f"place-{place}" for place in places],
            "geometry": pa.array([shapely.to_wkb(shapely.box(place, 0, place + 0.5, 1)) for place in places], pa.binary()),
            "datetime": pa.array(
                [None if hour is None else DAY + datetime.timedelta(hours=hour) for hour in hours], pa.timestamp("us", tz="UTC")
            ),
        }
    )
    gallery = gallery_of((vectors[:150], rows.slice(0, 150)), (vectors[150:], rows.slice(150)), tombstones=["0003", "0222"])
    return gallery, vectors, places, hours


def between(first, last):
    return DAY + datetime.timedelta(hours=first), DAY + datetime.timedelta(hours=last)


def by_hand(world, before, after, west=-1, east=1000):
    _, vectors, places, hours = world
    found = []
    for place in range(PLACES):
        sides = []
        for first, last in (before, after):
            there = [
                (-hours[row], row)
                for row in range(COUNT)
                if places[row] == place and row not in {3, 222} and hours[row] is not None and first <= hours[row] <= last
            ]
            sides.append(min(there)[1] if there and place + 0.5 >= west and place <= east else None)
        if None not in sides and sides[0] != sides[1]:
            moved = 1 - vectors[sides[0]].astype(np.float64) @ vectors[sides[1]].astype(np.float64)
            found.append((-moved, sides[1], sides[0]))
    return sorted(found)


@pytest.mark.parametrize(("before", "after"), [((0, 15), (20, 40)), ((0, 40), (0, 40)), ((0, 30), (10, 40)), ((5, 6), (7, 8))])
def test_the_places_that_moved_most_are_those_of_all_pairs(world, before, after):
    wanted = by_hand(world, before, after)
    filters = [SearchFilter(interval=between(*interval)) for interval in (before, after)]
    found = changes(world[0], *filters, 25)
    assert found.places == len(wanted)
    assert list(zip(found.later.tolist(), found.earlier.tolist(), strict=True)) == [(later, earlier) for _, later, earlier in wanted[:25]]
    np.testing.assert_allclose(found.change, [-moved for moved, _, _ in wanted[:25]], atol=1e-6)
    further = changes(world[0], *filters, 10, offset=5)
    assert further.later.tolist() == [later for _, later, _ in wanted[5:15]]


def test_changes_of_some_ground(world):
    filters = [SearchFilter(interval=between(*interval), bbox=BBox(10, 0, 30, 1)) for interval in ((0, 15), (20, 40))]
    wanted = by_hand(world, (0, 15), (20, 40), 10, 30)
    assert changes(world[0], *filters, 1000).later.tolist() == [later for _, later, _ in wanted]


def test_a_tile_without_a_date_is_not_the_latest():
    vectors = np.eye(4, 8, dtype=np.float32)
    table = pa.table(
        {
            "tile_id": ["a", "b", "c", "d"],
            "place_id": ["here", "here", "here", "there"],
            "label": ["x", "x", "y", "x"],
            "geometry": pa.nulls(4, pa.binary()),
            "datetime": pa.array([None, DAY, DAY + datetime.timedelta(hours=1), None], pa.timestamp("us", tz="UTC")),
        }
    )
    found = changes(gallery_of((vectors, table)), SearchFilter(labels=("x",)), SearchFilter(labels=("y",)), 10)
    assert (found.earlier.tolist(), found.later.tolist()) == ([1], [2])


def test_the_same_place_on_other_dates(world):
    gallery, _, places, hours = world
    others = [row for row in range(COUNT) if places[row] == places[7] and row not in {7, 3, 222}]
    wanted = sorted(others, key=lambda row: (hours[row] is None, hours[row] or 0, row))
    assert same_place(gallery, "0007").tolist() == wanted
    with pytest.raises(UnknownTileError):
        same_place(gallery, "0003")


def test_an_index_that_knows_no_places_says_so(world):
    table = pa.table({"tile_id": ["a"], "geometry": pa.nulls(1, pa.binary()), "datetime": pa.nulls(1, pa.timestamp("us", "UTC"))})
    gallery = gallery_of((np.eye(1, 8, dtype=np.float32), table))
    with pytest.raises(QueryError, match="does not know which tiles show the same place"):
        same_place(gallery, "a")
