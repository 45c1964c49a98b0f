"""Scores of tiles on a grid over the view, beside a naive loop over cells and tiles."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayjobs.geo import BBox
from rayjobs.serve.page.heat import heat


def mercator(latitude):
    return math.degrees(math.log(math.tan(math.pi / 4 + math.radians(latitude) / 2)))


def naive(boxes, scores, found):
    """The greatest score of the tiles that hold each cell's middle."""
    west, south, east, north = found.bounds
    bottom, top = mercator(south), mercator(north)
    cells = []
    for row in range(found.rows):
        y = top - (row + 0.5) * (top - bottom) / found.rows
        for column in range(found.columns):
            x = west + (column + 0.5) * (east - west) / found.columns
            there = [
                score for (w, s, e, n), score in zip(boxes, scores, strict=True)
                if any(w <= x + turn < (e if e >= w else e + 360) for turn in (-360, 0, 360)) and mercator(s) < y <= mercator(n)
            ]  # fmt: skip
            cells.append(max(there, default=None))
    return cells


def grid_of_tiles(west, south, side=0.1, count=12, seed=0):
    rng = np.random.default_rng(seed)
    lon, lat = (west + rng.uniform(0, 3, count), south + rng.uniform(0, 2, count))
    east = (lon + side + 180) % 360 - 180
    return np.stack([(lon + 180) % 360 - 180, lat, east, lat + side], axis=1), rng.uniform(0.2, 0.9, count)


@pytest.mark.parametrize(("west", "south"), [(10.03, 50.01), (-1.5, -1.0), (178.5, -60.0)])
def test_a_cell_has_the_greatest_score_of_the_tiles_that_hold_its_middle(west, south):
    boxes, scores = grid_of_tiles(west, south)
    view = BBox(west - 1, south - 1, (west + 5 + 180) % 360 - 180, south + 5)
    found = heat(boxes, scores, view)
    expected = [
        None if score is None else round((score - found.least) / (found.greatest - found.least) * 255)
        for score in naive(boxes, scores, found)
    ]
    assert found.cells == expected
    assert (found.least, found.greatest, found.tiles) == (scores.min(), scores.max(), len(scores))
    assert max(found.rows, found.columns) == 128


def test_the_grid_covers_the_part_of_the_view_that_tiles_cover():
    boxes = np.array([[10.0, 50.0, 12.0, 51.0]])
    found = heat(boxes, np.array([0.5]), BBox(11.0, 40.0, 30.0, 50.5))
    assert found.bounds == pytest.approx([11.0, 50.0, 12.0, 50.5])
    assert set(found.cells) == {0}


def test_a_tile_smaller_than_a_cell_is_seen():
    boxes = np.array([[0.0, 0.0, 1e-6, 1e-6], [50.0, 30.0, 50.000001, 30.000001]])
    found = heat(boxes, np.array([0.1, 0.7]), BBox(-10.0, -10.0, 60.0, 40.0))
    assert sorted(cell for cell in found.cells if cell is not None) == [0, 255]


def test_of_a_view_without_tiles_there_is_nothing():
    found = heat(np.empty((0, 4)), np.empty(0), BBox(0.0, 0.0, 1.0, 1.0))
    assert (found.cells, found.rows, found.columns, found.tiles) == ([], 0, 0, 0)
