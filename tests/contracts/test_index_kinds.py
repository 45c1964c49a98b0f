"""What every kind of index promises. The oracle is a product of matrices in float64."""

from __future__ import annotations

import datetime
import hashlib

import faiss
import numpy as np
import pyarrow as pa
import pytest

from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval.kinds import KINDS, STORES, Effort, lists_for, sample_rows, sample_size
from rayjobs.retrieval.kinds.kind import END
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.segments import build_segment, load_segment
from rayjobs.storage import Artefact, open_store

DIM, SMALL, LARGE = 32, 400, 20_000
COMPRESSED = [name for name, kind in KINDS.items() if not kind.exact]
TRAINED = [name for name, kind in KINDS.items() if kind.trains]
ALL = Effort(nprobe=10**6, ef=4096, k_factor=1024)
USUAL = Effort(nprobe=60, ef=100, k_factor=20)
FLOORS = {"flat": 1.0, "hnsw": 0.97, "ivf_flat": 0.97, "ivf_pq": 0.97, "ivf_rabitq": 0.97, "sq8": 0.999, "binary": 0.7}
FLOORS |= {"hamming": 1.0, "hamming_ivf": 0.97}
"""Least recall at 10 of 20,000 clustered vectors with the usual effort. Signs of 32 dimensions tell little."""
LISTED = ["ivf_flat", "ivf_pq", "ivf_rabitq", "hamming_ivf"]


@pytest.fixture(autouse=True)
def _one_thread():
    faiss.omp_set_num_threads(1)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(count, dim=DIM, seed=0, kind="flat"):
    """Embeddings of some tens of things, each of which varies in a few directions; their signs, for kinds that keep codes."""
    rng, shape = np.random.default_rng(seed), np.random.default_rng(99)
    centres, directions = shape.normal(size=(40, 12)), shape.normal(size=(12, dim))
    vectors = (centres[rng.integers(0, 40, count)] + 0.6 * rng.normal(size=(count, 12))) @ directions + 0.1 * rng.normal(size=(count, dim))
    return unit(np.where(vectors > 0, 1.0, -1.0) if KINDS[kind].store == "hamming" else vectors)


def table_of(count):
    return pa.table(
        {
            "tile_id": [f"{number:020x}" for number in range(count)],
            "geometry": pa.array([None] * count, pa.binary()),
            "datetime": pa.array([datetime.datetime(2021, 6, 1, tzinfo=datetime.UTC)] * count, pa.timestamp("us", tz="UTC")),
        }
    )


def quantiser_of(kind, vectors):
    return KINDS[kind].dumped(KINDS[kind].trained(vectors)) if KINDS[kind].trains else None


def manifest_of(kind, entry, dim):
    return IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="0" * 64,
        distance="cosine",
        dimension=dim,
        kind=kind,
        why="asked for",
        effort=Effort(),
        recall=None,
        quantiser="0" * 64 if KINDS[kind].trains else None,
        segments=(entry,),
        deleted=0,
    )


def opened(folder, kind, vectors, change=None):
    """A segment that was built, published and loaded; `change(data)` alters the compressed index before it is written."""
    entry, files = build_segment("segment-00000", vectors, table_of(len(vectors)), kind=kind, quantiser=quantiser_of(kind, vectors))
    draft = Artefact(open_store(f"file:{folder}"), "indexes", "test").draft("v1")
    main = "segment-00000.vectors" if KINDS[kind].exact else "segment-00000.faiss"
    for name, data in files.items():
        draft.write(name, change(data) if change and name == main else data)
    version = draft.publish({"parents": {}, "counts": {}})
    return load_segment(version, entry, manifest_of(kind, entry, vectors.shape[1]), folder)


def nearest(vectors, queries, count, chosen=None):
    """Scores (q, count) and rows of the nearest, ties by row."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    scores[:, ~np.ones(len(vectors), bool) if chosen is None else ~chosen] = -np.inf
    order = np.argsort(-np.round(scores, 10), axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, axis=1), order


def recall_of(scores, wanted):
    """Share of hits that score as the wanted ones do: of equal vectors, any is right."""
    return float((scores >= wanted[:, -1:] - 1e-5).mean())


def test_every_kind_has_a_floor_and_its_own_name():
    assert set(FLOORS) == set(KINDS)
    assert all(name == kind.name for name, kind in KINDS.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [DIM, 7, 33])
def test_with_all_effort_a_small_index_equals_exact_search(tmp_path, kind, dim):
    vectors, queries = clustered(SMALL, dim, kind=kind), clustered(30, dim, seed=1, kind=kind)
    scores, rows = opened(tmp_path, kind, vectors).approximate(queries, 10, None, ALL)
    wanted_scores, wanted_rows = nearest(vectors, queries, 10)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-5)
    np.testing.assert_array_equal(rows, wanted_rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_index_finds_most(tmp_path, kind):
    vectors, queries = clustered(LARGE, kind=kind), clustered(200, seed=1, kind=kind)
    segment = opened(tmp_path, kind, vectors)
    scores, rows = segment.approximate(queries, 10, None, USUAL)
    assert recall_of(scores, nearest(vectors, queries, 10)[0]) >= FLOORS[kind]
    np.testing.assert_allclose(scores, np.einsum("qd,qnd->qn", queries, vectors[rows]), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    chosen = np.random.default_rng(3).random(LARGE) < 0.3
    scores, rows = segment.approximate(queries, 10, chosen, USUAL.widened(3))
    assert chosen[rows[rows >= 0]].all()
    assert recall_of(scores, nearest(vectors, queries, 10, chosen)[0]) >= FLOORS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_answers_as_before(tmp_path, kind):
    vectors, queries = clustered(3000, kind=kind), clustered(20, seed=1, kind=kind)
    segment = opened(tmp_path, kind, vectors)
    made, store, effort = KINDS[kind], STORES[KINDS[kind].store], Effort(nprobe=5, ef=40, k_factor=4)
    index, exact = (one.filled(one.trained(vectors), vectors) for one in (made, store))
    if made.exact:
        before = made.nearest(index, queries, 10, None)
    else:
        before = made.attached(index, exact).search(queries, 10, params=made.parameters(effort))
    after = segment.approximate(queries, 10, None, effort)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    if not made.exact:
        np.testing.assert_allclose(len(made.dumped(index)) / 3000, made.bytes_per_vector(DIM), rtol=0.5, atol=30)


@pytest.mark.parametrize("kind", TRAINED)
def test_training_twice_gives_the_same_quantiser(kind):
    vectors = clustered(3000, kind=kind)
    assert quantiser_of(kind, vectors) == quantiser_of(kind, vectors)
    KINDS[kind].read_quantiser(quantiser_of(kind, vectors), DIM)
    with pytest.raises(IndexCorruptError):
        KINDS[kind].read_quantiser(quantiser_of(kind, vectors), DIM + 8)
    with pytest.raises(IndexCorruptError):
        KINDS[kind].read_quantiser(b"rubbish" * 50, DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_only_chosen_rows_are_found_and_what_is_missing_is_minus_one(tmp_path, kind):
    vectors, queries = clustered(SMALL, kind=kind), clustered(5, seed=1, kind=kind)
    segment = opened(tmp_path, kind, vectors)
    chosen = np.zeros(SMALL, bool)
    chosen[[3, 77, 300]] = True
    for scores, rows in (segment.approximate(queries, 5, chosen, ALL), segment.exact(queries, 5, chosen)):
        assert scores.shape == rows.shape == (5, 5)
        assert scores.dtype == np.float32
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows[:, :3], nearest(vectors, queries, 3, chosen)[1])
        assert (rows[:, 3:] == -1).all()
        assert np.isneginf(scores[:, 3:]).all()
    scores, rows = segment.approximate(queries, SMALL + 50, None, ALL)
    assert rows.shape == (5, SMALL + 50)
    assert (rows[:, SMALL:] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_vectors_are_all_found_in_the_order_of_rows(tmp_path, kind):
    few = clustered(20, kind=kind)
    vectors = np.tile(few, (20, 1))
    segment = opened(tmp_path, kind, vectors)
    for query, row in ((few[:1], 0), (few[7:8], 7)):
        scores, rows = segment.approximate(query, 20, None, ALL)
        assert rows[0].tolist() == list(range(row, SMALL, 20))
        assert len(set(scores[0].tolist())) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_a_handful_of_vectors_is_an_index_too(tmp_path, kind, count):
    vectors = clustered(count, kind=kind)
    scores, rows = opened(tmp_path, kind, vectors).approximate(vectors, count, None, ALL)
    assert (rows[:, 0] == np.arange(count)).all()
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def another_type(_data):
    index = faiss.IndexLSH(DIM, 16)
    index.add(clustered(SMALL))
    return faiss.serialize_index(index).tobytes() + END


def another_metric(data):
    if data[:2] == b"IB":
        return another_type(data)
    index = faiss.deserialize_index(np.frombuffer(data, np.uint8), faiss.IO_FLAG_SKIP_STORAGE)
    index.metric_type = faiss.METRIC_L2
    return faiss.serialize_index(index, faiss.IO_FLAG_SKIP_STORAGE).tobytes() + END


def of(kind, vectors):
    made = KINDS[kind]
    return made.dumped(made.filled(made.trained(vectors), vectors))


def hostile(kind):
    """Files that a hostile writer with access to the workspace would give a right digest."""
    yield "wrong type", another_type
    yield "wrong metric", another_metric
    yield "wrong dimension", lambda _: of(kind, clustered(SMALL, 16, kind=kind))
    yield "fewer rows", lambda _: of(kind, clustered(SMALL - 1, kind=kind))
    yield "more rows", lambda _: of(kind, clustered(SMALL + 1, kind=kind))
    yield "truncated", lambda data: data[: len(data) // 2]
    yield "last byte gone", lambda data: data[:-1]
    yield "truncated behind the mark", lambda data: data[: len(data) // 2] + END
    yield "empty", lambda _: b""
    yield "noise", lambda data: hashlib.shake_256(data).digest(len(data)) + END
    for name in KINDS:
        if name != kind and {name, kind} != {"binary", "hamming"}:  # the signs of vectors are codes
            yield f"a whole {name}", lambda _, name=name: of(name, clustered(SMALL, kind=name))


@pytest.mark.parametrize(("kind", "fault", "change"), [(kind, fault, change) for kind in KINDS for fault, change in hostile(kind)])
def test_a_hostile_file_is_refused_before_it_is_searched(tmp_path, kind, fault, change):
    with pytest.raises(IndexCorruptError, match="segment-00000"):
        opened(tmp_path, kind, clustered(SMALL, kind=kind), change)
    assert fault


def renumbered(kind):
    """An inverted file with an id that leads out of the exact vectors."""
    vectors = clustered(SMALL, kind=kind)
    index = KINDS[kind].filled(KINDS[kind].trained(vectors), vectors)
    inverted = KINDS[kind].lists(index)
    lists = faiss.downcast_InvertedLists(inverted.invlists)
    number = next(number for number in range(inverted.nlist) if lists.list_size(number))
    ids = faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
    return index, ids


@pytest.mark.parametrize("kind", LISTED)
@pytest.mark.parametrize("row", [SMALL, -1, 2**40])
def test_ids_that_lead_elsewhere_are_refused(tmp_path, kind, row):
    index, ids = renumbered(kind)
    ids[0] = row
    with pytest.raises(IndexCorruptError, match="row that does not exist"):
        opened(tmp_path, kind, clustered(SMALL, kind=kind), lambda _: KINDS[kind].dumped(index))


@pytest.mark.parametrize("kind", LISTED)
def test_rows_that_no_list_holds_are_refused(tmp_path, kind):
    index, ids = renumbered(kind)
    ids[0] = ids[1]
    with pytest.raises(IndexCorruptError, match="leave rows out"):
        opened(tmp_path, kind, clustered(SMALL, kind=kind), lambda _: KINDS[kind].dumped(index))


@pytest.mark.parametrize("kind", LISTED)
def test_rows_that_lists_hold_twice_are_refused(tmp_path, kind):
    index, _ = renumbered(kind)
    few = clustered(SMALL, kind=kind)[:3]
    index.add_with_ids(np.packbits(few > 0, axis=1) if KINDS[kind].store == "hamming" else few, np.arange(3))
    index.ntotal = KINDS[kind].lists(index).ntotal = SMALL
    with pytest.raises(IndexCorruptError, match="more or fewer vectors than it says"):
        opened(tmp_path, kind, clustered(SMALL, kind=kind), lambda _: KINDS[kind].dumped(index))


def bent(part, where, value):
    index = KINDS["hnsw"].filled(None, clustered(SMALL))
    graph = index.hnsw
    if part == "neighbors":
        faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())[where] = value
    elif part in {"levels", "offsets"}:
        getattr(graph, part).at(where)  # bounds are checked
        faiss.rev_swig_ptr(getattr(graph, part).data(), getattr(graph, part).size())[where] = value
    else:
        setattr(graph, part, value)
    return KINDS["hnsw"].dumped(index)


@pytest.mark.parametrize(
    ("part", "where", "value"),
    [("neighbors", 5, SMALL), ("neighbors", 5, -2), ("levels", 9, 40), ("levels", 9, 0), ("offsets", 9, 1), ("entry_point", 0, SMALL)],
)
def test_links_that_lead_elsewhere_are_refused(tmp_path, part, where, value):
    with pytest.raises(IndexCorruptError, match="segment-00000"):
        opened(tmp_path, "hnsw", clustered(SMALL), lambda _: bent(part, where, value))


def test_lists_and_samples_go_by_the_rows():
    assert [lists_for(rows) for rows in (0, 1, 1000, 10_000, 1_000_000)] == [1, 1, 25, 256, 4000]
    assert sample_size(1_000_000) == 256_000
    assert sample_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_rows(1000, 50)
    assert len(set(drawn.tolist())) == 50
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, sample_rows(1000, 50))


@pytest.mark.parametrize("fields", [{"nprobe": 0}, {"ef": -1}, {"k_factor": 0}])
def test_an_effort_that_finds_nothing_is_refused(fields):
    with pytest.raises(ValueError, match="1 or more"):
        Effort(**fields)


def test_a_widened_effort_looks_at_more():
    assert Effort(nprobe=3, k_factor=10).widened(2.5) == Effort(nprobe=8, k_factor=25)


@pytest.mark.parametrize("kind", LISTED)
def test_where_gpus_are_they_cluster_and_the_index_does_not_need_them_then(monkeypatch, kind):
    """The GPU is played by the processor: FAISS asks it for the nearest centroids."""
    asked = []

    def on_gpus(index):
        asked.append(index)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", on_gpus, raising=False)
    vectors = clustered(SMALL, kind=kind)
    played = KINDS[kind].trained(vectors)
    assert len(asked) == 1
    assert KINDS[kind].lists(played).clustering_index is None
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    assert KINDS[kind].dumped(played) == quantiser_of(kind, vectors)
