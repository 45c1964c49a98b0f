"""Segments: built, opened after their digests were checked, searched exactly and approximately."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import io
import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval import segments as room
from rayjobs.retrieval.kinds import KINDS, Effort
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.segments import build_segment, load_segment, load_table
from rayjobs.storage import Artefact, open_store

DIM = 8
DAY = datetime.datetime(2021, 6, 1, tzinfo=datetime.UTC)


def unit(rng, count):
    vectors = rng.normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def square(lon, lat, side=0.1):
    """A tile's footprint; one that reaches over the antimeridian in two parts, as footprints are stored."""
    if lon + side <= 180:
        return shapely.box(lon, lat, lon + side, lat + side)
    return shapely.MultiPolygon([shapely.box(lon, lat, 180, lat + side), shapely.box(-180, lat, lon + side - 360, lat + side)])


def table_of(places, dates=None):
    footprints = [None if place is None else shapely.to_wkb(square(*place)) for place in places]
    return pa.table(
        {
            "tile_id": [f"tile{number:06d}" for number in range(len(places))],
            "geometry": pa.array(footprints, pa.binary()),
            "datetime": pa.array(dates or [None] * len(places), pa.timestamp("us", tz="UTC")),
        }
    )


def published(folder, vectors, kind="flat", change=None):
    """An index version of one segment; `change(name, data)` alters files before they are written."""
    quantiser = KINDS[kind].dumped(KINDS[kind].trained(vectors)) if KINDS[kind].trains else None
    entry, files = build_segment("segment-00000", vectors, table_of([None] * len(vectors)), kind=kind, quantiser=quantiser)
    draft = Artefact(open_store(f"file:{folder}"), "indexes", "test").draft("v1")
    for name, data in files.items():
        draft.write(name, change(name, data) if change else data)
    manifest = IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="0" * 64,
        distance="cosine",
        dimension=DIM,
        kind=kind,
        why="asked for",
        effort=Effort(),
        recall=None,
        quantiser=hashlib.sha256(quantiser).hexdigest() if quantiser else None,
        segments=(entry,),
        deleted=0,
    )
    return draft.publish({"parents": {}, "counts": {}, **manifest.fields()}), manifest


def loaded(folder, vectors, kind="flat", change=None, **fields):
    version, manifest = published(folder, vectors, kind, change)
    manifest = dataclasses.replace(manifest, **fields)
    load_table(version, manifest.segments[0], folder)
    return load_segment(version, manifest.segments[0], manifest, folder)


def never(*_args):
    pytest.fail("a file that differs from its digest was read")


@pytest.mark.parametrize("ending", ["vectors", "faiss", "parquet"])
@pytest.mark.parametrize("alter", [lambda data: data[:-9], lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda _: b""])
def test_a_file_that_differs_from_its_digest_is_never_read(tmp_path, monkeypatch, ending, alter):
    version, manifest = published(tmp_path, unit(np.random.default_rng(0), 50), "ivf_pq")
    path = version.store.fetch(f"{version.prefix}segment-00000.{ending}", tmp_path)
    path.write_bytes(alter(path.read_bytes()))
    monkeypatch.setattr(faiss, "read_index", never)
    monkeypatch.setattr(room.Metadata, "open", never)
    load = load_table if ending == "parquet" else functools.partial(load_segment, manifest=manifest)
    with pytest.raises(IndexCorruptError, match="differs from its manifest"):
        load(version, manifest.segments[0], cache=tmp_path)


def garbage(name, data):
    return data if name.endswith(".parquet") else hashlib.sha256(data).digest() * 30


def cut_off(name, data):
    return data if name.endswith(".parquet") else data[:-40]


def no_table(name, data):
    return b"PAR1rubbishPAR1" if name.endswith(".parquet") else data


def without_a_column(name, data):
    if not name.endswith(".parquet"):
        return data
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(data)).drop_columns(["geometry"]), buffer)
    return buffer.getvalue()


def another_metric(name, data):
    if not name.endswith(".vectors"):
        return data
    index = faiss.IndexFlatL2(DIM)
    index.add(unit(np.random.default_rng(0), 5))
    return KINDS["flat"].dumped(index)


def fewer_rows(name, data):
    if not name.endswith(".vectors"):
        return data
    index = faiss.IndexFlatIP(DIM)
    index.add(unit(np.random.default_rng(0), 4))
    return KINDS["flat"].dumped(index)


@pytest.mark.parametrize("change", [garbage, cut_off, no_table, without_a_column, another_metric, fewer_rows])
def test_a_segment_that_is_not_what_its_manifest_says_is_refused(tmp_path, change):
    with pytest.raises(IndexCorruptError):
        loaded(tmp_path, unit(np.random.default_rng(0), 5), change=change)


def test_a_segment_of_another_dimension_is_refused(tmp_path):
    with pytest.raises(IndexCorruptError, match="not the 5 of 9"):
        loaded(tmp_path, unit(np.random.default_rng(0), 5), dimension=DIM + 1)


@pytest.mark.parametrize("fault", ["long", "nan", "short table", "empty", "unsorted", "twice"])
def test_vectors_that_cannot_be_searched_are_not_indexed(fault):
    vectors, table = unit(np.random.default_rng(0), 5), table_of([None] * 5)
    if fault == "long":
        vectors[2] *= 1.1
    elif fault == "nan":
        vectors[2, 1] = np.nan
    elif fault == "short table":
        table = table.slice(1)
    elif fault == "empty":
        vectors, table = vectors[:0], table.slice(5)
    else:
        table = table.take([0, 2, 1, 3, 4] if fault == "unsorted" else [0, 1, 1, 2, 3])
    with pytest.raises(ValueError, match="segment-00000"):
        build_segment("segment-00000", vectors, table)


@pytest.mark.parametrize(("kind", "quantiser"), [("ivf_pq", None), ("flat", b"x"), ("hnsw", b"x")])
def test_a_quantiser_is_for_kinds_that_train(kind, quantiser):
    with pytest.raises(ValueError, match="quantiser"):
        build_segment("segment-00000", unit(np.random.default_rng(0), 5), table_of([None] * 5), kind=kind, quantiser=quantiser)


def test_a_segment_tells_its_bounds_and_dates():
    later = DAY + datetime.timedelta(days=3)
    table = table_of([(179.0, -5.0), (-179.5, 2.0), None], [later, None, DAY])
    entry, _ = build_segment("segment-00003", unit(np.random.default_rng(0), 3), table)
    assert entry.rows == 3
    assert entry.bounds == pytest.approx((179.0, -5.0, -179.4, 2.1))
    assert entry.dates == (DAY.isoformat(), later.isoformat())
    bare, _ = build_segment("segment-00004", unit(np.random.default_rng(0), 1), table_of([None]))
    assert bare.bounds is None
    assert bare.dates is None


def test_metadata_is_geoparquet_with_a_box_for_each_tile():
    _, files = build_segment("segment-00000", unit(np.random.default_rng(0), 3), table_of([(10.0, 5.0), (179.95, 2.0), None]))
    table = pq.read_table(io.BytesIO(files["segment-00000.parquet"]))
    assert table["bbox"].to_pylist() == [
        {"xmin": 10.0, "ymin": 5.0, "xmax": 10.1, "ymax": 5.1},
        {"xmin": 179.95, "ymin": 2.0, "xmax": pytest.approx(-179.95), "ymax": 2.1},
        None,
    ]
    said = json.loads(table.schema.metadata[b"geo"])
    assert said["version"] == "1.1.0"
    assert said["columns"]["geometry"]["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]


def test_boxes_are_made_anew_when_a_segment_is_built_of_segments():
    vectors = unit(np.random.default_rng(0), 2)
    _, files = build_segment("segment-00000", vectors, table_of([(10.0, 5.0), None]))
    table = pq.read_table(io.BytesIO(files["segment-00000.parquet"]))
    _, again = build_segment("segment-00001", vectors, table)
    assert pq.read_table(io.BytesIO(again["segment-00001.parquet"])).equals(table)


def brute(vectors, query, chosen, count):
    """Rows by score, ties by row, in float64 rounded so that equal vectors are equal."""
    scores = np.round(vectors.astype(np.float64) @ query.astype(np.float64), 12)
    return sorted(np.flatnonzero(chosen), key=lambda row: (-scores[row], row))[:count]


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_ties_are_broken_by_row_however_many_there_are(tmp_path, batch, some, count):
    rng = np.random.default_rng(1)
    vectors = unit(rng, 30)[rng.integers(0, 30, 3000)]  # each about 100 times
    segment = loaded(tmp_path, vectors)
    chosen = rng.random(3000) < 0.5 if some else None
    queries = unit(rng, batch)
    scores, rows = segment.exact(queries, count, chosen)
    passing = np.ones(3000, bool) if chosen is None else chosen
    for query, found in zip(queries[:5], rows[:5], strict=False):
        assert found.tolist() == brute(vectors, query, passing, count)
    alone, _ = segment.exact(queries[:1], count, chosen)
    np.testing.assert_array_equal(alone[0], scores[0])


def test_what_is_short_of_hits_is_filled_up(tmp_path):
    vectors = unit(np.random.default_rng(0), 5)
    segment = loaded(tmp_path, vectors)
    scores, rows = segment.exact(vectors[:2], 4, np.array([False, True, False, True, False]))
    assert sorted(rows[0][:2]) == [1, 3]
    assert rows[:, 2:].tolist() == [[-1, -1], [-1, -1]]
    assert np.isneginf(scores[:, 2:]).all()
    assert segment.exact(vectors[:2], 3, np.zeros(5, bool))[1].tolist() == [[-1] * 3] * 2
    assert segment.exact(vectors[:0], 3)[1].shape == (0, 3)


def test_a_vector_comes_back_as_it_went(tmp_path):
    vectors = unit(np.random.default_rng(0), 60)
    segment = loaded(tmp_path, vectors, "ivf_pq")
    np.testing.assert_array_equal(segment.vector_of(41), vectors[41])
    assert (segment.rows, segment.dimension, segment.kind) == (60, DIM, "ivf_pq")
