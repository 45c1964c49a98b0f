"""Metrics of tiles that have one class each: of predictions, and of how an embedding is divided into classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.cluster.hierarchy
from scipy.spatial.distance import pdist
from sklearn.metrics import (  # type: ignore[import-untyped]  # scikit-learn ships no types
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    silhouette_score,
)

from rayjobs.retrieval.ranking import FloatArray, IntArray, Vectors

SILHOUETTE_TILES = 5000
"""Most tiles that a silhouette is measured on; of more, a random sample."""

COPHENETIC_TILES = 2000
"""Most tiles that a cophenetic correlation is measured on; of more, a random sample. Memory: all pairs of these."""


def balanced_accuracy(truth: IntArray, predicted: IntArray) -> float:
    """Return the mean over the classes of `truth` of the share of their tiles that are predicted right.

    scikit-learn's own warns of predictions of other classes; this one counts them as the errors that they are.
    """
    _, inverse = np.unique(truth, return_inverse=True)
    right = np.bincount(inverse, truth == predicted)
    return float(np.mean(right / np.bincount(inverse)))


CLASSIFICATION: Mapping[str, Callable[[IntArray, IntArray], float]] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy,
    "weighted_f1": partial(f1_score, average="weighted", zero_division=0),
}
"""Metrics of true and predicted classes, (tiles,) each, by name."""


def silhouette(vectors: Vectors, labels: IntArray, *, most: int = SILHOUETTE_TILES, seed: int = 0) -> float:
    """Return the mean silhouette (Rousseeuw 1987) on Euclidean distances.

    Args:
        vectors: (tiles, dim) float32.
        labels: (tiles,) class; tiles of unknown class (negative) are left out.
        most: tiles measured; of more a random sample is.
        seed: of the sample.

    Returns:
        -1 to 1; NaN where there are fewer than two classes, or no class of two tiles.
    """
    vectors, labels = _sample(vectors, labels, most, seed)
    if not 2 <= len(np.unique(labels)) < len(labels):  # noqa: PLR2004  between classes
        return float("nan")
    return float(silhouette_score(vectors.astype(float), labels))


def cophenetic_correlation(vectors: Vectors, labels: IntArray, *, most: int = COPHENETIC_TILES, seed: int = 0) -> float:
    """Return Pearson's correlation of Euclidean distances with the cophenetic ones of a single-linkage tree on the class numbers.

    As the earlier system defined it. Where the classes found have consecutive numbers, the latter are 0 within a class and 1 between
    classes, whichever they are; a gap in the numbers makes the classes on its two sides further apart, which means nothing.

    Args:
        vectors: (tiles, dim) float32.
        labels: (tiles,) class; tiles of unknown class (negative) are left out.
        most: tiles measured; of more a random sample is.
        seed: of the sample.

    Returns:
        -1 to 1; NaN where all distances of one kind are equal.
    """
    vectors, labels = _sample(vectors, labels, most, seed)
    if len(np.unique(labels)) < 2:  # noqa: PLR2004  between classes
        return float("nan")
    between = scipy.cluster.hierarchy.cophenet(scipy.cluster.hierarchy.linkage(labels[:, None].astype(float), "single"))
    distances = pdist(vectors.astype(float))
    if np.ptp(between) == 0 or np.ptp(distances) == 0:
        return float("nan")
    return float(np.corrcoef(distances, between)[0, 1])


EMBEDDING: Mapping[str, Callable[[Vectors, IntArray], float]] = {
    "silhouette": silhouette,
    "cophenetic_correlation": cophenetic_correlation,
}
"""Metrics of vectors and their classes, by name."""


def _sample(vectors: Vectors, labels: IntArray, most: int, seed: int) -> tuple[Vectors, IntArray]:
    """Return what has a class, or a random sample of it."""
    known = np.flatnonzero(labels >= 0)
    if len(known) > most:
        known = np.sort(np.random.default_rng(seed).choice(known, most, replace=False))
    return vectors[known], labels[known]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """How each class fares. Metrics of a class that never occurs, or is never predicted, are 0."""

    precision: FloatArray
    """(classes,) share of what was predicted as the class that is of it."""
    recall: FloatArray
    """(classes,) share of the class that was predicted as it."""
    f1: FloatArray
    """(classes,) harmonic mean of the two."""
    support: IntArray
    """(classes,) tiles of the class."""
    confusion: IntArray
    """(classes, classes) tiles by true class (row) and predicted class (column)."""


def class_table(truth: IntArray, predicted: IntArray, classes: int) -> ClassTable:
    """Return the table of classes 0 to `classes` - 1 from true and predicted classes, (tiles,) each."""
    numbers = np.arange(classes)
    columns: tuple[Any, ...] = precision_recall_fscore_support(truth, predicted, labels=numbers, zero_division=0)
    precision, recall, f1, support = columns
    confusion = confusion_matrix(truth, predicted, labels=numbers)
    return ClassTable(precision=precision, recall=recall, f1=f1, support=support, confusion=confusion)
