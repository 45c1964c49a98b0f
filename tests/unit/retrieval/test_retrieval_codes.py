"""Codes of one bit a number, beside Hamming distances counted bit by bit, and beside an index of the same vectors in float32."""

from __future__ import annotations

import hashlib

import faiss
import numpy as np
import pyarrow as pa
import pytest

from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval import planner
from rayjobs.retrieval.examples import query_vector
from rayjobs.retrieval.filters import SearchFilter
from rayjobs.retrieval.kinds import KINDS, Effort, are_codes
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.search import Searcher
from rayjobs.retrieval.segments import build_segment, load_segment, load_table
from rayjobs.retrieval.shards import LocalShards
from rayjobs.storage import Artefact, open_store

ROWS = 3000
SHARES = [None, 0.9, 0.1, 0.002]
"""Of the rows that may be found: all, many and few."""


@pytest.fixture(autouse=True)
def _one_thread():
    faiss.omp_set_num_threads(1)


def codes(count, dim, seed=0):
    """Codes about twenty centres: many distances are equal, and some codes."""
    rng, shape = np.random.default_rng(seed), np.random.default_rng(7)
    centres = shape.random((20, dim)) < 0.5
    bits = centres[rng.integers(0, 20, count)] ^ (rng.random((count, dim)) < 0.1)
    return np.where(bits, np.float32(1 / np.sqrt(dim)), np.float32(-1 / np.sqrt(dim)))


def id_of(number):
    return hashlib.sha256(b"%d" % number).hexdigest()[:20]


def opened(folder, kind, vectors, *, segments=1, change=None):
    """An index of some segments: the loaded segments, and their tables. Ids are hashes, and the rows sorted by them."""
    quantiser = KINDS[kind].dumped(KINDS[kind].trained(vectors)) if KINDS[kind].trains else None
    draft = Artefact(open_store(f"file:{folder}"), "indexes", kind).draft("v1")
    entries = []
    for number, part in enumerate(np.array_split(np.arange(len(vectors)), segments)):
        order = sorted(part.tolist(), key=id_of)
        table = pa.table(
            {
                "tile_id": [id_of(one) for one in order],
                "geometry": pa.nulls(len(order), pa.binary()),
                "datetime": pa.nulls(len(order), pa.timestamp("us", tz="UTC")),
                "label": [f"class-{one * 5 // len(vectors)}" for one in order],
                "number": order,
            }
        )
        entry, files = build_segment(f"segment-{number:05d}", vectors[order], table, kind=kind, quantiser=quantiser)
        for name, data in files.items():
            draft.write(name, change(data) if change and name.endswith(".vectors") else data)
        entries.append(entry)
    manifest = IndexManifest(
        encoder_uri="encoder", encoder_fingerprint="0" * 64, distance="cosine", dimension=vectors.shape[1], kind=kind, why="a test",
        effort=Effort(), recall=None, quantiser=None if quantiser is None else "0" * 64, segments=tuple(entries), deleted=0,
    )  # fmt: skip
    version = draft.publish({"parents": {}, "counts": {}, **manifest.fields()})
    return [load_segment(version, entry, manifest, folder) for entry in entries], [load_table(version, entry, folder) for entry in entries]


def segment_of(folder, kind, vectors):
    """One segment, and its vectors in the order of its rows."""
    [segment], _ = opened(folder, kind, vectors)
    return segment, vectors[sorted(range(len(vectors)), key=id_of)]


def by_counting(vectors, queries, count, chosen):
    """Distances and rows of the nearest codes, ties by row: bits are compared as booleans."""
    distances = ((queries > 0)[:, None] != (vectors > 0)[None]).sum(axis=2)
    rows = np.flatnonzero(np.ones(len(vectors), bool) if chosen is None else chosen)
    order = rows[np.argsort(distances[:, rows], axis=1, kind="stable")[:, :count]]
    return np.take_along_axis(distances, order, axis=1), order


def chosen_of(share):
    return None if share is None else np.random.default_rng(5).random(ROWS) < share


@pytest.mark.parametrize("dim", [8, 20, 64, 128, 200])
@pytest.mark.parametrize("share", SHARES)
def test_codes_are_found_by_hamming_distance_and_ties_by_row(tmp_path, dim, share):
    segment, vectors = segment_of(tmp_path, "hamming", codes(ROWS, dim))
    queries, chosen = np.concatenate([codes(6, dim, seed=1), vectors[:4]]), chosen_of(share)
    for count in (1, 10, 700):
        scores, rows = segment.exact(queries, count, chosen)
        distances, wanted = by_counting(vectors, queries, count, chosen)
        there = wanted.shape[1]
        np.testing.assert_array_equal(rows[:, :there], wanted)
        np.testing.assert_array_equal(scores[:, :there], (1 - 2 * distances / dim).astype(np.float32))
        assert (rows[:, there:] == -1).all()
        assert np.isneginf(scores[:, there:]).all()


@pytest.mark.parametrize("kind", ["hamming", "hamming_ivf"])
def test_a_filter_that_leaves_nothing_near_is_no_hindrance(tmp_path, kind):
    """Half of the codes may be found, none of them in reach of the first look."""
    segment, vectors = segment_of(tmp_path, kind, codes(ROWS, 64))
    query = vectors[7:8]
    _, order = by_counting(vectors, query, ROWS, None)
    chosen = np.ones(ROWS, bool)
    chosen[order[0, : ROWS // 2]] = False
    queries = np.concatenate([query, vectors[order[0, -1:]]])
    for count in (1, 10, 700):
        np.testing.assert_array_equal(segment.exact(queries, count, chosen)[1], by_counting(vectors, queries, count, chosen)[1])
        if kind == "hamming_ivf":
            rows = segment.approximate(queries, count, chosen, Effort(nprobe=10**6))[1]
            np.testing.assert_array_equal(rows, by_counting(vectors, queries, count, chosen)[1])


def others(dim, vectors):
    """Queries that are no codes: several examples, examples and what they are not, and any vector."""
    rng = np.random.default_rng(3)
    some = [query_vector(vectors[[n, n + 50]], vectors[:0], lambda: vectors) for n in range(4)]
    some += [query_vector(vectors[n : n + 3], vectors[n + 90 : n + 92], lambda: vectors) for n in range(4)]
    some += [query_vector(vectors[n : n + 3], vectors[n + 90 : n + 92], lambda: vectors[200:400], method="linear") for n in range(2)]
    free = rng.normal(size=(4, dim))
    return np.stack([*some, *(free / np.linalg.norm(free, axis=1, keepdims=True)).astype(np.float32)])


@pytest.mark.parametrize("dim", [8, 20, 128])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", ["hamming", "hamming_ivf"])
def test_other_queries_answer_as_the_same_vectors_in_float32(tmp_path, kind, dim, share):
    segment, vectors = segment_of(tmp_path, kind, codes(ROWS, dim))
    flat, _ = segment_of(tmp_path, "flat", codes(ROWS, dim))
    queries, chosen = others(dim, vectors), chosen_of(share)
    assert not are_codes(queries).any()
    for count in (1, 10, 700):
        scores, rows = segment.exact(queries, count, chosen)
        wanted_scores, wanted_rows = flat.exact(queries, count, chosen)
        np.testing.assert_array_equal(scores, wanted_scores)
        np.testing.assert_array_equal(rows, wanted_rows)


def test_codes_and_other_queries_are_asked_together(tmp_path):
    segment, vectors = segment_of(tmp_path, "hamming", codes(ROWS, 64))
    queries = np.concatenate([others(64, vectors), vectors[:9]])[np.random.default_rng(0).permutation(23)]
    scores, rows = segment.exact(queries, 10)
    for number, query in enumerate(queries):
        alone = segment.exact(query[None], 10)
        np.testing.assert_array_equal(alone[0][0], scores[number])
        np.testing.assert_array_equal(alone[1][0], rows[number])


@pytest.mark.parametrize("kind", ["hamming", "hamming_ivf"])
def test_a_code_comes_back_as_it_went_and_takes_a_bit_a_number(tmp_path, kind):
    vectors = codes(ROWS, 72)
    segment, ordered = segment_of(tmp_path, kind, vectors)
    np.testing.assert_array_equal(segment.vectors_of(np.array([5, 0, 2999, 5])), ordered[[5, 0, 2999, 5]])
    np.testing.assert_array_equal(segment.vector_of(41), ordered[41])
    assert (segment.rows, segment.dimension) == (ROWS, 72)
    [path] = tmp_path.glob("**/segment-00000*.vectors")
    assert path.stat().st_size < 9 * ROWS + 100


def test_what_is_a_code():
    vectors = codes(4, 100)
    vectors[1, 3] *= np.float32(1 + 1e-6)
    vectors[2, 3] *= np.float32(1 + 1e-3)
    vectors[3] *= np.float32(1.01)
    assert are_codes(vectors).tolist() == [True, True, False, False]
    assert not are_codes(np.zeros((1, 8), np.float32)).any()
    assert not are_codes(np.full((1, 8), np.nan, np.float32)).any()


@pytest.mark.parametrize("kind", ["hamming", "hamming_ivf"])
def test_vectors_that_are_no_codes_are_refused(tmp_path, kind):
    vectors = codes(ROWS, 16)
    vectors[7] = np.eye(16, dtype=np.float32)[0]
    with pytest.raises(ValueError, match="no codes"):
        opened(tmp_path, kind, vectors)
    with pytest.raises(ValueError, match="no codes"):
        KINDS["hamming"].filled(None, vectors)


def test_lists_need_their_codes_whole(tmp_path):
    """The vectors of a compressed kind are checked as those of an exact one."""
    other = KINDS["hamming"].filled(None, codes(ROWS - 1, 16))
    with pytest.raises(IndexCorruptError, match="not the 3000 of 16"):
        opened(tmp_path, "hamming_ivf", codes(ROWS, 16), change=lambda _: KINDS["hamming"].dumped(other))


def centroids(change):
    index = KINDS["hamming_ivf"].trained(codes(ROWS, 16))
    change(index)
    return KINDS["hamming_ivf"].dumped(index)


def too_short(index):
    centroid = faiss.IndexBinaryFlat(8)
    centroid.add(np.zeros((index.nlist, 1), np.uint8))
    index.quantizer, index.kept = centroid, centroid


def too_few(index):
    faiss.downcast_IndexBinary(index.quantizer).reset()


@pytest.mark.parametrize("change", [too_short, too_few])
def test_centroids_that_do_not_fit_are_refused(change):
    with pytest.raises(IndexCorruptError):
        KINDS["hamming_ivf"].read_quantiser(centroids(change), 16)


# --- whole indexes ----------------------------------------------------------------------------------------------------------------------

DIM = 64
VECTORS = codes(ROWS, DIM)
VECTORS[100:140] = VECTORS[2900]  # ties over classes and segments


@pytest.fixture(scope="module")
def searchers(tmp_path_factory):
    """Indexes of three segments, by kind."""
    folder = tmp_path_factory.mktemp("searchers")
    made = {kind: opened(folder, kind, VECTORS, segments=3) for kind in ("flat", "hamming", "hamming_ivf")}
    return {kind: Searcher(LocalShards(segments, effort=Effort(nprobe=5)), tables) for kind, (segments, tables) in made.items()}


def numbers(searcher, hits):
    return searcher.take(hits.rows, columns=["number"])["number"].to_pylist()


@pytest.mark.parametrize("only", [SearchFilter(), SearchFilter(labels=("class-1", "class-4"))])
@pytest.mark.parametrize("limit", [1, 10, 300])
def test_an_index_of_codes_answers_as_one_of_float_vectors(searchers, only, limit):
    flat, packed = searchers["flat"], searchers["hamming"]
    queries = np.concatenate([VECTORS[[2900, 7, 1500]], others(DIM, VECTORS)])
    without = [[id_of(110), id_of(2900)], *[[]] * (len(queries) - 1)]
    for one, two in zip(*(made.search_batch(queries, limit, only=only, without=without) for made in (flat, packed)), strict=True):
        assert numbers(flat, one) == numbers(packed, two)
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-6)
        assert (one.exact, one.candidates) == (two.exact, two.candidates)
    np.testing.assert_array_equal(packed.vector_of(id_of(7)), VECTORS[7])


def test_ties_favour_no_class_and_no_segment(searchers):
    """Forty-one tiles of two classes have one code: those found first are those whose ids, hashes of the tiles, come first."""
    alike = sorted([*range(100, 140), 2900], key=id_of)
    for kind in ("hamming", "hamming_ivf"):
        for limit in (3, 12, 41):
            assert numbers(searchers[kind], searchers[kind].search(VECTORS[2900], limit)) == alike[:limit]


def test_of_lists_codes_are_found_approximately_and_other_queries_exactly(searchers, monkeypatch):
    monkeypatch.setattr(planner, "FEW_ROWS", 50)
    monkeypatch.setattr(planner, "DEEP_SHARE", 0.5)
    queries = np.concatenate([codes(40, DIM, seed=4), others(DIM, VECTORS)])
    for only in (SearchFilter(), SearchFilter(labels=("class-2", "class-3", "class-4"))):
        truth, hits = (searchers[kind].search_batch(queries, 10, only=only) for kind in ("flat", "hamming_ivf"))
        assert not any(found.exact for found in hits[:40])
        shares = [np.mean(found.scores >= right.scores[-1] - 1e-6) for found, right in zip(hits[:40], truth, strict=False)]
        assert np.mean(shares) > 0.9
        for found, right in zip(hits[40:], truth[40:], strict=True):
            assert found.exact
            assert numbers(searchers["hamming_ivf"], found) == numbers(searchers["flat"], right)
