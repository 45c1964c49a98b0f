from __future__ import annotations

import datetime
import itertools

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.errors import QueryError, UnknownTileError
from rayjobs.geo import BBox
from rayjobs.retrieval.filters import SearchFilter, parse_interval
from rayjobs.retrieval.kinds import Effort
from rayjobs.retrieval.manifest import IndexManifest, read_index_manifest
from rayjobs.retrieval.search import Searcher
from rayjobs.retrieval.segments import build_segment, load_table
from rayjobs.retrieval.shards import load_shards
from rayjobs.storage import Artefact, open_store

DIM = 8
DAY = datetime.datetime(2021, 6, 1, tzinfo=datetime.UTC)


def unit(rng, count):
    vectors = rng.normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def square(lon, lat, side=0.1):
    """A tile's footprint; one that reaches over the antimeridian in two parts, as footprints are stored."""
    east = lon + side
    if east <= 180:
        return shapely.box(lon, lat, east, lat + side)
    return shapely.MultiPolygon([shapely.box(lon, lat, 180, lat + side), shapely.box(-180, lat, east - 360, lat + side)])


def table_of(places, dates):
    ids = [f"tile{number:04d}" for number in range(len(places))]
    return pa.table(
        {
            "tile_id": ids,
            "geometry": pa.array([None if place is None else shapely.to_wkb(square(*place)) for place in places], pa.binary()),
            "datetime": pa.array(dates, pa.timestamp("us", tz="UTC")),
            "scene_id": ["s"] * len(places),
        }
    )


def scattered(rng, count):
    """Tiles all over the globe, round the antimeridian most of all; some without a place or a date."""
    lons = np.where(rng.random(count) < 0.5, rng.uniform(-180, 180, count), np.mod(rng.normal(180, 3, count) + 180, 360) - 180)
    lats = rng.uniform(-89, 89, count)
    places = [None if rng.random() < 0.1 else (float(lon), float(lat)) for lon, lat in zip(lons, lats, strict=True)]
    dates = [None if rng.random() < 0.1 else DAY + datetime.timedelta(hours=int(rng.integers(0, 200))) for _ in range(count)]
    return places, dates


def published(folder, vectors, table, per_segment=1000, change=None):
    """An index version in a workspace; `change(name, data)` alters files before they are written."""
    artefact = Artefact(open_store(f"file:{folder}"), "indexes", "test")
    draft = artefact.draft("v1")
    entries = []
    for number, start in enumerate(range(0, len(vectors), per_segment)):
        part = slice(start, start + per_segment)
        entry, files = build_segment(f"segment-{number:05d}", vectors[part], table.slice(start, per_segment))
        entries.append(entry)
        for name, data in files.items():
            draft.write(name, change(name, data) if change else data)
    manifest = IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="0" * 64,
        distance="cosine",
        dimension=DIM,
        kind="flat",
        why="few",
        effort=Effort(),
        recall=None,
        quantiser=None,
        segments=tuple(entries),
        deleted=0,
    )
    return draft.publish({"parents": {}, "counts": {}, **manifest.fields()})


def searcher_of(folder, vectors, table, per_segment=1000, tombstones=()):
    version = published(folder, vectors, table, per_segment)
    manifest = read_index_manifest(version.manifest, "here")
    tables = [load_table(version, entry, folder) for entry in manifest.segments]
    return Searcher(load_shards(version, manifest, folder), tables, tombstones=tombstones)


def passes(place, date, bbox, interval):
    """The filter's rule for one tile, in single comparisons: boxes as sets of whole thousandths of a degree are too many, so by cases."""
    if bbox is not None:
        if place is None:
            return False
        lon, lat = place
        if lat > bbox.north or lat + 0.1 < bbox.south:
            return False
        east = bbox.east if bbox.east >= bbox.west else bbox.east + 360
        if not any(lon + turn <= east and lon + 0.1 + turn >= bbox.west for turn in (-360, 0, 360)):
            return False
    if interval is not None:
        first, last = interval
        return date is not None and (first is None or date >= first) and (last is None or date <= last)
    return True


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    rng = np.random.default_rng(0)
    places, dates = scattered(rng, 600)
    vectors = unit(rng, 600)
    dead = [f"tile{number:04d}" for number in range(0, 600, 17)]
    folder = tmp_path_factory.mktemp("world")
    return searcher_of(folder, vectors, table_of(places, dates), 170, dead), vectors, places, dates, set(dead)


lons = st.floats(-180, 180)
boxes = st.none() | st.tuples(lons, st.floats(-90, 90), lons, st.floats(-90, 90)).map(
    lambda v: BBox(v[0], min(v[1], v[3]), v[2], max(v[1], v[3]))
)
moments = st.none() | st.integers(-10, 210).map(lambda hours: DAY + datetime.timedelta(hours=hours))
intervals = st.none() | st.tuples(moments, moments)


@settings(max_examples=150, deadline=None)
@given(bbox=boxes, interval=intervals, limit=st.integers(1, 700), query=st.integers(0, 599), leave_out=st.integers(0, 3))
def test_a_filtered_search_equals_brute_force_and_never_falls_short(world, bbox, interval, limit, query, leave_out):
    searcher, vectors, places, dates, dead = world
    without = [f"tile{query + step:04d}" for step in range(leave_out)]
    hits = searcher.search(vectors[query], limit, only=SearchFilter(bbox=bbox, interval=interval), without=without)
    passing = [
        row
        for row in range(600)
        if f"tile{row:04d}" not in dead and f"tile{row:04d}" not in without and passes(places[row], dates[row], bbox, interval)
    ]
    similar = vectors.astype(np.float64) @ vectors[query].astype(np.float64)
    wanted = sorted(passing, key=lambda row: -similar[row])[:limit]
    assert hits.rows.tolist() == wanted
    assert hits.candidates == len(passing)
    assert hits.exact
    np.testing.assert_allclose(hits.scores, similar[wanted], atol=1e-6)


def test_segments_answer_as_one(tmp_path):
    rng = np.random.default_rng(4)
    vectors, (places, dates) = unit(rng, 90), scattered(rng, 90)
    whole = searcher_of(tmp_path / "one", vectors, table_of(places, dates))
    cut = searcher_of(tmp_path / "many", vectors, table_of(places, dates), 7)
    for row, limit in itertools.product((0, 50, 89), (1, 10, 200)):
        left, right = whole.search(vectors[row], limit), cut.search(vectors[row], limit)
        assert left.rows.tolist() == right.rows.tolist()
    assert all(np.array_equal(cut.vector_of(f"tile{row:04d}"), vectors[row]) for row in range(90))
    assert cut.describe([88, 3])[0]["tile_id"] == "tile0088"


def test_a_box_about_a_pole_meets_every_longitude(tmp_path):
    cap = shapely.box(-180, 85, 180, 90)
    table = table_of([(0.0, 0.0)], [None])
    table = table.set_column(1, "geometry", pa.array([shapely.to_wkb(cap)], pa.binary()))
    vectors = unit(np.random.default_rng(0), 1)
    searcher = searcher_of(tmp_path, vectors, table)
    for box in (BBox(10, 80, 20, 89), BBox(170, 86, -170, 87), BBox(-180, -90, 180, 90)):
        assert searcher.search(vectors[0], 1, only=SearchFilter(bbox=box)).candidates == 1
    assert searcher.search(vectors[0], 1, only=SearchFilter(bbox=BBox(10, 80, 20, 84))).candidates == 0


@pytest.mark.parametrize(
    ("vector", "limit"), [(np.ones(DIM + 1), 1), (np.full(DIM, np.nan), 1), (np.ones((1, DIM)), 1), (np.ones(DIM), 0), (np.ones(DIM), -3)]
)
def test_queries_that_cannot_be_answered_are_refused(world, vector, limit):
    with pytest.raises(QueryError):
        world[0].search(vector.astype(np.float32), limit)


def test_unknown_and_deleted_tiles_are_errors(world):
    for tile in ("nothing", "tile0017"):
        with pytest.raises(UnknownTileError, match=tile):
            world[0].vector_of(tile)


def test_a_place_is_found_in_the_tile_that_holds_it(tmp_path):
    places = [(10.0, 50.0), (10.06, 50.0), (179.95, 0.0), None]
    vectors = unit(np.random.default_rng(0), 4)
    searcher = searcher_of(tmp_path, vectors, table_of(places, [None] * 4))
    assert searcher.tile_at(10.01, 50.05) == "tile0000"
    assert searcher.tile_at(10.07, 50.05) == "tile0000"  # in both; nearer the first one's middle
    assert searcher.tile_at(10.09, 50.05) == "tile0001"
    assert searcher.tile_at(179.99, 0.05) == searcher.tile_at(-179.96, 0.05) == "tile0002"
    with pytest.raises(UnknownTileError, match=r"11\.1 km away"):
        searcher.tile_at(-179.9, 0.05)  # 0.1 degrees on the equator from the middle, which lies on the antimeridian
    for lon, lat in ((200.0, 0.0), (0.0, 91.0), (float("nan"), 0.0)):
        with pytest.raises(QueryError):
            searcher.tile_at(lon, lat)


def test_without_places_a_point_query_says_what_else_to_do(tmp_path):
    searcher = searcher_of(tmp_path, unit(np.random.default_rng(0), 2), table_of([None, None], [None, None]))
    with pytest.raises(UnknownTileError, match="search by tile_id"):
        searcher.tile_at(0, 0)


@pytest.mark.parametrize(
    ("filters", "word"),
    [({"bbox": BBox(0, 0, 1, 1)}, "bbox"), ({"interval": (DAY, None)}, "datetime"), ({"interval": (None, None)}, "datetime")],
)
def test_a_filter_by_what_no_tile_has_is_refused_and_not_answered_with_nothing(tmp_path, filters, word):
    vectors = unit(np.random.default_rng(0), 2)
    plain = searcher_of(tmp_path / "plain", vectors, table_of([None, None], [None, None]))
    with pytest.raises(QueryError, match=f"no tile of the index has a .*; leave {word} out"):
        plain.search(vectors[0], 1, only=SearchFilter(**filters))
    some = searcher_of(tmp_path / "some", vectors, table_of([None, (50.0, 50.0)], [None, DAY - datetime.timedelta(days=1)]))
    assert len(some.search(vectors[0], 1, only=SearchFilter(**filters)).rows) <= 1


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2021-06-01", "2021-06-01T00:00:00+00:00", "2021-06-01T23:59:59.999999+00:00"),
        ("2021-06-01/2021-06-03", "2021-06-01T00:00:00+00:00", "2021-06-03T23:59:59.999999+00:00"),
        ("2021-06-01T12:00:00Z", "2021-06-01T12:00:00+00:00", "2021-06-01T12:00:00+00:00"),
        ("2021-06-01T12:00:00+02:00/..", "2021-06-01T10:00:00+00:00", None),
        ("../2021-06-01T12:00:00", None, "2021-06-01T12:00:00+00:00"),
        ("../..", None, None),
    ],
)
def test_intervals_are_read_in_the_words_of_stac(text, first, last):
    assert [moment and moment.isoformat() for moment in parse_interval(text)] == [first, last]


@pytest.mark.parametrize(
    "text", ["yesterday", "2021-13-01", "2021-06-02/2021-06-01", "2021-06-01/2021-06-02/2021-06-03", "0001-01-01T00:00:00+23:00", "2021"]
)
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(QueryError):
        parse_interval(text)
