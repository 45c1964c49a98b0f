"""What every strategy and every way of choosing tiles to label promises: the numbers of a naive loop, so many different tiles, the same
for a seed. New members of the tables are asked for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rayjobs.labels.acquisition.diversity import DIVERSITIES, kmeans
from rayjobs.labels.acquisition.strategies import STRATEGIES


def naive_uncertain_balanced(rows, sought):
    order = sorted(range(len(rows)), key=lambda tile: abs(rows[tile][sought] - 0.5))
    sides = [[tile for tile in order if (rows[tile][sought] >= 0.5) == side] for side in (True, False)]
    return [-float(next(side.index(tile) for side in sides if tile in side)) for tile in range(len(rows))]


NAIVE = {
    "least_confidence": lambda rows, _: [1 - max(row) for row in rows],
    "margin": lambda rows, _: [sorted(row)[-2] - max(row) for row in rows],
    "entropy": lambda rows, _: [-sum(p * math.log(p) for p in row if p > 0) for row in rows],
    "uncertain_balanced": naive_uncertain_balanced,
    "positive": lambda rows, sought: [row[sought] for row in rows],
}
DRAWN = {"random": lambda _: 1.0, "gaussian": lambda p: math.exp(-(((p - 0.5) / 0.2) ** 2) / 2) / (0.2 * math.sqrt(2 * math.pi))}
"""Weights of strategies that draw without replacement."""


def naive_top_n(scores, vectors, labelled, count):
    return sorted(range(len(scores)), key=lambda tile: -scores[tile])[:count]


def naive_proximity(scores, vectors, labelled, count):
    mean, deviation = np.mean(scores), np.std(scores)
    chosen = []
    while len(chosen) < count:
        left = [tile for tile in range(len(scores)) if tile not in chosen]
        apart = [math.dist(vector, np.mean([vectors[one] for one in chosen], axis=0)) for vector in vectors] if chosen else None
        total = {}
        for tile in left:
            near = 0.0 if apart is None else -0.3 + 0.6 * (apart[tile] - min(apart)) / (max(apart) - min(apart))
            total[tile] = (scores[tile] - mean) / deviation + near
        chosen += sorted(left, key=lambda tile: -total[tile])[: min(10, count - len(chosen))]
    return chosen


def naive_cluster(scores, vectors, labelled, count):
    """Three far groups of 12, 12 and 6 tiles: of ten tiles they give 4, 4 and 2."""
    groups = [range(12), range(12, 24), range(24, 30)]
    share = {10: (4, 4, 2), 5: (2, 2, 1), 30: (12, 12, 6)}[count]
    best = [sorted(group, key=lambda tile: -scores[tile])[:number] for group, number in zip(groups, share, strict=True)]
    return sorted(itertools.chain(*best), key=lambda tile: -scores[tile])


def naive_core_set(scores, vectors, labelled, count):
    known, chosen = list(labelled), []
    candidates = naive_top_n(scores, vectors, labelled, 10 * count)
    while len(chosen) < min(count, len(candidates)):
        left = [tile for tile in candidates if tile not in chosen]
        far = max(left, key=lambda tile: min((math.dist(vectors[tile], one) for one in known), default=math.inf))
        chosen.append(far)
        known.append(vectors[far])
    return chosen


CHOOSE = {"top_n": naive_top_n, "proximity": naive_proximity, "cluster": naive_cluster, "core_set": naive_core_set}


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def ground(rng):
    """Three groups far from each other: embeddings, scores, and two labelled tiles near the first group."""
    vectors = np.repeat(np.eye(5)[:3] * 50, (12, 12, 6), axis=0) + rng.normal(size=(30, 5))
    return rng.random(30), vectors.astype(np.float32), vectors[:2].astype(np.float32) + 0.5


def test_every_member_has_an_oracle():
    assert set(STRATEGIES) == set(NAIVE) | set(DRAWN)
    assert set(DIVERSITIES) == set(CHOOSE)


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_those_of_a_loop(name, classes, rng):
    rows = np.vstack([rng.dirichlet(np.ones(classes), 40), np.eye(classes)])
    found = STRATEGIES[name](rows, 1, rng)
    assert found == pytest.approx(NAIVE[name](rows.tolist(), 1), abs=1e-12)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_are_without_replacement_by_their_weights(name, rng):
    values = [0.5, 0.3, 0.1]
    weights = [DRAWN[name](value) for value in values]
    if name == "gaussian":
        assert weights == pytest.approx([1.99471, 1.20985, 0.269955], rel=1e-5)
    rows, times = np.array([[1 - value, value] for value in values]), 20_000
    orders = [tuple(np.argsort(-STRATEGIES[name](rows, 1, rng)).tolist()) for _ in range(times)]
    for order in itertools.permutations(range(3)):
        first, second, _ = (weights[tile] for tile in order)
        odds = first / sum(weights) * second / (sum(weights) - first)
        assert orders.count(order) / times == pytest.approx(odds, abs=4 * math.sqrt(odds * (1 - odds) / times))


def test_two_classes_make_three_uncertainties_one(rng):
    rows = rng.dirichlet(np.ones(2), 50)
    orders = {tuple(np.argsort(-STRATEGIES[name](rows, 0, rng)).tolist()) for name in ("least_confidence", "margin", "entropy")}
    assert len(orders) == 1


@pytest.mark.parametrize("name", CHOOSE)
@pytest.mark.parametrize("count", [5, 10, 30])
def test_choices_are_those_of_a_loop(name, count, ground):
    scores, vectors, labelled = ground
    found = DIVERSITIES[name](scores, vectors, labelled, count, np.random.default_rng(0))
    assert found.tolist() == CHOOSE[name](scores.tolist(), vectors.astype(float).tolist(), labelled.astype(float).tolist(), count)


@pytest.mark.parametrize("name", CHOOSE)
@pytest.mark.parametrize("tiles", [1, 2, 7])
def test_few_or_equal_tiles_are_all_taken_once(name, tiles):
    vectors, none = np.ones((tiles, 3), np.float32), np.empty((0, 3), np.float32)
    found = DIVERSITIES[name](np.zeros(tiles), vectors, none, 20, np.random.default_rng(0))
    assert sorted(found.tolist()) == list(range(tiles))


@pytest.mark.parametrize(("strategy", "diversity"), list(itertools.product(STRATEGIES, DIVERSITIES)))
def test_a_seed_decides(strategy, diversity, ground):
    _, vectors, labelled = ground
    rows = np.random.default_rng(0).dirichlet(np.ones(3), len(vectors))

    def choose():
        rng = np.random.default_rng(7)
        return DIVERSITIES[diversity](STRATEGIES[strategy](rows, 0, rng), vectors, labelled, 8, rng).tolist()

    found = choose()
    assert found == choose()
    assert len(set(found)) == 8


def test_kmeans_finds_groups_that_are_there(ground):
    _, vectors, _ = ground
    groups = kmeans(vectors, 3, np.random.default_rng(1))
    assert sorted(np.bincount(groups).tolist()) == [6, 12, 12]
    assert all(len(set(groups[part].tolist())) == 1 for part in (slice(12), slice(12, 24), slice(24, 30)))
