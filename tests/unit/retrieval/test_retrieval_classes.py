from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, silhouette_score

from rayjobs.retrieval.classes import balanced_accuracy, class_table, cophenetic_correlation, silhouette


def clusters(count=90, gap=6.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return (rng.normal(size=(count, 4)) + gap * np.eye(3, 4)[labels]).astype(np.float32), labels


def test_balanced_accuracy_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    assert balanced_accuracy(truth, predicted) == pytest.approx(balanced_accuracy_score(truth, predicted))


def test_a_prediction_of_a_class_that_never_occurs_is_an_error_and_no_warning():
    assert balanced_accuracy(np.array([0, 0, 1]), np.array([0, 7, 1])) == pytest.approx(0.75)


@pytest.mark.parametrize("metric", [silhouette, cophenetic_correlation])
def test_a_divided_embedding_scores_higher(metric):
    apart, together = metric(*clusters()), metric(*clusters(gap=0.0))
    assert apart > 0.5
    assert abs(together) < 0.1


@pytest.mark.parametrize("metric", [silhouette, cophenetic_correlation])
def test_a_sample_of_many_tiles_comes_near_the_whole_and_is_repeatable(metric):
    vectors, labels = clusters(600, gap=2.0)
    whole, part = metric(vectors, labels), metric(vectors, labels, most=300, seed=3)
    assert part == metric(vectors, labels, most=300, seed=3)
    assert part != whole
    assert part == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize("metric", [silhouette, cophenetic_correlation])
def test_tiles_of_unknown_class_are_left_out(metric):
    vectors, labels = clusters()
    labels[::3] = -1
    assert metric(vectors, labels) == pytest.approx(metric(vectors[labels >= 0], labels[labels >= 0]))


@pytest.mark.parametrize("metric", [silhouette, cophenetic_correlation])
@pytest.mark.parametrize("labels", [[1, 1, 1], [-1, -1, 2], [-1, -1, -1]])
def test_fewer_than_two_classes_have_no_number(metric, labels):
    assert np.isnan(metric(clusters()[0][:3], np.array(labels)))


def test_where_nothing_differs_there_is_no_number():
    vectors = clusters()[0][:3]
    assert np.isnan(silhouette(vectors, np.array([0, 1, 2])))
    assert np.isnan(cophenetic_correlation(vectors, np.array([0, 1, 2])))
    assert np.isnan(cophenetic_correlation(np.ones((3, 2), np.float32), np.array([0, 1, 1])))


def test_the_silhouette_is_that_of_scikit_learn():
    vectors, labels = clusters(gap=1.0)
    assert silhouette(vectors, labels) == pytest.approx(silhouette_score(vectors.astype(float), labels))


def test_a_class_table_counts():
    truth, predicted = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 1])
    table = class_table(truth, predicted, 5)
    assert table.confusion.tolist() == [[2, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [0, 1, 0, 0, 0], [0] * 5]
    assert table.support.tolist() == [3, 2, 0, 1, 0]
    assert table.precision == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    assert table.recall == pytest.approx([2 / 3, 1 / 2, 0, 0, 0])
    assert table.f1 == pytest.approx([2 / 3, 2 / 5, 0, 0, 0])
