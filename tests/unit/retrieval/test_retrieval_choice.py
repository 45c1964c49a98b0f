"""Which kind of index, and how hard to search it."""

from __future__ import annotations

import numpy as np
import pytest

from rayjobs.errors import ConfigError
from rayjobs.retrieval.choice import choose, tuned
from rayjobs.retrieval.kinds import KINDS, Effort
from rayjobs.retrieval.segments import Segment

DIM = 24


@pytest.mark.parametrize(
    ("rows", "dim", "wishes", "kind", "word"),
    [
        (1000, 128, {}, "flat", "millisecond"),
        (20_000, 128, {}, "flat", "20,000"),
        (1_000_000, 128, {}, "ivf_pq", "40 bytes"),
        (1_000_000, 128, {"recall": 0.9999}, "flat", "0.9999"),
        (1_000_000, 128, {"bytes_per_vector": 34}, "ivf_rabitq", "within the 34"),
        (1_000_000, 128, {"bytes_per_vector": 20}, "binary", "16 bytes"),
        (1_000_000, 128, {"bytes_per_vector": 4}, "binary", "no kind keeps to"),
        (1_000_000, 128, {"kind": "sq8"}, "sq8", "asked for"),
        (10, 128, {"kind": "hnsw"}, "hnsw", "asked for"),
        (1_000_000, 768, {}, "binary", "96 bytes"),
        (1_000_000, 768, {"bytes_per_vector": 128}, "ivf_rabitq", "112 bytes"),
        (1_000_000, 768, {"bytes_per_vector": 256}, "ivf_pq", "200 bytes"),
    ],
)
def test_a_kind_is_chosen_by_size_memory_and_recall_and_says_why(rows, dim, wishes, kind, word):
    choice = choose(rows, dim, **wishes)
    assert choice.kind == kind
    assert word in choice.why
    assert choice.kind in choice.why


@pytest.mark.parametrize(
    ("rows", "dim", "wishes", "kind", "word"),
    [
        (10_000_000, 128, {}, "hamming", "10,000,000 codes of 128 bits"),
        (11_000_000, 128, {}, "hamming_ivf", "too many"),
        (11_000_000, 64, {}, "hamming", "some milliseconds"),
        (11_000_000, 128, {"recall": 1.0}, "hamming", "recall of 1"),
        (10, 128, {"kind": "flat"}, "flat", "asked for"),
        (10, 128, {"kind": "hamming_ivf"}, "hamming_ivf", "asked for"),
    ],
)
def test_of_codes_the_bits_alone_are_compared(rows, dim, wishes, kind, word):
    choice = choose(rows, dim, codes=True, **wishes)
    assert choice.kind == kind
    assert word in choice.why


@pytest.mark.parametrize("kind", ["hamming", "hamming_ivf"])
def test_kinds_for_codes_are_refused_for_other_vectors(kind):
    with pytest.raises(ConfigError, match=r"model\.projection: hash"):
        choose(1000, 128, kind=kind)


@pytest.mark.parametrize("wishes", [{"kind": "magic"}, {"recall": 0.0}, {"recall": 1.1}])
def test_what_cannot_be_chosen_is_refused(wishes):
    with pytest.raises(ConfigError, match="choose"):
        choose(1000, 128, **wishes)


def clustered(count, seed):
    rng, shape = np.random.default_rng(seed), np.random.default_rng(99)
    centres, directions = shape.normal(size=(30, 10)), shape.normal(size=(10, DIM))
    latent = centres[rng.integers(0, 30, count)] + 0.7 * rng.normal(size=(count, 10))
    vectors = latent @ directions + 0.2 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def segment_of(kind, vectors):
    made = KINDS[kind]
    exact = KINDS[made.store].filled(KINDS[made.store].trained(vectors), vectors)
    base = None if made.exact else made.filled(made.trained(vectors), vectors)
    compressed = None if base is None else made.attached(base, exact)
    return Segment(kind=kind, dimension=DIM, index=exact, base=base, compressed=compressed)


def recall_at(segments, queries, effort, count):
    """Share of the truly nearest that are found, counted one by one."""
    found = 0
    for query in queries:
        exact = sorted((float(score) for segment in segments for score in segment.exact(query[None], count)[0][0]), reverse=True)
        scores = [float(score) for segment in segments for score in segment.approximate(query[None], count, None, effort)[0][0]]
        found += sum(score >= exact[count - 1] - 1e-6 for score in scores)
    return found / count / len(queries)


@pytest.mark.parametrize("kind", ["ivf_pq", "ivf_flat", "hnsw", "sq8", "binary"])
def test_the_effort_that_is_found_reaches_the_recall_on_other_queries_too(kind):
    vectors = clustered(8000, 0)
    segments = [segment_of(kind, vectors[:5000]), segment_of(kind, vectors[5000:])]
    effort, estimate = tuned(kind, segments, clustered(400, 1), recall=0.9)
    assert estimate.at == 10
    assert estimate.queries == 400
    assert estimate.value >= 0.9
    assert recall_at(segments, clustered(150, 2), effort, 10) >= 0.88


def test_more_recall_costs_more_effort_and_not_more_than_it_must():
    segments = [segment_of("ivf_flat", clustered(8000, 0))]
    queries = clustered(400, 1)
    efforts = [tuned("ivf_flat", segments, queries, recall=recall)[0].nprobe for recall in (0.5, 0.9, 0.99)]
    assert efforts == sorted(set(efforts))
    below = Effort(nprobe=efforts[1] - 1)
    assert recall_at(segments, queries, below, 10) < 0.92  # 0.9 and what surely reaches it


def test_rows_of_the_index_do_not_count_as_their_own_neighbours():
    vectors = clustered(8000, 0)
    segments = [segment_of("ivf_flat", vectors)]
    own, other = (tuned("ivf_flat", segments, queries, recall=0.9)[0].nprobe for queries in (vectors[:400], clustered(400, 1)))
    assert abs(own - other) <= 2


def test_where_nothing_suffices_the_best_is_taken_and_said():
    vectors = np.abs(clustered(4000, 0))  # all of the same signs, which tell nothing then
    effort, estimate = tuned("binary", [segment_of("binary", vectors)], np.abs(clustered(50, 1)), recall=0.9, count=1)
    assert effort.k_factor == 1024
    assert 0.2 < estimate.value < 0.9


def test_exact_kinds_need_no_effort():
    assert tuned("flat", [segment_of("flat", clustered(50, 0))], clustered(5, 1), recall=0.9) == (Effort(), None)


def test_few_and_equal_vectors_are_found():
    vectors = np.repeat(clustered(3, 0), 4, axis=0)
    _, estimate = tuned("ivf_flat", [segment_of("ivf_flat", vectors)], vectors, recall=0.9, count=20)
    assert estimate.value == 1


def test_without_queries_nothing_is_tuned():
    with pytest.raises(ValueError, match="no queries"):
        tuned("ivf_pq", [], clustered(5, 1), recall=0.9)


@pytest.mark.parametrize("kind", ["ivf_pq", "ivf_flat"])
def test_an_estimate_on_rows_of_the_index_holds_for_other_queries(kind):
    """Where few candidates are compared, one for the row itself is not counted among those for its neighbours."""
    vectors = clustered(8000, 0)
    segments = [segment_of(kind, vectors)]
    effort, estimate = tuned(kind, segments, vectors[::4], recall=0.93)
    assert recall_at(segments, clustered(500, 2), effort, 10) == pytest.approx(estimate.value, abs=0.015)
