from __future__ import annotations

import datetime
import hashlib
import itertools

import faiss
import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.errors import IndexCorruptError, QueryError, UnknownTileError
from rayjobs.geo import BBox
from rayjobs.retrieval import segments as room
from rayjobs.retrieval.manifest import IndexManifest, SegmentEntry, read_index_manifest
from rayjobs.retrieval.search import Searcher, SearchFilter, parse_interval
from rayjobs.retrieval.segments import build_segment, load_segment
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
        quantiser=None,
        segments=tuple(entries),
        tombstones=(),
    )
    return draft.publish({"parents": {}, "counts": {}, **manifest.fields()})


def searcher_of(folder, vectors, table, per_segment=1000, tombstones=()):
    version = published(folder, vectors, table, per_segment)
    manifest = read_index_manifest(version.manifest, "here")
    return Searcher([load_segment(version, entry, DIM, folder) for entry in manifest.segments], tombstones=tombstones)


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


def never(*_args):
    pytest.fail("faiss was asked to read a file that differs from its digest")


@pytest.mark.parametrize("suffix", [".faiss", ".parquet"])
@pytest.mark.parametrize("alter", [lambda data: data[:-9], lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda _: b""])
def test_a_file_that_differs_from_its_digest_is_never_read(tmp_path, monkeypatch, suffix, alter):
    vectors = unit(np.random.default_rng(0), 5)
    version = published(tmp_path, vectors, table_of([None] * 5, [None] * 5))
    entry = read_index_manifest(version.manifest, "here").segments[0]
    path = version.store.fetch(version.prefix + entry.name + suffix, tmp_path)
    path.write_bytes(alter(path.read_bytes()))
    monkeypatch.setattr(room.faiss, "read_index", never)
    with pytest.raises(IndexCorruptError, match="differs from its manifest"):
        load_segment(version, entry, DIM, tmp_path)


def garbage(name, data):
    return hashlib.sha256(data).digest() * 30 if name.endswith(".faiss") else data


def cut_off(name, data):
    return data[:-40] if name.endswith(".faiss") else data


def no_table(name, data):
    return data if name.endswith(".faiss") else b"PAR1rubbishPAR1"


def another_kind(name, data):
    if not name.endswith(".faiss"):
        return data
    index = faiss.IndexFlatL2(DIM)
    index.add(unit(np.random.default_rng(0), 5))
    return faiss.serialize_index(index).tobytes()


def fewer_rows(name, data):
    if not name.endswith(".faiss"):
        return data
    index = faiss.IndexFlatIP(DIM)
    index.add(unit(np.random.default_rng(0), 4))
    return faiss.serialize_index(index).tobytes()


@pytest.mark.parametrize("change", [garbage, cut_off, no_table, another_kind, fewer_rows])
def test_a_segment_that_is_not_what_its_manifest_says_is_refused(tmp_path, change):
    version = published(tmp_path, unit(np.random.default_rng(0), 5), table_of([None] * 5, [None] * 5), change=change)
    with pytest.raises(IndexCorruptError):
        load_segment(version, read_index_manifest(version.manifest, "here").segments[0], DIM, tmp_path)


def test_a_segment_of_another_dimension_is_refused(tmp_path):
    version = published(tmp_path, unit(np.random.default_rng(0), 5), table_of([None] * 5, [None] * 5))
    with pytest.raises(IndexCorruptError, match="not the 5 of 9"):
        load_segment(version, read_index_manifest(version.manifest, "here").segments[0], DIM + 1, tmp_path)


@pytest.mark.parametrize("fault", ["long", "nan", "short table", "empty"])
def test_vectors_that_cannot_be_searched_are_not_indexed(fault):
    vectors, table = unit(np.random.default_rng(0), 5), table_of([None] * 5, [None] * 5)
    if fault == "long":
        vectors[2] *= 1.1
    elif fault == "nan":
        vectors[2, 1] = np.nan
    elif fault == "short table":
        table = table.slice(1)
    else:
        vectors, table = vectors[:0], table.slice(5)
    with pytest.raises(ValueError, match="segment-00000"):
        build_segment("segment-00000", vectors, table)


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


def test_a_segment_tells_its_bounds_and_dates():
    later = DAY + datetime.timedelta(days=3)
    table = table_of([(179.0, -5.0), (-179.5, 2.0), None], [later, None, DAY])
    entry, _ = build_segment("segment-00003", unit(np.random.default_rng(0), 3), table)
    assert entry.rows == 3
    assert entry.bounds == pytest.approx((179.0, -5.0, -179.4, 2.1))
    assert entry.dates == (DAY.isoformat(), later.isoformat())
    bare, _ = build_segment("segment-00004", unit(np.random.default_rng(0), 1), table_of([None], [None]))
    assert bare.bounds is None
    assert bare.dates is None


def good_manifest():
    entry = SegmentEntry(name="segment-00000", rows=3, bounds=(1.0, 2.0, 3.0, 4.0), dates=("a", "b"))
    return IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="ab" * 32,
        distance="cosine",
        dimension=4,
        quantiser=None,
        segments=(entry,),
        tombstones=("t",),
    )


def test_a_manifest_comes_back_as_it_went():
    assert read_index_manifest(good_manifest().fields(), "here") == good_manifest()


def hostile(**changes):
    fields = good_manifest().fields()["index"]
    segment = {name.removeprefix("segment_"): changes.pop(name) for name in list(changes) if name.startswith("segment_")}
    return {"index": fields | changes | {"segments": [fields["segments"][0] | segment]}}


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"index": None},
        {"index": []},
        hostile(surprise=1),
        hostile(dimension=0),
        hostile(dimension=10**9),
        hostile(dimension="4"),
        hostile(distance="hamming"),
        hostile(encoder_fingerprint="ab"),
        hostile(encoder_fingerprint="ab" * 32 + "\n"),
        hostile(segment_name="../../etc/passwd"),
        hostile(segment_name="segment-00000\n"),
        hostile(segment_name="segment-\u0966\u0966\u0966\u0966\u0966"),
        hostile(segment_rows=0),
        hostile(segment_rows=-1),
        hostile(segment_rows=2.5),
        hostile(segment_bounds=[1.0, 2.0]),
        {"index": good_manifest().fields()["index"] | {"segments": []}},
        {"index": good_manifest().fields()["index"] | {"segments": good_manifest().fields()["index"]["segments"] * 2}},
    ],
    ids=str,
)
def test_a_hostile_manifest_is_refused(manifest):
    with pytest.raises(IndexCorruptError, match="here"):
        read_index_manifest(manifest, "here")


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
