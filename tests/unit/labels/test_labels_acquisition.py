from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rayjobs.labels.acquisition.balance import balanced
from rayjobs.labels.acquisition.batch import next_tiles
from rayjobs.labels.acquisition.seeds import seed_set
from rayjobs.labels.acquisition.stopping import advise, kappa


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(60, 4)).astype(np.float32)


@pytest.mark.parametrize("examples", [1, 3, 300])
def test_most_seeds_are_neighbours_of_any_example_and_the_rest_is_drawn(vectors, rng, examples):
    given = rng.normal(size=(examples, 4)).astype(np.float32)
    found = seed_set(vectors, given, 20, share=0.8, rng=rng).tolist()
    apart = [min(math.dist(vector, example) for example in given.tolist()) for vector in vectors.tolist()]
    assert found[:16] == sorted(range(60), key=lambda tile: apart[tile])[:16]
    assert len(set(found)) == 20
    other = seed_set(vectors, given, 20, share=0.8, rng=rng).tolist()
    assert other[:16] == found[:16]
    assert other[16:] != found[16:]


def test_without_examples_seeds_are_random_and_few_tiles_are_all_taken(vectors, rng):
    none = np.empty((0, 4), np.float32)
    assert sorted(seed_set(vectors, none, 100, share=0.8, rng=rng).tolist()) == list(range(60))
    assert len(set(seed_set(vectors, none, 10, share=0.8, rng=rng).tolist())) == 10


def test_a_balanced_pool_keeps_the_rare_and_draws_of_the_others(rng):
    sure = np.eye(3)[[0] * 50 + [1] * 8 + [2] * 2]
    kept = balanced(sure, least=5, rng=rng)
    assert (np.diff(kept) > 0).all()
    assert np.bincount(sure[kept].argmax(1)).tolist() == [5, 5, 2]
    assert np.bincount(sure[balanced(sure[:58], least=0, rng=rng)].argmax(1)).tolist() == [8, 8]
    assert len(balanced(np.empty((0, 3)), least=5, rng=rng)) == 0


def test_neighbours_follow_each_chosen_tile(vectors, rng):
    likely = np.linspace(0, 1, 60)
    rows = np.stack([1 - likely, likely], axis=1)
    arguments = {"sought": 1, "strategy": "positive", "rng": rng}
    found = next_tiles(rows, vectors, vectors[:0], 6, neighbours=2, **arguments).tolist()
    assert found[0] == 59
    assert found[3] == 58
    others = [tile for tile in range(58) if tile not in found]
    for first, near in ((59, found[1:3]), (58, found[4:6])):
        assert max(math.dist(vectors[first], vectors[tile]) for tile in near) <= min(
            math.dist(vectors[first], vectors[tile]) for tile in others
        )
    assert next_tiles(rows, vectors, vectors[:0], 6, **arguments).tolist() == [59, 58, 57, 56, 55, 54]


def test_a_rebalanced_draw_shows_the_rare_class(vectors, rng):
    rows = np.eye(2)[[0] * 57 + [1] * 3]
    found = next_tiles(rows, vectors, vectors[:0], 6, sought=1, strategy="random", rebalance=True, rng=rng)
    assert len(found) == 6
    assert len(next_tiles(rows[:0], vectors[:0], vectors, 6, sought=1, strategy="random", rebalance=True, rng=rng)) == 0
    shares = [
        np.isin(next_tiles(rows, vectors, vectors[:0], 6, sought=1, strategy="random", rebalance=True, rng=rng), [57, 58, 59]).mean()
        for _ in range(300)
    ]
    assert np.mean(shares) == pytest.approx(3 / 9, abs=0.05)


def test_kappa_is_that_of_scikit_learn(rng):
    for _ in range(20):
        ours, theirs = rng.integers(0, 3, (2, 40))
        assert kappa(ours, theirs) == pytest.approx(cohen_kappa_score(ours, theirs))
    assert kappa(np.zeros(9, int), np.zeros(9, int)) == 0


def test_stable_predictions_end_the_work_and_the_rest_is_estimated():
    left = np.array([0.5, 0.25, 0.25])
    assert not advise([0.995], 0.995, left, 9).stable
    assert not advise([1, 1, 0.9], 1, left, 9).stable
    found = advise([0.2, 0.99, 0.995], 1, left, 9)
    assert found.stable
    assert found.words.startswith("predictions are stable: stop")
    assert (found.expected_left, found.expected_recall) == (1.0, 0.9)
    assert advise([], None, np.empty(0), 0).expected_recall == 1
