from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from rayjobs.errors import TrainingError
from rayjobs.metric import mining
from rayjobs.metric.mining import DistanceGuard, LabelGuard, OverlapGuard, canonical_blocks, mine


def scattered(rng, count, dim=8, *, coarse=False):
    """Unit vectors, positions, sizes and labels; `coarse` vectors have many equal similarities."""
    vectors = rng.integers(-1, 2, (count, dim)).astype(np.float32) if coarse else rng.normal(size=(count, dim)).astype(np.float32)
    vectors[~vectors.any(axis=1), 0] = 1
    if not coarse:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    positions = np.column_stack([rng.uniform(0, 20, (count, 2)), np.zeros(count)])
    return vectors, positions, rng.uniform(0.5, 2.0, count), rng.integers(-1, 3, count)


def oracle(vectors, positions, sizes, labels, *, min_dist, negatives, max_candidates):
    """One anchor and one candidate at a time, with the rules written out."""
    exact = vectors.astype(np.float64)
    found, refused = [], {"overlap": 0, "distance": 0, "label": 0}
    for anchor in range(len(vectors)):
        ranking = sorted(
            (candidate for candidate in range(len(vectors)) if candidate != anchor), key=lambda c: (-(exact[anchor] @ exact[c]), c)
        )
        chosen = []
        for candidate in ranking[:max_candidates]:
            if len(chosen) == negatives:
                break
            apart = float(np.linalg.norm(positions[anchor] - positions[candidate]))
            if apart < (sizes[anchor] + sizes[candidate]) / 2 * 2**0.5:
                refused["overlap"] += 1
            elif apart < min_dist * max(sizes[anchor], sizes[candidate]):
                refused["distance"] += 1
            elif labels[anchor] >= 0 and labels[anchor] == labels[candidate]:
                refused["label"] += 1
            else:
                chosen.append(candidate)
        found.append(chosen + [-1] * (negatives - len(chosen)))
    return np.array(found), refused


def guards_of(positions, sizes, labels, min_dist):
    return [OverlapGuard(positions, sizes / 2**0.5), DistanceGuard(positions, sizes, min_dist=min_dist), LabelGuard(labels)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), count=st.integers(1, 60), block=st.integers(1, 64), negatives=st.integers(1, 4), depth=st.integers(4, 80)
)
def test_mining_equals_a_naive_search_with_the_same_rules(seed, count, block, negatives, depth):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(seed), count, coarse=True)
    wanted, refused = oracle(vectors, positions, sizes, labels, min_dist=3.0, negatives=negatives, max_candidates=depth)
    guards = guards_of(positions, sizes, labels, 3.0)
    parts = [mine(vectors, part, guards, negatives=negatives, max_candidates=depth) for part in canonical_blocks(count, block)]
    found = np.concatenate([part.candidates for part in parts])
    np.testing.assert_array_equal(found, wanted)
    assert {name: sum(part.refused[name] for part in parts) for name in refused} == refused
    scores = np.concatenate([part.scores for part in parts])
    similar = np.take_along_axis(vectors @ vectors.T, found.clip(0), axis=1)
    np.testing.assert_array_equal(scores, np.where(found < 0, 0, similar))


@pytest.mark.parametrize("gallery", [1, 7, 64, 1000])
def test_how_the_set_is_cut_for_comparison_changes_nothing(monkeypatch, gallery):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(1), 200, coarse=True)
    guards = guards_of(positions, sizes, labels, 3.0)
    whole = mine(vectors, slice(0, 50), guards, negatives=3, max_candidates=40)
    monkeypatch.setattr(mining, "_GALLERY", gallery)
    cut = mine(vectors, slice(0, 50), guards, negatives=3, max_candidates=40)
    np.testing.assert_array_equal(cut.candidates, whole.candidates)
    assert cut.refused == whole.refused


@pytest.mark.parametrize(("short", "first_look"), [(1, 1), (3, 2), (100, 50)])
def test_how_far_is_looked_at_first_changes_nothing(monkeypatch, short, first_look):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(2), 300)
    guards = guards_of(positions, sizes, labels, 6.0)
    usual = mine(vectors, slice(0, 300), guards, negatives=4, max_candidates=200)
    monkeypatch.setattr(mining, "_SHORT", short)
    monkeypatch.setattr(mining, "_FIRST_LOOK", first_look)
    other = mine(vectors, slice(0, 300), guards, negatives=4, max_candidates=200)
    np.testing.assert_array_equal(other.candidates, usual.candidates)
    assert other.refused == usual.refused


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_table_is_the_same_byte_for_byte_however_blocks_and_threads_are_shared(workers, threads):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(3), 700, dim=128)
    guards = guards_of(positions, sizes, labels, 3.0)
    blocks = canonical_blocks(len(vectors), 64)

    def table(shares):
        done = {part.start: mine(vectors, part, guards, negatives=5, max_candidates=100) for share in shares for part in share}
        refused = {name: sum(part.refused[name] for part in done.values()) for name in ("overlap", "distance", "label")}
        return b"".join(done[start].candidates.tobytes() + done[start].scores.tobytes() for start in sorted(done)), refused

    alone = table([blocks])
    with threadpool_limits(limits=threads, user_api="blas"):
        assert table([blocks[worker::workers] for worker in reversed(range(workers))]) == alone


def test_a_lone_anchor_gets_the_same_scores_with_any_number_of_threads():
    """BLAS shares the product of one vector with many among its threads in a way that changes last bits."""
    vectors = scattered(np.random.default_rng(4), 16_385, dim=128)[0]
    tables = []
    for threads in (1, 2, 3, 5, 7):
        with threadpool_limits(limits=threads, user_api="blas"):
            tables.append(mine(vectors, slice(16_384, 16_385), [], negatives=16_384, max_candidates=16_384))
    assert all(table.scores.tobytes() == tables[0].scores.tobytes() for table in tables)


@given(
    scores=st.lists(st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=30),
    indices=st.randoms(use_true_random=False),
)
def test_keys_sort_by_score_and_then_by_index(scores, indices):
    order = list(range(len(scores)))
    indices.shuffle(order)
    values = np.array(scores, np.float32)
    keys = np.sort(mining._keys(values, np.array(order)))
    found, back = mining._unpacked(keys)
    assert found.tolist() == [index for _, index in sorted(zip((-values).tolist(), order, strict=True))]
    np.testing.assert_array_equal(back, np.sort(values)[::-1])


def test_a_vector_that_is_not_finite_ends_mining():
    vectors = np.eye(4, dtype=np.float32)
    vectors[2, 1] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        mine(vectors, slice(0, 4), [], negatives=1, max_candidates=3)


def test_candidates_farther_than_the_greatest_distance_are_refused():
    positions = np.array([[0.0, 0, 0], [5, 0, 0], [20, 0, 0]])
    guard = DistanceGuard(positions, np.ones(3), min_dist=4, max_dist=10)
    assert guard.refuses(np.array([0, 0, 1]), np.array([1, 2, 2])).tolist() == [False, True, True]


def test_unknown_labels_refuse_nothing():
    guard = LabelGuard(np.array([-1, -1, 2, 2]))
    assert guard.refuses(np.array([0, 0, 2]), np.array([1, 2, 3])).tolist() == [False, False, True]


def test_canonical_blocks_cover_every_tile_once():
    assert [list(range(10))[part] for part in canonical_blocks(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert canonical_blocks(0, 4) == []
