from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs import geo
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.positions import positions, reaches, sizes
from rayjobs.tiles.section import GridSampler, SplitsSection, TilesSection
from rayjobs.tiles.table import plan_tiles

GEOD = pyproj.Geod(ellps="WGS84")
SECTION = TilesSection(size=40, sampler=GridSampler(), splits=SplitsSection(train=1, val=0, test=0))


def scene(scene_id: str, crs: str | None, lon: float = 0, lat: float = 0, *, pixel_m: float = 30.0, side: int = 120) -> Scene:
    x, y = (0, 0) if crs is None else pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    grid = geo.Grid(crs=crs, transform=(pixel_m, 0, x - pixel_m * side / 2, 0, -pixel_m, y + pixel_m * side / 2), height=side, width=side)
    return Scene(scene_id=scene_id, assets={"red": Asset(uri="x.tif")}, grid=grid, block=(8, 8), dtype="uint16")


PLACES = {
    "temperate": [("EPSG:32612", -111.0, 37.0), ("EPSG:32613", -107.9, 37.0), ("EPSG:5070", -100.0, 40.0)],
    "antimeridian": [("EPSG:32660", 180.0, -17.0), ("EPSG:32601", -180.0, -17.05)],
    "pole": [("EPSG:3413", 0.0, 90.0), ("EPSG:3413", 170.0, 89.9), ("EPSG:3031", 10.0, -90.0)],
}


@pytest.mark.parametrize("name", PLACES)
def test_distances_and_sizes_are_those_of_the_ellipsoid(name):
    scenes = [scene(str(number), crs, lon, lat) for number, (crs, lon, lat) in enumerate(PLACES[name])]
    tiles = plan_tiles(scenes, SECTION)
    found, side = positions(tiles), sizes(tiles)
    by_id = {entry.scene_id: entry for entry in scenes}
    centres, expected = [], []
    for row in tiles.to_pylist():
        grid, window = by_id[row["scene_id"]].grid, geo.Window(row=row["row"], col=row["col"], height=40, width=40)
        centres.append(geo.lonlat(grid, geo.window_array([window]))[0])
        ring = [
            (window.col + 40 * u / 8, window.row + 40 * v / 8)
            for u, v in [(n, 0) for n in range(8)]
            + [(8, n) for n in range(8)]
            + [(8 - n, 8) for n in range(8)]
            + [(0, 8 - n) for n in range(8)]
        ]
        x, y = grid.xy(*np.array(ring).T)
        lon, lat = pyproj.Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
        expected.append(math.sqrt(abs(_area(lon, lat))))
    assert side == pytest.approx(np.array(expected), rel=7e-3)
    assert found == pytest.approx(geo.ecef(np.array(centres)), abs=3.0)
    first, second = np.triu_indices(len(tiles), 1)
    a, b = np.array(centres)[first], np.array(centres)[second]
    along = GEOD.inv(a[:, 0], a[:, 1], b[:, 0], b[:, 1])[2]
    straight = np.linalg.norm(found[first] - found[second], axis=1)
    arc = 2 * geo.EARTH_RADIUS_M * np.arcsin(np.minimum(straight / 2 / geo.EARTH_RADIUS_M, 1))
    assert arc == pytest.approx(along, rel=7e-3, abs=5)


def _area(lon, lat) -> float:
    """Area on the ellipsoid, through an equal-area projection centred on the spot."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", f"+proj=laea +lat_0={lat[0]} +lon_0={lon[0]} +ellps=WGS84", always_xy=True).transform(
        lon, lat
    )
    x, y = np.asarray(x), np.asarray(y)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_mars_is_measured_with_the_radius_of_mars():
    crs = "IAU_2015:49910"
    grid = geo.Grid(crs=crs, transform=(100, 0, 0, 0, -100, 0), height=80, width=80)
    mars = Scene(scene_id="mars", assets={"red": Asset(uri="x.tif")}, grid=grid, block=(8, 8), dtype="uint8")
    tiles = plan_tiles([mars], SECTION)
    assert np.linalg.norm(positions(tiles), axis=1) == pytest.approx(np.full(4, 3_396_190.0))
    assert sizes(tiles) == pytest.approx(np.full(4, 4000.0), rel=1e-3)


def test_pictures_are_measured_in_pixels_and_lie_far_from_each_other_and_from_the_earth():
    scenes = [scene("a", None, side=100), scene("b", None, side=80), scene("ground", "EPSG:32612", -111, 37, side=40)]
    tiles = plan_tiles(scenes, SECTION)
    found, side, names = positions(tiles), sizes(tiles), np.array(tiles["scene_id"].to_pylist())
    assert side[names != "ground"].tolist() == [40.0] * 8
    windows = np.column_stack([tiles[name].to_numpy() for name in ("col", "row")])
    for name in ("a", "b"):
        mine = names == name
        assert np.ptp(found[mine, 2]) == 0
        assert found[mine, :2].tolist() == (windows[mine] + 20).tolist()
        assert np.linalg.norm(found[mine][:, None] - found[~mine][None], axis=2).min() > 9e8


@settings(max_examples=20, deadline=None)
@given(st.floats(-179.9, 179.9), st.floats(-79, 83))
def test_a_tile_has_one_size_and_place_wherever_the_antimeridian_cuts_it(lon, lat):
    zone = f"EPSG:{32600 + int((lon + 180) // 6) + 1}"
    tiles = plan_tiles([scene("a", zone, lon, lat, side=40)], SECTION)
    assert positions(tiles) == pytest.approx(geo.ecef(np.array([[lon, lat]])), abs=1.0)
    assert sizes(tiles) == pytest.approx([1200.0], rel=8e-3)


@pytest.mark.parametrize(("crs", "lon", "lat", "pixel"), [("EPSG:32612", -111.0, 37.0, 30.0), ("EPSG:4326", 25.0, 70.0, 0.001)])
def test_a_tile_reaches_as_far_as_its_farthest_corner(crs, lon, lat, pixel):
    """Degrees at 70 north are tiles three times as high as wide: half the diagonal of a square of their area would be too little."""
    tiles = plan_tiles([scene("a", crs, lon, lat, pixel_m=pixel)], SECTION)
    grid = scene("a", crs, lon, lat, pixel_m=pixel).grid
    for row, centre, reach in zip(tiles.to_pylist(), positions(tiles), reaches(tiles), strict=True):
        x, y = grid.xy(np.array([0, 40, 40, 0]) + row["col"], np.array([0, 0, 40, 40]) + row["row"])
        corners = geo.ecef(np.stack(pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y), axis=-1))
        assert reach == pytest.approx(np.linalg.norm(corners - centre, axis=1).max(), rel=1e-3)


def test_a_plain_tile_reaches_half_its_diagonal():
    tiles = plan_tiles([scene("a", None, pixel_m=1.0)], SECTION)
    assert reaches(tiles) == pytest.approx(np.full(len(tiles), 40 / 2**0.5))
