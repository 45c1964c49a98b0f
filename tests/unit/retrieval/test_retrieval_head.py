from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rayjobs.errors import TrainingError
from rayjobs.retrieval.head import KINDS, calibration_error, head_metrics, train_head


def blobs(count, classes, dim=16, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, dim)) * 2
    return (centres[labels] + rng.normal(size=(count, dim)) * spread * 2).astype(np.float32), labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_head_tells_classes_apart_and_is_the_same_again(kind, classes):
    vectors, labels = blobs(160, classes)
    found = train_head(vectors, labels, classes, kind=kind, seed=3)
    again = train_head(vectors, labels, classes, kind=kind, seed=3)
    unseen, truth = blobs(400, classes, seed=1)
    rows = found.head.probabilities(unseen)
    assert rows.sum(1) == pytest.approx(np.ones(400))
    assert (rows == again.head.probabilities(unseen)).all()
    assert (found.validated == again.validated).all()
    assert (rows.argmax(1) == truth).mean() > 0.9
    assert (found.validated.argmax(1) == labels).mean() > 0.85


@pytest.mark.parametrize("count", [12, 200])
def test_the_linear_head_is_scikit_learns_on_the_whole_vectors(count):
    vectors, labels = blobs(count, 2, dim=40)
    points = (vectors - vectors.mean(0)) / np.sqrt(np.square(vectors - vectors.mean(0)).sum(1).mean())
    theirs = LogisticRegression(C=100, class_weight="balanced", max_iter=5000, tol=1e-6).fit(points, labels)
    head = dataclasses.replace(train_head(vectors, labels, 2).head, temperature=1.0, offsets=np.zeros(2))
    assert head.probabilities(vectors)[:, 1] == pytest.approx(theirs.predict_proba(points)[:, 1], abs=0.01)


def test_calibration_undoes_the_balance_and_the_overconfidence_of_few_rare_labels():
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.06).astype(int)
    vectors = (rng.normal(size=(4000, 30)) + labels[:, None] * 0.35).astype(np.float32)
    found = train_head(vectors[:500], labels[:500], 2).head
    plain = dataclasses.replace(found, temperature=1.0, offsets=np.zeros(2))
    ours, theirs = (calibration_error(head.probabilities(vectors[500:]), labels[500:]) for head in (found, plain))
    assert ours < theirs / 3
    assert found.probabilities(vectors[500:])[:, 1].sum() == pytest.approx(labels[500:].sum(), rel=0.35)


def test_a_class_that_no_label_has_gets_nothing_and_a_single_tile_of_a_class_is_not_validated():
    vectors, labels = blobs(40, 2)
    found = train_head(vectors, labels * 2, 4)
    assert (found.head.probabilities(vectors)[:, [1, 3]] == 0).all()
    labels = np.zeros(40, int)
    labels[7] = 1
    single = train_head(vectors, labels, 2)
    assert single.validated is None
    assert single.head.temperature == 1


def test_one_class_is_no_choice():
    vectors, _ = blobs(5, 2)
    with pytest.raises(TrainingError, match="label more tiles"):
        train_head(vectors, np.ones(5, int), 2)


def test_the_calibration_error_is_that_of_a_loop():
    rng = np.random.default_rng(2)
    rows, labels = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200)
    total = 0.0
    for number in range(10):
        inside = [(row, label) for row, label in zip(rows, labels, strict=True) if number / 10 <= max(row) < (number + 1) / 10]
        if inside:
            confidence = np.mean([max(row) for row, _ in inside])
            total += len(inside) * abs(confidence - np.mean([row.argmax() == label for row, label in inside]))
    assert calibration_error(rows, labels) == pytest.approx(total / 200)


def test_metrics_leave_out_what_cannot_be_measured():
    rows = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    found = head_metrics(rows, np.array([0, 1, 1]), 1)
    assert (found["AP"], found["accuracy"], found["balanced_accuracy"]) == pytest.approx((1, 2 / 3, 0.75))
    assert "AP" not in head_metrics(rows, np.array([0, 0, 0]), 1)
