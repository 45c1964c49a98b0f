"""Which tiles meet boxes and polygons, beside shapely over every tile on a map that is laid out three times side by side."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs import geo
from rayjobs.errors import QueryError
from rayjobs.retrieval.metadata import Metadata
from rayjobs.retrieval.places import Area, BoxRegion, area_of, packed_order, unrolled

SIDE = 0.5
TURNS = (-360, 0, 360)


def drawn_tile(lon, lat):
    """A tile on a map that goes on past the antimeridian: no rectangle, so that its box is not its ground."""
    return shapely.Polygon([(lon, lat), (lon + SIDE, lat), (lon + SIDE, lat + SIDE), (lon + 0.6 * SIDE, lat + 0.8 * SIDE)])


def stored(drawn):
    """The same as a footprint is stored: cut at the antimeridian."""
    parts = [shapely.intersection(drawn, shapely.box(-180, -90, 180, 90)), shapely.intersection(drawn, shapely.box(180, -90, 540, 90))]
    moved = [
        shapely.transform(part, lambda points, by=turn: np.subtract(points, (by, 0))) for part, turn in zip(parts, (0, 360), strict=True)
    ]
    kept = [part for part in moved if part.area > 0]
    return kept[0] if len(kept) == 1 else shapely.MultiPolygon(kept)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    lons = np.concatenate([rng.uniform(-180, 180, 1500), np.mod(rng.normal(180, 2, 500) + 180, 360) - 180, rng.uniform(-180, 180, 500)])
    lats = np.concatenate([rng.uniform(-90, 90 - SIDE, 2000), rng.choice([-1, 1], 500) * rng.uniform(80, 90, 500)])
    drawn = [drawn_tile(lon, lat) for lon, lat in zip(lons, np.clip(lats, -90, 90 - SIDE), strict=True)]
    known = rng.random(len(drawn)) > 0.05
    wkb = [shapely.to_wkb(stored(tile)) if there else None for tile, there in zip(drawn, known, strict=True)]
    table = pa.table(
        {
            "tile_id": [f"{row:06d}" for row in range(len(drawn))],
            "geometry": pa.array(wkb, pa.binary()),
            "datetime": pa.nulls(len(drawn), pa.timestamp("us", tz="UTC")),
        }
    )
    return Metadata.of(table).places, np.array(drawn), known


def moved(geometry, turn):
    return shapely.transform(geometry, lambda points: np.add(points, (turn, 0)))


def meeting(world, ground):
    """Rows that meet ground drawn on the endless map, all of them compared."""
    _, drawn, known = world
    return np.flatnonzero(known & np.any([shapely.intersects(moved(ground, turn), drawn) for turn in (-720, *TURNS, 720)], axis=0)).tolist()


def found(world, region):
    rows = world[0].meeting(region).tolist()
    assert len(set(rows)) == len(rows)
    return sorted(rows)


lons, lats = st.floats(-180, 180), st.floats(-90, 90)


@settings(max_examples=100, deadline=None)
@given(west=lons, east=lons, one=lats, other=lats)
def test_a_box_meets_the_boxes_that_it_shares_a_point_with(world, west, east, one, other):
    places, drawn, known = world
    box = geo.BBox(west, min(one, other), east, max(one, other))
    ground = shapely.box(west, box.south, east if east >= west else east + 360, box.north)
    boxes = shapely.box(*shapely.bounds(drawn).T)
    wanted = known & np.any([shapely.intersects(moved(ground, turn), boxes) for turn in TURNS], axis=0)
    assert found(world, BoxRegion(box)) == np.flatnonzero(wanted).tolist()
    assert places.count == known.sum()


corners = st.lists(
    st.tuples(st.floats(0, 2 * np.pi), st.floats(0.2, 1)), min_size=3, max_size=12, unique_by=lambda corner: round(corner[0], 2)
)


def star(middle, reach, corners):
    ring = [(middle[0] + 1.5 * reach * far * np.cos(angle), middle[1] + reach * far * np.sin(angle)) for angle, far in sorted(corners)]
    return np.clip(ring, (-1000, -90), (1000, 90))


@settings(max_examples=150, deadline=None)
@given(lon=st.floats(-180, 180), lat=lats, reach=st.floats(0.3, 55), corners=corners, past=st.booleans())
def test_a_polygon_meets_the_footprints_that_it_shares_a_point_with(world, lon, lat, reach, corners, past):
    """Whether it is said with longitudes past 180 degrees or with edges that go the short way."""
    ring = star((lon, lat), reach, corners)
    ground = shapely.Polygon(ring)
    if not ground.is_valid or ground.area < 1e-6 or np.abs(np.diff(ring[:, 0])).max() > 179:
        return
    if np.abs(ring[:, 0]).max() > 180 and not past:
        ring = np.column_stack([geo.wrapped(ring[:, 0]), ring[:, 1]])
    assert found(world, Area(shapely.Polygon(ring))) == meeting(world, ground)


@settings(max_examples=60, deadline=None)
@given(
    pole=st.sampled_from([-90.0, 90.0]),
    far=st.lists(st.floats(1, 60), min_size=4, max_size=24),
    start=st.floats(-180, -100),
    clockwise=st.booleans(),
)
def test_a_ring_round_a_pole_holds_it(world, pole, far, start, clockwise):
    """To the oracle it is all that lies on the pole's side of a line without an end."""
    ring = np.column_stack([start + np.arange(len(far)) * 360 / len(far), pole - np.sign(pole) * np.array(far)])
    line = np.concatenate([np.add(ring, (turn, 0)) for turn in (-1080, -720, *TURNS, 720, 1080)])
    ground = shapely.Polygon([*line, (line[-1, 0], pole), (line[0, 0], pole)])
    said = np.column_stack([geo.wrapped(ring[:, 0]), ring[:, 1]])
    assert found(world, Area(shapely.Polygon(said[::-1] if clockwise else said))) == meeting(world, ground)


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        (shapely.box(-180, 60, 180, 90), shapely.box(-180, 60, 180, 90)),
        (shapely.box(-180, -90, 180, 90), shapely.box(-180, -90, 180, 90)),
        (shapely.box(-100, 0, 100, 10), shapely.box(100, 0, 260, 10)),  # edges longer than half a turn go the short way
        (shapely.segmentize(shapely.box(-100, 0, 100, 10), 150), shapely.box(-100, 0, 100, 10)),
        (shapely.box(170, 0, 200, 10), shapely.box(170, 0, 200, 10)),
        (shapely.MultiPolygon([shapely.box(170, 0, 180, 10), shapely.box(-180, 0, -160, 10)]), shapely.box(170, 0, 200, 10)),
        (
            shapely.box(170, 0, 200, 10).difference(shapely.box(175, 2, 190, 8)),
            shapely.box(170, 0, 200, 10).difference(shapely.box(175, 2, 190, 8)),
        ),
        (
            shapely.Polygon([(170, 0), (-160, 0), (-160, 10), (170, 10)], [[(175, 2), (-170, 2), (-170, 8), (175, 8)]]),
            shapely.box(170, 0, 200, 10).difference(shapely.box(175, 2, 190, 8)),
        ),
    ],
)
def test_ground_said_in_several_ways_is_the_same_ground(world, said, drawn):
    assert found(world, Area(said)) == meeting(world, drawn)


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), "not valid: Self-intersection"),
        (shapely.Polygon([(170, 0), (-170, 1), (-170, 0), (170, 1)]), "not valid: Self-intersection"),
        (shapely.Polygon(), "empty"),
        (shapely.MultiPolygon(), "empty"),
        (shapely.Polygon([(0, 0), (1, 1), (2, 2)]), "not valid|no area"),
        (shapely.box(0, 0, 1, 91), "leaves the globe"),
        (shapely.box(0, 0, 361, 1), "leaves the globe"),
        (shapely.Point(0, 0), "a Polygon or a MultiPolygon, not a Point"),
        (shapely.Point(0, 0).buffer(1, quad_segs=6000), "24,001 vertices, more than 20,000; simplify it"),
        ("POLYGON", "not a str"),
    ],
)
def test_ground_that_is_none_is_refused(geometry, words):
    with pytest.raises(QueryError, match=words):
        Area(geometry)


@pytest.mark.parametrize(
    "geojson",
    [
        {},
        {"type": "Polygon"},
        {"type": "Polygon", "coordinates": 3},
        {"type": "Polygon", "coordinates": [[[0, 0], [1]]]},
        {"type": "Polygon", "coordinates": [[["a", "b"]] * 4]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Cube", "coordinates": []},
        {"type": "MultiPolygon", "coordinates": [[[[0, 0, 0], [1, 1, 1, 1], [1, 0], [0, 0]]]]},
        {"type": "Polygon", "coordinates": [[]]},
    ],
)
def test_geojson_that_is_no_ground_is_refused(geojson):
    with pytest.raises(QueryError):
        Area(area_of(geojson))


def test_places_near_and_within_are_those_of_all_distances(world):
    places, drawn, known = world
    west, south, east, north = shapely.bounds(drawn).T
    middles = np.column_stack([geo.wrapped((west + east) / 2), (south + north) / 2])
    for place in ([179.9, 10.0], [-179.9, 0.0], [12.0, 89.9], [0.0, -90.0], [33.3, 44.4]):
        away = geo.great_circle_m(middles, np.array(place))
        for distance in (1_000.0, 100_000.0, 2_000_000.0):
            assert sorted(places.within(np.array(place), distance).tolist()) == np.flatnonzero(known & (away < distance)).tolist()
        near = places.near(*place)
        assert away[near].min() <= np.sort(away[known])[5]


def test_rows_are_packed_once_each_and_those_without_a_place_last():
    rng = np.random.default_rng(0)
    west = rng.uniform(-180, 180, 3000)
    boxes = unrolled(np.column_stack([west, rng.uniform(-90, 89, 3000), geo.wrapped(west + 1), np.full(3000, 90.0)]))
    boxes[::7] = np.nan
    order = packed_order(boxes)
    assert sorted(order.tolist()) == list(range(3000))
    assert np.isnan(boxes[order[-429:], 0]).all()
    assert np.isfinite(boxes[order[:-429]]).all()
    assert packed_order(boxes[:0]).tolist() == []
