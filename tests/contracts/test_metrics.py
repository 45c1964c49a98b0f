"""What every ranking metric promises: the numbers of a naive loop, and known ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.retrieval import metrics
from rayjobs.retrieval.metrics import average_precision_at_k, hit_rate_at_k, map_at_r, precision_at_k, recall_at_k, reciprocal_rank_at_k


def naive_recall(row, relevant, k):
    return sum(row[:k]) / relevant


def naive_hit_rate(row, _relevant, k):
    return float(any(row[:k]))


def naive_precision(row, _relevant, k):
    return sum(row[:k]) / k


def naive_reciprocal_rank(row, _relevant, k):
    return next((1 / rank for rank, hit in enumerate(row[:k], 1) if hit), 0.0)


def naive_precision_sum(row, k):
    return sum(sum(row[:rank]) / rank for rank in range(1, min(k, len(row)) + 1) if row[rank - 1])


def naive_ap_relevant(row, relevant, k):
    return naive_precision_sum(row, k) / min(relevant, k)


def naive_ap_retrieved(row, _relevant, k):
    found = sum(row[:k])
    return naive_precision_sum(row, k) / found if found else 0.0


def naive_map_at_r(row, relevant, _k):
    return naive_precision_sum(row, relevant) / relevant


CASES = {
    "recall": (recall_at_k, naive_recall),
    "hit rate": (hit_rate_at_k, naive_hit_rate),
    "precision": (precision_at_k, naive_precision),
    "reciprocal rank": (reciprocal_rank_at_k, naive_reciprocal_rank),
    "average precision over relevant": (lambda h, r, k: average_precision_at_k(h, r, k, over="relevant"), naive_ap_relevant),
    "average precision over retrieved": (lambda h, r, k: average_precision_at_k(h, r, k, over="retrieved"), naive_ap_retrieved),
    "MAP@R": (lambda h, r, _k: map_at_r(h, r), naive_map_at_r),
}


@st.composite
def rankings(draw):
    depth = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=depth, max_size=depth).filter(any), min_size=1, max_size=5))
    return np.array(rows), np.array([sum(row) for row in rows])


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(ranking=rankings(), k=st.integers(1, 12))
def test_a_metric_equals_a_naive_loop(name, ranking, k):
    hits, relevant = ranking
    ours, naive = CASES[name]
    wanted = [naive(row.tolist(), int(count), k) for row, count in zip(hits, relevant, strict=True)]
    found = ours(hits, relevant, k)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert np.all((found >= 0) & (found <= 1))


@pytest.mark.parametrize("name", CASES)
def test_a_perfect_ranking_scores_1_and_the_metric_sees_order(name):
    ours, _ = CASES[name]
    relevant = np.array([4])
    best = ours(np.array([[True] * 4 + [False] * 4]), relevant, 4)
    worst = ours(np.array([[False] * 4 + [True] * 4]), relevant, 4)
    assert best == pytest.approx(1)
    assert worst == pytest.approx(0)


def test_the_metrics_of_the_table_are_under_contract():
    assert set(metrics.AT_K.values()) <= {ours for ours, _ in CASES.values()}


def test_known_numbers():
    hits, five = np.array([[1, 0, 1, 1, 0]], bool), np.array([5])
    assert average_precision_at_k(hits, five, 5, over="retrieved")[0] == pytest.approx(0.805556, abs=1e-6)
    assert map_at_r(hits, five)[0] == pytest.approx(0.483333, abs=1e-6)
    one = np.zeros((1, 64), bool)
    one[0, 0] = True
    assert average_precision_at_k(one, np.array([100]), 64, over="retrieved")[0] == 1.0
    assert average_precision_at_k(one, np.array([100]), 64, over="relevant")[0] == 0.015625
    ranks = np.zeros((4, 6), bool)
    ranks[[0, 1, 3], [0, 2, 4]] = True
    assert reciprocal_rank_at_k(ranks, np.ones(4, int), 5).mean() == pytest.approx(0.383333, abs=1e-6)


def test_map_at_r_wants_the_ranking_as_deep_as_r():
    with pytest.raises(ValueError, match="first 3 ranks"):
        map_at_r(np.array([[True, False]]), np.array([3]))
