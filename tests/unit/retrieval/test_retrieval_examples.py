"""Queries out of several examples: published formulas, and what a head fitted on the spot must do."""

from __future__ import annotations

import numpy as np
import pytest

from rayjobs.errors import QueryError
from rayjobs.retrieval.examples import METHODS, query_vector, unit


def directions(seed, count, dim=16):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


NONE = np.empty((0, 16), np.float32)


def never():
    pytest.fail("the background was asked for")


def test_the_mean_of_one_is_itself():
    [one] = directions(0, 1)
    np.testing.assert_allclose(query_vector(one[None], NONE, never), one, atol=1e-6)


def test_several_positives_are_averaged():
    vectors = directions(0, 3)
    mean = vectors.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(query_vector(vectors, NONE, never), mean / np.linalg.norm(mean), atol=1e-6)


def test_rocchio_has_the_published_weights():
    """Manning, Raghavan, Schuetze, Introduction to Information Retrieval (2008), 9.1.1: alpha 1, beta 0.75, gamma 0.15."""
    liked, disliked = directions(0, 3), directions(1, 2)
    moved = 1.0 * liked[0] + 0.75 * (liked[0] + liked[1] + liked[2]) / 3 - 0.15 * (disliked[0] + disliked[1]) / 2
    np.testing.assert_allclose(query_vector(liked, disliked, never), moved / np.linalg.norm(moved), atol=1e-6)
    assert np.array_equal(query_vector(liked, disliked, never), query_vector(liked, disliked, never, method="rocchio"))


def test_a_linear_head_ranks_positives_above_background_and_negatives_below():
    rng = np.random.default_rng(3)
    centre, other = directions(4, 2, 64)
    drawn = [unit(centre + 0.5 * noise) for noise in directions(5, 40, 64)]
    confused = [unit(centre + 0.8 * other + 0.5 * noise) for noise in directions(6, 40, 64)]
    background = directions(7, 500, 64)
    query = query_vector(np.array(drawn[:4]), np.array(confused[:4]), lambda: background, method="linear")
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-6)
    liked, disliked, rest = np.array(drawn[4:]) @ query, np.array(confused[4:]) @ query, background @ query
    assert (liked > np.quantile(disliked, 0.9)).mean() > 0.9
    assert liked.min() > np.quantile(rest, 0.99)
    mean = query_vector(np.array(drawn[:4]), np.empty((0, 64), np.float32), never)
    assert liked.mean() - disliked.mean() > (np.array(drawn[4:]) @ mean).mean() - (np.array(confused[4:]) @ mean).mean() - 0.1
    again = query_vector(np.array(drawn[:4]), np.array(confused[:4]), lambda: background, method="linear")
    assert np.array_equal(query, again)
    assert rng is not None


def test_a_linear_head_needs_something_to_tell_apart():
    with pytest.raises(QueryError, match="needs negatives, or other tiles"):
        query_vector(directions(0, 1), NONE, lambda: NONE, method="linear")
    alone = query_vector(directions(0, 1), directions(1, 3), lambda: NONE, method="linear")
    assert alone @ directions(0, 1)[0] > max(directions(1, 3) @ alone)


def test_the_mean_takes_no_negatives():
    with pytest.raises(QueryError, match="takes no negatives; use rocchio or linear"):
        query_vector(directions(0, 1), directions(1, 1), never, method="mean")


def test_examples_that_cancel_out_are_refused():
    [one] = directions(0, 1)
    with pytest.raises(QueryError, match="no direction"):
        query_vector(np.stack([one, -one]), NONE, never)
    with pytest.raises(QueryError, match="no direction"):
        unit(np.full(4, np.nan))


def test_every_method_is_named():
    assert set(METHODS) == {"mean", "rocchio", "linear"}
