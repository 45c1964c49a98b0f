from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rayjobs import geo
from rayjobs.errors import ImageryError

CRSS = ["EPSG:4326", "EPSG:32612", "EPSG:32601", "EPSG:32660", "EPSG:3857", "EPSG:26914", "EPSG:3413", "EPSG:3031", "EPSG:5070"]
GEOD = pyproj.Geod(ellps="WGS84")
ONCE_ROUND = {"EPSG:4326": 360.0, "EPSG:3857": 2 * math.pi * 6378137.0}
"""How far x runs round the Earth where a grid may go on past the antimeridian, in units of the CRS."""


def grid_at(
    crs: str, lon: float, lat: float, *, pixel_m: float = 30.0, height: int = 200, width: int = 300, turn: float = 0.0, flip: float = 1.0
) -> geo.Grid:
    """A grid whose centre lies at a place, turned by an angle in degrees."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    pixel = pixel_m / 111_320 if pyproj.CRS(crs).is_geographic else pixel_m
    cos, sin = pixel * math.cos(math.radians(turn)), pixel * math.sin(math.radians(turn))
    a, b, d, e = cos, sin * flip, sin, -cos * flip
    corner = (x - a * width / 2 - b * height / 2, y - d * width / 2 - e * height / 2)
    return geo.Grid(crs=crs, transform=(a, b, corner[0], d, e, corner[1]), height=height, width=width)


def places(crs: str) -> tuple[float, float, float, float]:
    area = pyproj.CRS(crs).area_of_use
    return area.west, area.south, area.east, area.north


@st.composite
def grids(draw):
    crs = draw(st.sampled_from(CRSS))
    west, south, east, north = places(crs)
    lon = draw(st.floats(west, east)) if west < east else draw(st.sampled_from([west, 179.99, -179.99, 180.0, east]))
    lat = draw(st.floats(max(south, -89.9) + 0.1, min(north, 89.9) - 0.1))
    assume(crs != "EPSG:3857" or abs(lat) < 80)
    return grid_at(crs, lon, lat, turn=draw(st.sampled_from([0.0, 17.0, 90.0, 200.0])), flip=draw(st.sampled_from([1.0, -1.0])))


@st.composite
def grids_and_windows(draw):
    grid = draw(grids())
    size = draw(st.integers(1, 128))
    corners = st.tuples(st.integers(0, grid.height - size), st.integers(0, grid.width - size))
    found = draw(st.lists(corners, min_size=1, max_size=4))
    return grid, np.array([(row, col, size, size) for row, col in found])


def test_a_window_is_refused_outside_of_any_raster():
    with pytest.raises(ValueError, match="row -1"):
        geo.Window(row=-1, col=0, height=1, width=1)
    with pytest.raises(ValueError, match="0 x 4"):
        geo.Window(row=0, col=0, height=0, width=4)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 5)] * 2), min_size=2, max_size=2))
def test_windows_intersect_where_they_share_a_pixel(two):
    first, second = (geo.Window(row=r, col=c, height=h, width=w) for r, c, h, w in two)
    canvas = np.zeros((2, 12, 12), bool)
    for layer, window in zip(canvas, (first, second), strict=True):
        layer[window.slices] = True
    assert first.intersects(second) == second.intersects(first) == canvas.all(axis=0).any()
    assert first.inside(5, 7) == (not canvas[0][5:].any() and not canvas[0][:, 7:].any())


def test_a_grid_is_refused_when_it_has_no_extent():
    with pytest.raises(ValueError, match="one to one"):
        geo.Grid(crs=None, transform=(1, 1, 0, 1, 1, 0), height=2, width=2)
    with pytest.raises(ValueError, match="0 x 2"):
        geo.Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=0, width=2)


@settings(max_examples=150, deadline=None)
@given(grids_and_windows())
@example((grid_at("EPSG:3857", -180.0, 0.0), np.array([[0, 0, 64, 64], [90, 100, 100, 100]])))
@example((grid_at("EPSG:4326", 180.0, 0.0), np.array([[0, 0, 64, 64], [90, 100, 100, 100]])))
def test_footprints_hold_their_own_ground_and_no_other(case):
    grid, windows = case
    rng = np.random.default_rng(0)
    inverse = pyproj.Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    a, b, c, d, e, f = grid.transform
    for window, polygon in zip(windows, geo.footprints(grid, windows), strict=True):
        assert polygon.is_valid
        assert all(part.exterior.is_ccw for part in shapely.get_parts(polygon))
        west, south, east, north = shapely.bounds(polygon)
        assert west >= -180
        assert east <= 180
        points = rng.uniform([west, south], [east, north], (200, 2))
        x, y = map(np.asarray, inverse.transform(points[:, 0], points[:, 1]))
        slack = 0.05 + 0.002 * window[2]
        deep = np.full(len(points), -np.inf)
        once = ONCE_ROUND.get(grid.crs, 0.0)
        for turn in (-once, 0.0, once):
            col, row = np.linalg.solve([[a, b], [d, e]], np.stack([x + turn - c, y - f]))
            margin = np.minimum.reduce([row - window[0], window[0] + window[2] - row, col - window[1], window[1] + window[3] - col])
            deep = np.maximum(deep, np.where(np.isfinite(margin), margin, -np.inf))
        inside = shapely.contains_xy(polygon, points[:, 0], points[:, 1])
        assert inside[deep > slack].all()
        assert not inside[deep < -slack].any()


@settings(max_examples=60, deadline=None)
@given(grids())
def test_ground_size_is_the_mean_geodesic_side_of_the_central_pixel(grid):
    forward = pyproj.Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    row, col = grid.height / 2 - 0.5, grid.width / 2 - 0.5
    ring = np.array([col, col + 1, col + 1, col, col]), np.array([row, row, row + 1, row + 1, row])
    perimeter = GEOD.line_length(*forward.transform(*grid.xy(*ring)))
    assert geo.ground_size_m(grid) == pytest.approx(perimeter / 4, rel=1e-3)


def test_plain_images_lie_nowhere():
    grid = geo.Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=10, width=10)
    assert geo.footprint(grid) is None
    assert geo.ground_size_m(grid) is None
    with pytest.raises(ValueError, match="no place"):
        geo.lonlat(grid, np.array([[0, 0, 5, 5]]))


def test_a_crs_that_is_not_tied_to_the_ground_is_refused_by_name():
    for crs in ('LOCAL_CS["site plan",UNIT["m",1]]', "EPSG:999999", "nonsense"):
        assert not geo.locatable(crs)
        with pytest.raises(ImageryError, match=crs[:12].replace("[", r"\[")):
            geo.footprint(geo.Grid(crs=crs, transform=(1, 0, 0, 0, 1, 0), height=1, width=1))
    assert geo.locatable("EPSG:32612")
    assert not geo.locatable(None)


def test_windows_off_the_ground_have_no_footprint():
    full_disk = pyproj.CRS("+proj=geos +h=35785831 +lon_0=0 +sweep=y").to_wkt()
    grid = geo.Grid(crs=full_disk, transform=(12_000, 0, -6e6, 0, -12_000, 6e6), height=1000, width=1000)
    corner, centre = geo.footprints(grid, np.array([[0, 0, 10, 10], [495, 495, 10, 10]]))
    assert corner is None
    assert centre.centroid.distance(shapely.Point(0, 0)) < 0.01


def test_mars_keeps_its_own_longitudes_and_radius():
    grid = geo.Grid(crs="IAU_2015:49910", transform=(1000, 0, 0, 0, -1000, 0), height=10, width=10)
    assert geo.radius_m(grid.crs) == pytest.approx(3_396_190)
    degree = math.radians(1) * 3_396_190
    assert geo.footprint(grid).bounds == pytest.approx((0, -10_000 / degree, 10_000 / degree, 0), abs=1e-9)


def test_a_footprint_over_the_antimeridian_is_cut_there():
    polygon = geo.footprint(grid_at("EPSG:32660", 180, -17, height=100, width=100))
    assert polygon.geom_type == "MultiPolygon"
    west, east = sorted(polygon.geoms, key=lambda part: -part.bounds[0])
    assert west.bounds[2] == 180
    assert east.bounds[0] == -180
    box = geo.bbox_of(polygon)
    assert box.west == west.bounds[0] > 179.98 > -179.98 > box.east == east.bounds[2]
    assert box[1::2] == polygon.bounds[1::2]
    metres = abs(GEOD.geometry_area_perimeter(west)[0]) + abs(GEOD.geometry_area_perimeter(east)[0])
    assert metres == pytest.approx(3000**2, rel=2e-3)


@pytest.mark.parametrize(
    "window", [(0, 0, 128, 128), (0, 0, 64, 64), (0, 32, 64, 64), (0, 30, 64, 64), (32, 32, 64, 64), (64, 0, 64, 128), (63, 63, 2, 2)]
)
@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_tiles_at_a_pole_hold_the_pole_where_they_should(crs, window):
    grid = geo.Grid(crs=crs, transform=(1000, 0, -64_000, 0, -1000, 64_000), height=128, width=128)
    (polygon,) = geo.footprints(grid, np.array([window]))
    assert polygon.is_valid
    lat = 90 if crs == "EPSG:3413" else -90
    row, col, height, width = window
    inverse = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    lon, colat = np.meshgrid(np.arange(-179.5, 180, 7), np.linspace(0.001, 0.5, 40))
    x, y = inverse.transform(lon.ravel(), np.sign(lat) * (90 - colat.ravel()))
    cols, rows = (np.asarray(x) + 64_000) / 1000, (64_000 - np.asarray(y)) / 1000
    deep = np.minimum.reduce([rows - row, row + height - rows, cols - col, col + width - cols])
    inside = shapely.contains_xy(polygon, lon.ravel(), np.sign(lat) * (90 - colat.ravel()))
    assert inside[deep > 0.05].all()
    assert not inside[deep < -0.05].any()
    touches_pole = row <= 64 <= row + height and col <= 64 <= col + width
    assert (lat in geo.bbox_of(polygon)[1::2]) == touches_pole


def test_the_whole_world_is_the_whole_world_in_either_numbering():
    for start in (-180, 0):
        grid = geo.Grid(crs="EPSG:4326", transform=(1, 0, start, 0, -1, 90), height=180, width=360)
        polygon = geo.footprint(grid)
        assert polygon.area == pytest.approx(360 * 180)
        assert geo.bbox_of(polygon) == (-180, -90, 180, 90)


def test_centres_lie_in_the_middle_of_their_windows():
    grid = grid_at("EPSG:32612", -111, 37, height=101, width=101)
    assert geo.lonlat(grid, np.array([[0, 0, 101, 101]])) == pytest.approx(np.array([[-111, 37]]))
    west, east = geo.lonlat(grid, np.array([[50, 0, 1, 1], [50, 100, 1, 1]]))
    assert GEOD.inv(*west, *east)[2] == pytest.approx(3000, rel=1e-3)


lonlats = st.tuples(st.floats(-180, 180), st.floats(-89.999, 89.999))


@settings(deadline=None)
@given(lonlats, lonlats)
def test_great_circles_are_within_the_flattening_of_the_geodesic(a, b):
    ours = float(geo.great_circle_m(np.array(a), np.array(b)))
    assert ours == pytest.approx(GEOD.inv(*a, *b)[2], rel=6e-3, abs=1e-3)
    chord = float(np.linalg.norm(geo.ecef(np.array([a]))[0] - geo.ecef(np.array([b]))[0]))
    assert chord == pytest.approx(2 * geo.EARTH_RADIUS_M * math.sin(ours / 2 / geo.EARTH_RADIUS_M), rel=1e-6, abs=1e-2)


def test_great_circle_on_mars():
    olympus, vastitas = np.array([[-231, -14.0]]), np.array([[-271, 77.0]])
    assert geo.great_circle_m(olympus, vastitas, radius_m=3_389_500) == pytest.approx([5_556_640], abs=10)


@settings(deadline=None)
@given(lonlats, st.floats(1_000, 5_000_000))
def test_a_cell_is_about_as_large_as_asked_and_the_same_from_either_side_of_the_antimeridian(place, size_m):
    ((row, col),) = geo.cells(np.array([place]), size_m)
    rows = round(math.pi * geo.EARTH_RADIUS_M / size_m)
    assert 0 <= row < rows
    assert 180 / rows * row - 90 - 1e-6 <= place[1] <= 180 / rows * (row + 1) - 90 + 1e-6
    turned = geo.cells(np.array([[place[0] - 360 if place[0] > 0 else place[0] + 360, place[1]]]), size_m)
    nearly = abs((place[0] + 180) * 1e9 % 1) < 1e-3
    assert nearly or abs(turned[0, 1] - col) <= 1
    assert turned[0, 0] == row
    assert geo.cell_name(int(row), int(col)) != geo.cell_name(int(row), int(col) + 1)


@settings(deadline=None)
@given(lonlats, st.floats(0, 3), st.floats(0, 2), st.floats(20_000, 800_000))
def test_cells_touched_are_those_of_the_points_of_the_box(corner, width, height, size_m):
    west, south = corner
    east, north = west + width, min(south + height, 90.0)
    east = east - 360 if east > 180 else east
    found = set(map(tuple, geo.cells_touched(west, south, east, north, size_m).tolist()))
    assert len(found) == len(geo.cells_touched(west, south, east, north, size_m)), "no cell twice"
    lon, lat = np.meshgrid(west + np.linspace(0, width, 60), np.linspace(south, north, 40))
    inside = set(map(tuple, geo.cells(np.stack([lon.ravel(), lat.ravel()], axis=-1), size_m).tolist()))
    assert inside <= found
    slack = 0.02
    lon, lat = np.meshgrid(west + np.linspace(-slack, width + slack, 160), np.linspace(south - slack, min(north + slack, 90), 120))
    if size_m / 111_000 / 3 > slack and abs(south) < 80 and abs(north) < 80:  # the cells are wider than the steps of this wider net
        assert found <= set(map(tuple, geo.cells(np.stack([lon.ravel(), lat.ravel()], axis=-1), size_m).tolist()))


def test_a_box_that_ends_on_the_edge_of_a_cell_touches_both():
    rows = round(math.pi * geo.EARTH_RADIUS_M / 100_000)
    edge = 180 / rows * (rows // 2 + 1) - 90
    touched = geo.cells_touched(10.0, edge - 0.01, 10.01, edge, 100_000)
    assert sorted(touched[:, 0].tolist()) == [rows // 2, rows // 2 + 1]


def test_many_boxes_are_answered_as_one_by_one():
    rng = np.random.default_rng(1)
    boxes = np.stack([rng.uniform(-180, 180, 50), rng.uniform(-90, 88, 50)], axis=-1)
    boxes = np.column_stack([boxes, geo.wrapped(boxes[:, 0] + 1.5), boxes[:, 1] + 1])
    many = geo.cells_touched_by(boxes, 60_000)
    for index, box in enumerate(boxes):
        assert many.cell[many.box == index].tolist() == geo.cells_touched(*box, 60_000).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-720, 719).map(lambda n: n / 4), st.integers(1, 240).map(lambda n: n / 4)), min_size=1, max_size=5))
def test_the_box_of_several_parts_holds_them_and_leaves_out_the_widest_gap(spans):
    parts = []
    for west, width in spans:
        parts += [shapely.box(west, 0, min(west + width, 180), 1)] + (
            [shapely.box(-180, 0, west + width - 360, 1)] if west + width > 180 else []
        )
    parts = [part for part in parts if part.area > 1e-6]
    assume(parts)
    box = geo.bbox_of(shapely.MultiPolygon(parts))
    degrees = np.arange(-180, 180, 0.25)
    covered = np.array(
        [any(p.bounds[0] <= d <= p.bounds[2] for p in parts) or (d == -180 and any(p.bounds[2] == 180 for p in parts)) for d in degrees]
    )
    held = geo.in_bbox(np.stack([degrees, np.full(len(degrees), 0.5)], axis=-1), box)
    assert held[covered].all()
    runs = [len(list(group)) for free, group in itertools.groupby(np.tile(~covered, 2)) if free]
    widest = min(max(runs, default=0), len(degrees))
    assert abs(int((~held).sum()) - widest) <= 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0, 1], "four numbers"),
        ([0, 5, 1, 4], "south 5"),
        ([0, 0, 181, 1], "leaves the globe"),
        ([0, float("nan"), 1, 1], "four numbers"),
    ],
)
def test_a_wrong_box_is_refused_saying_why(values, message):
    with pytest.raises(ValueError, match=message):
        geo.parse_bbox(values)


def test_points_are_found_in_boxes_on_either_side_of_the_antimeridian():
    points = np.array([[179.5, 0], [-179.5, 0], [180, 0], [-180, 0], [0, 0], [179.5, 9]])
    assert geo.in_bbox(points, geo.parse_bbox([179, -1, -179, 1])).tolist() == [True, True, True, True, False, False]
    assert geo.in_bbox(points, geo.parse_bbox([-10, -1, 180, 1])).tolist() == [True, False, True, True, True, False]


@settings(max_examples=80, deadline=None)
@given(lonlats, st.floats(0, 5), st.floats(0, 5), st.floats(1, 500_000), st.floats(0, 360))
def test_a_grown_box_holds_all_points_within_the_distance(corner, width, height, distance_m, bearing):
    west, south = corner
    box = np.array([[west, south, float(geo.wrapped(np.array(west + width))), min(south + height, 90)]])
    wider = geo.BBox(*geo.grown(box, distance_m)[0])
    edge = [(west + width * u, south + (box[0, 3] - south) * v) for u, v in [(0, 0), (1, 0), (1, 1), (0, 1), (0.5, 1), (0, 0.3)]]
    sphere = pyproj.Geod(a=geo.EARTH_RADIUS_M, b=geo.EARTH_RADIUS_M)
    reached = np.array([sphere.fwd(lon, lat, bearing, distance_m * 0.99)[:2] for lon, lat in edge])
    assert geo.in_bbox(reached, wider).all()


def test_a_box_is_a_polygon_cut_where_it_crosses_the_antimeridian():
    assert geo.polygon_of_box(10, -5, 20, 5).bounds == (10, -5, 20, 5)
    cut = geo.polygon_of_box(170, -5, -160, 5)
    assert [part.bounds for part in cut.geoms] == [(170, -5, 180, 5), (-180, -5, -160, 5)]
    assert geo.bbox_of(cut) == (170, -5, -160, 5)


def test_geoparquet_metadata_names_types_and_the_box_across_the_antimeridian():
    shapes = [geo.footprint(grid_at("EPSG:32660", lon, -17)) for lon in (179.0, 180.0)]
    meta = json.loads(geo.geoparquet_metadata(np.array([*shapes, None], object)))
    column = meta["columns"][meta["primary_column"]]
    assert meta["version"] == "1.1.0"
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    west, south, east, north = column["bbox"]
    assert 178.9 < west < 179
    assert -180 < east < -179.9
    assert south < -17 < north
    assert json.loads(geo.geoparquet_metadata(np.array([None], object)))["columns"]["geometry"] == {"encoding": "WKB", "geometry_types": []}
