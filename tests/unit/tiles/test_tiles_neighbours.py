from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs import geo
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.neighbours import Neighbourhood, distances, outlines, overlapping_pairs, positive_pairs
from rayjobs.tiles.positions import positions, sizes
from rayjobs.tiles.section import GridSampler, RandomSampler, SplitsSection, TilesSection
from rayjobs.tiles.table import plan_tiles

TRAIN = SplitsSection(train=1, val=0, test=0)


def scene(scene_id: str, crs: str | None, left: float, top: float, *, pixel_m: float = 30.0, side: int = 320) -> Scene:
    grid = geo.Grid(crs=crs, transform=(pixel_m, 0, left, 0, -pixel_m, top), height=side, width=side)
    return Scene(scene_id=scene_id, assets={"red": Asset(uri="x.tif")}, grid=grid, block=(8, 8), dtype="uint16")


SCENES = [
    scene("a", "EPSG:32760", 810_000, 8_120_000),
    scene("b", "EPSG:32701", 175_000, 8_120_000),
    scene("fine", "EPSG:32760", 812_000, 8_119_000, pixel_m=5),
    scene("picture", None, 0, 0),
    scene("picture2", None, 0, 0, side=100),
]


def naive_pairs(where, size, low, high) -> list[list[int]]:
    found = []
    for i in range(len(where)):
        for j in range(i + 1, len(where)):
            apart = math.dist(where[i], where[j]) / max(size[i], size[j])
            if low <= apart <= high:
                found.append([i, j])
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(-50, 50), st.floats(0.5, 40)), max_size=25),
    st.floats(0, 3),
    st.floats(0, 5),
)
def test_pairs_are_those_of_the_naive_loop(points, low, width):
    points = np.array(points, float).reshape(-1, 4)
    where, size = points[:, :3], points[:, 3]
    found = positive_pairs(where, size, low, low + width)
    assert found.shape == (len(found), 2)
    assert found.tolist() == naive_pairs(where, size, low, low + width)


@pytest.mark.parametrize(("low", "high"), [(0, 1.5), (0.5, 2.5)])
def test_pairs_of_planned_tiles_are_those_of_the_naive_loop(low, high):
    tiles = plan_tiles(SCENES, TilesSection(size=32, sampler=RandomSampler(count=300), splits=TRAIN))
    where, size = positions(tiles), sizes(tiles)
    assert size.max() / size.min() > 5
    found = positive_pairs(where, size, low, high)
    assert found.tolist() == naive_pairs(where, size, low, high)
    crossing = {(tiles["scene_id"][i].as_py(), tiles["scene_id"][j].as_py()) for i, j in found.tolist()}
    assert {("a", "fine"), ("fine", "a")} & crossing


def test_eight_neighbours_on_a_grid_across_the_antimeridian():
    tiles = plan_tiles(SCENES[:1], TilesSection(size=32, sampler=GridSampler(), splits=TRAIN))
    assert any(shape.geom_type == "MultiPolygon" for shape in outlines(tiles))
    near = Neighbourhood.from_pairs(positive_pairs(positions(tiles), sizes(tiles), 0, 1.5), tiles.num_rows)
    row, col = (tiles[name].to_numpy() // 32 for name in ("row", "col"))
    for tile in range(tiles.num_rows):
        expected = np.flatnonzero((abs(row - row[tile]) <= 1) & (abs(col - col[tile]) <= 1))
        assert near.of(tile).tolist() == [other for other in expected.tolist() if other != tile]


@settings(deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))))
def test_a_neighbourhood_lists_each_tiles_neighbours(case):
    count, edges = case
    pairs = sorted({(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]})
    near = Neighbourhood.from_pairs(np.array(pairs, np.int64).reshape(-1, 2), count)
    expected = [sorted([j for i, j in pairs if i == tile] + [i for i, j in pairs if j == tile]) for tile in range(count)]
    assert [near.of(tile).tolist() for tile in range(count)] == expected
    assert near.counts.tolist() == [len(members) for members in expected]


def test_distances_are_in_sizes_of_the_larger_tile():
    where, size = np.array([[0.0, 0, 0], [30, 0, 0], [50, 0, 0], [500, 0, 0]]), np.array([10.0, 10, 10, 20])
    assert distances(where, size, np.array(0), np.arange(4)).tolist() == [0, 3, 5, 25]


def test_overlap_is_shared_ground_and_not_a_shared_edge():
    tiles = plan_tiles(SCENES, TilesSection(size=32, sampler=GridSampler(stride=16), splits=TRAIN))
    found = set(map(tuple, overlapping_pairs(outlines(tiles)).tolist()))
    rows = tiles.to_pylist()
    windows = [geo.Window(row=row["row"], col=row["col"], height=32, width=32) for row in rows]
    shapes = outlines(tiles)
    for i in range(0, len(rows), 7):
        for j in range(i + 1, len(rows)):
            same = rows[i]["scene_id"] == rows[j]["scene_id"]
            if same:
                assert windows[i].intersects(windows[j]) == ((i, j) in found)
            elif (i, j) in found:
                assert shapely.intersects(shapes[i], shapes[j])
            else:
                assert shapely.area(shapely.intersection(shapes[i], shapes[j])) < 1e-3 * min(shapes[i].area, shapes[j].area)
    kinds = {frozenset((rows[i]["scene_id"], rows[j]["scene_id"])) for i, j in found}
    assert frozenset(("a", "fine")) in kinds
    assert frozenset(("picture", "picture2")) not in kinds
