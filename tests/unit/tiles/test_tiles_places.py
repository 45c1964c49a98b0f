from __future__ import annotations

import datetime

import numpy as np
import pytest

from rayjobs.geo import Grid
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.places import across_dates, dates
from rayjobs.tiles.positions import positions, sizes
from rayjobs.tiles.section import GridSampler, SplitsSection, TilesSection
from rayjobs.tiles.table import plan_tiles


def scene(scene_id, day, *, east=0.0, crs="EPSG:26914"):
    """16 x 16 tiles of 8 pixels of 5 m, whose grid lies so many metres further east."""
    grid = Grid(crs=crs, transform=(5.0, 0, 600_000.0 + east, 0, -5.0, 5_200_000.0), height=128, width=128)
    taken = None if day is None else datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC)
    return Scene(scene_id=scene_id, assets={"red": Asset(uri="x.tif")}, grid=grid, block=(8, 8), dtype="uint8", datetime=taken)


@pytest.fixture
def tiles():
    section = TilesSection(size=8, sampler=GridSampler(), splits=SplitsSection(train=1, val=0, test=0, block_m=500))
    scenes = [scene("a", "2010-06-29"), scene("b", "2012-07-31T12:30", east=3.0), scene("c", None, east=20.0), scene("d", "2010-06-29")]
    return plan_tiles(scenes, section)


def test_tiles_without_a_date_have_their_scene_s(tiles):
    found = dates(tiles)
    expected = {"a": "2010-06-29", "b": "2012-07-31", "c": "c", "d": "2010-06-29"}
    assert found.tolist() == [expected[name] for name in tiles["scene_id"].to_pylist()]


@pytest.mark.parametrize("tolerance", [0.05, 0.25, 0.8])
def test_tiles_of_one_place_are_near_and_of_two_dates(tiles, tolerance):
    where, size, days = positions(tiles), sizes(tiles), dates(tiles)
    found = across_dates(where, size, days, tolerance)
    naive = [
        (one, other)
        for one in range(len(days))
        for other in range(one + 1, len(days))
        if days[one] != days[other] and np.linalg.norm(where[one] - where[other]) / max(size[one], size[other]) <= tolerance
    ]
    assert found.tolist() == [list(pair) for pair in naive]


def test_a_shift_of_a_few_metres_is_within_the_tolerance_and_most_of_a_tile_is_not(tiles):
    scenes = np.array(tiles["scene_id"].to_pylist())
    found = across_dates(positions(tiles), sizes(tiles), dates(tiles), 0.25)
    met = {frozenset(pair) for pair in scenes[found].tolist()}
    assert met == {frozenset("ab"), frozenset("bd")}  # a and d are of one day, and c lies half a tile away
    assert len(found) == 2 * 16 * 16
