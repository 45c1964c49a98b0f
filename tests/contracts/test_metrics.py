"""What every metric promises: the numbers of a naive loop in float64, and known ones. New members of the tables are asked for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.retrieval import classes, metrics, proportions
from rayjobs.retrieval.metrics import PairList, map_at_r
from rayjobs.retrieval.proportions import Proportions


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


def naive_ap_min(row, relevant, k):
    return naive_precision_sum(row, k) / min(relevant, k)


def naive_ap_found(row, _relevant, k):
    found = sum(row[:k])
    return naive_precision_sum(row, k) / found if found else 0.0


def naive_dcg(gains):
    return sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains, 1))


def naive_ndcg(row, relevant, k):
    return naive_dcg(row[:k]) / naive_dcg([1] * min(relevant, k))


def naive_map_at_r(row, relevant):
    return naive_precision_sum(row, relevant) / relevant


def naive_graded_ndcg(gains, best, k):
    return naive_dcg(gains[:k]) / naive_dcg(best[:k])


def naive_accuracy(truth, predicted):
    return mean([float(t == p) for t, p in zip(truth, predicted, strict=True)])


def naive_balanced_accuracy(truth, predicted):
    return mean([mean([float(p == c) for t, p in zip(truth, predicted, strict=True) if t == c]) for c in set(truth)])


def naive_weighted_f1(truth, predicted):
    total = 0.0
    for c in set(truth):
        right = sum(t == p == c for t, p in zip(truth, predicted, strict=True))
        total += truth.count(c) * 2 * right / (truth.count(c) + predicted.count(c))
    return total / len(truth)


def naive_silhouette(vectors, labels):
    values = []
    for i, own in enumerate(labels):
        away = {c: [math.dist(vectors[i], vectors[j]) for j in range(len(labels)) if j != i and labels[j] == c] for c in set(labels)}
        if not away[own]:
            values.append(0.0)
            continue
        a, b = mean(away[own]), min(mean(away[c]) for c in away if c != own)
        values.append((b - a) / max(a, b))
    return mean(values)


def naive_cophenetic(vectors, labels):
    """On a line, single linkage joins two points at the widest gap between neighbours on the way."""
    steps = sorted(set(labels))
    pairs = list(itertools.combinations(range(len(labels)), 2))
    x = [math.dist(vectors[i], vectors[j]) for i, j in pairs]
    y = []
    for i, j in pairs:
        way = [c for c in steps if min(labels[i], labels[j]) <= c <= max(labels[i], labels[j])]
        y.append(float(max((high - low for low, high in itertools.pairwise(way)), default=0)))
    return pearson(x, y)


def pearson(x, y):
    across = sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True))
    return across / math.sqrt(sum((a - mean(x)) ** 2 for a in x) * sum((b - mean(y)) ** 2 for b in y))


def naive_soft(own, other):
    pairs = list(itertools.combinations(range(len(own)), 2))
    intra = sum(min(a, b) for a, b in zip(own, other, strict=True)) / len(own)
    inter = sum(max(min(other[c], own[d]), min(other[d], own[c])) for c, d in pairs) / len(pairs)
    return max(intra - inter, 0) / max(intra, inter) if max(intra, inter) else 0.0


def naive_soft_precision(vectors, held, r):
    values = []
    for i in range(len(vectors)):
        order = sorted((j for j in range(len(vectors)) if j != i), key=lambda j: math.dist(vectors[i], vectors[j]))
        values.append(sum(naive_soft(held[i], held[j]) for j in order[:r]) / r)
    return values


def naive_gsil(vectors, held):
    y = [[share + 1e-8 for share in row] for row in held]
    numbers = range(len(y[0]))
    values = []
    for i, own in enumerate(y):
        others = [(math.dist(vectors[i], vectors[j]), y[j]) for j in range(len(y)) if j != i]
        a = min(weighted([(d, min(own[c], other[c])) for d, other in others]) for c in numbers)
        b = min(
            weighted([(d, max(min(own[c], other[e]), min(own[e], other[c]))) for d, other in others])
            for c, e in itertools.combinations(numbers, 2)
        )
        values.append((b - a) / max(a, b))
    return sum(s * sum(own) for s, own in zip(values, y, strict=True)) / sum(sum(own) for own in y)


def weighted(pairs):
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def naive_summed_error(predicted, held):
    scale = sum(predicted) or 1
    return sum(abs(min(max(p / scale, 0), 1) - y) for p, y in zip(predicted, held, strict=True))


def mean(values):
    return sum(values) / len(values)


HITS_AT_K = {
    "recall@{k}": naive_recall,
    "hit_rate@{k}": naive_hit_rate,
    "precision@{k}": naive_precision,
    "mAP@{k}/min": naive_ap_min,
    "mAP@{k}/found": naive_ap_found,
    "MRR@{k}": naive_reciprocal_rank,
    "nDCG@{k}": naive_ndcg,
}
HITS_AT_R = {"MAP@R": naive_map_at_r}
GAINS_AT_K = {"nDCG@{k}/graded": naive_graded_ndcg}
PREDICTED_CLASSES = {"accuracy": naive_accuracy, "balanced_accuracy": naive_balanced_accuracy, "weighted_f1": naive_weighted_f1}
PREDICTED_PROPORTIONS = {"summed_error": naive_summed_error}
LABELLED_VECTORS = {"silhouette": naive_silhouette, "cophenetic_correlation": naive_cophenetic}
MIXED_VECTORS = {"soft_precision@R": naive_soft_precision, "gSil": naive_gsil}


@pytest.mark.parametrize(
    ("table", "naive"),
    [
        (metrics.AT_K, HITS_AT_K),
        (metrics.AT_R, HITS_AT_R),
        (metrics.GRADED_AT_K, GAINS_AT_K),
        (classes.CLASSIFICATION, PREDICTED_CLASSES),
        (classes.EMBEDDING, LABELLED_VECTORS),
        (proportions.REGRESSION, PREDICTED_PROPORTIONS),
        (proportions.EMBEDDING, MIXED_VECTORS),
    ],
)
def test_every_metric_of_the_tables_is_under_contract(table, naive):
    assert set(table) == set(naive)


@st.composite
def rankings(draw):
    depth = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=depth, max_size=depth).filter(any), min_size=1, max_size=5))
    return np.array(rows), np.array([sum(row) for row in rows])


@pytest.mark.parametrize("name", HITS_AT_K)
@settings(max_examples=40, deadline=None)
@given(ranking=rankings(), k=st.integers(1, 14))
def test_a_metric_of_hits_equals_a_naive_loop(name, ranking, k):
    hits, relevant = ranking
    wanted = [HITS_AT_K[name](row.tolist(), int(count), k) for row, count in zip(hits, relevant, strict=True)]
    found = metrics.AT_K[name](hits, relevant, k)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert np.all((found >= 0) & (found <= 1 + 1e-12))


@pytest.mark.parametrize("name", HITS_AT_R)
@settings(max_examples=40, deadline=None)
@given(ranking=rankings())
def test_a_metric_of_hits_down_to_r_equals_a_naive_loop(name, ranking):
    hits, relevant = ranking
    wanted = [HITS_AT_R[name](row.tolist(), int(count)) for row, count in zip(hits, relevant, strict=True)]
    np.testing.assert_allclose(metrics.AT_R[name](hits, relevant), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", GAINS_AT_K)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), depth=st.integers(1, 9), k=st.integers(1, 12))
def test_a_metric_of_gains_equals_a_naive_loop(name, seed, depth, k):
    gains = np.random.default_rng(seed).random((4, depth)) + 0.01
    best = -np.sort(-gains, axis=1)
    wanted = [GAINS_AT_K[name](row.tolist(), top.tolist(), k) for row, top in zip(gains, best, strict=True)]
    np.testing.assert_allclose(metrics.GRADED_AT_K[name](gains, best, k), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", [*HITS_AT_K, *HITS_AT_R])
def test_a_perfect_ranking_scores_1_and_the_metric_sees_order(name):
    def measured(row):
        hits, relevant = np.array([row], bool), np.array([4])
        return metrics.AT_K[name](hits, relevant, 4) if name in HITS_AT_K else metrics.AT_R[name](hits, relevant)

    assert measured([1] * 4 + [0] * 4) == pytest.approx(1)
    assert measured([0] * 4 + [1] * 4) == pytest.approx(0)


@pytest.mark.parametrize("name", PREDICTED_CLASSES)
@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_a_metric_of_predicted_classes_equals_a_naive_loop(name, pairs):
    truth, predicted = ([pair[side] for pair in pairs] for side in (0, 1))
    found = classes.CLASSIFICATION[name](np.array(truth), np.array(predicted))
    assert found == pytest.approx(PREDICTED_CLASSES[name](truth, predicted), rel=1e-12)


def mixtures(rng, count, number, alpha=0.3):
    """Proportions of which many are 0, and some rows are incomplete."""
    drawn = rng.dirichlet([alpha] * number, count)
    drawn[drawn < 0.15] = 0
    drawn[: count // 3] /= np.maximum(drawn[: count // 3].sum(1, keepdims=True), 1e-3)
    return drawn


@pytest.mark.parametrize("name", PREDICTED_PROPORTIONS)
@pytest.mark.parametrize("seed", range(10))
def test_an_error_of_proportions_equals_a_naive_loop(name, seed):
    rng = np.random.default_rng(seed)
    held, predicted = mixtures(rng, 9, 5), rng.normal(0.3, 0.3, (9, 5))
    predicted[0] = 0
    wanted = [PREDICTED_PROPORTIONS[name](p.tolist(), y.tolist()) for p, y in zip(predicted, held, strict=True)]
    np.testing.assert_allclose(proportions.REGRESSION[name](predicted, held), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", LABELLED_VECTORS)
@pytest.mark.parametrize("seed", range(10))
def test_a_metric_of_labelled_vectors_equals_a_naive_loop(name, seed):
    rng = np.random.default_rng(seed)
    vectors, labels = rng.normal(size=(25, 3)).astype(np.float32), rng.choice([0, 1, 4], 25)
    labels[0] = 9  # alone in its class
    found = classes.EMBEDDING[name](vectors, labels)
    assert found == pytest.approx(LABELLED_VECTORS[name](vectors.astype(float).tolist(), labels.tolist()), rel=1e-9)


@pytest.mark.parametrize("name", MIXED_VECTORS)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("number", [2, 5])
def test_a_metric_of_mixed_vectors_equals_a_naive_loop(name, seed, number):
    rng = np.random.default_rng(seed)
    vectors, held = rng.normal(size=(14, 3)).astype(np.float32), mixtures(rng, 14, number)
    plain = vectors.astype(float).tolist(), held.tolist()
    if name == "gSil":
        assert proportions.EMBEDDING[name](vectors, held).value == pytest.approx(naive_gsil(*plain), rel=1e-9)
        return
    found = proportions.EMBEDDING[name](
        vectors, vectors, proportions=Proportions(queries=held, gallery=held), excluded=itself(14), rs=(1, 4)
    )
    for r in (1, 4):
        np.testing.assert_allclose(found[f"soft_precision@{r}"], naive_soft_precision(*plain, r), rtol=1e-9, atol=1e-12)


def itself(count):
    return PairList(np.repeat(np.arange(count)[:, None], 2, axis=1), count)


def test_known_numbers_of_rankings():
    hits, five = np.array([[1, 0, 1, 1, 0]], bool), np.array([5])
    assert metrics.AT_K["mAP@{k}/found"](hits, five, 5)[0] == pytest.approx(0.805556, abs=1e-6)
    assert map_at_r(hits, five)[0] == pytest.approx(0.483333, abs=1e-6)
    one = np.zeros((1, 64), bool)
    one[0, 0] = True
    assert metrics.AT_K["mAP@{k}/found"](one, np.array([100]), 64)[0] == 1.0
    assert metrics.AT_K["mAP@{k}/min"](one, np.array([100]), 64)[0] == 0.015625
    ranks = np.zeros((4, 6), bool)
    ranks[[0, 1, 3], [0, 2, 4]] = True
    assert metrics.AT_K["MRR@{k}"](ranks, np.ones(4, int), 5).mean() == pytest.approx(0.383333, abs=1e-6)


def pair_of_tiles(number, own, other):
    """soft_precision@1 of two tiles that hold two classes of `number` in the given shares."""
    held = np.zeros((2, number))
    held[0, :2], held[1, :2] = own, other
    vectors = np.array([[0.0], [1.0]], np.float32)
    found = proportions.soft_precision_at_r(
        vectors, vectors, proportions=Proportions(queries=held, gallery=held), excluded=itself(2), rs=(1,)
    )
    return found["soft_precision@1"]


@pytest.mark.parametrize(("number", "wanted"), [(2, 0.0), (3, 0.5), (5, 0.75), (13, 0.9167), (45, 0.9773)])
def test_known_numbers_of_soft_precision_of_identical_halves(number, wanted):
    assert pair_of_tiles(number, [0.5, 0.5], [0.5, 0.5]) == pytest.approx(wanted, abs=5e-5)


def test_known_numbers_of_soft_precision():
    assert pair_of_tiles(13, [0.7, 0.3], [0.3, 0.7]) == pytest.approx(0.8056, abs=5e-5)
    assert pair_of_tiles(13, [1, 0], [1, 0]) == pytest.approx(1)
    assert pair_of_tiles(13, [1, 0], [0, 1]) == pytest.approx(0)


def test_known_numbers_of_chance_on_sparse_mixtures():
    """What a predictor and an embedding that know nothing score on Dirichlet(0.2) mixtures of 13 classes."""
    rng = np.random.default_rng(0)
    held = rng.dirichlet([0.2] * 13, 1500)
    assert proportions.summed_error(rng.permutation(held), held).mean() == pytest.approx(1.5, abs=0.05)
    vectors = rng.normal(size=(1500, 8)).astype(np.float32)
    found = proportions.soft_precision_at_r(vectors, vectors, proportions=Proportions(queries=held, gallery=held), excluded=itself(1500))
    assert found["soft_precision@10"].mean() == pytest.approx(0.03, abs=0.02)


def test_map_at_r_wants_the_ranking_as_deep_as_r():
    with pytest.raises(ValueError, match="first 3 ranks"):
        map_at_r(np.array([[True, False]]), np.array([3]))
