"""A classifier of embeddings, trained in a second on the tiles that have a label: balanced classes, calibrated probabilities.

Nothing is carried over from an earlier head. The same vectors, labels and seed give the same head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.optimize
import scipy.special
from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]  # scikit-learn ships no types
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # likewise
from sklearn.metrics import average_precision_score  # type: ignore[import-untyped]  # likewise
from sklearn.model_selection import StratifiedKFold  # type: ignore[import-untyped]  # likewise
from sklearn.neural_network import MLPClassifier  # type: ignore[import-untyped]  # likewise
from threadpoolctl import threadpool_limits

from rayjobs.errors import TrainingError
from rayjobs.retrieval.classes import CLASSIFICATION
from rayjobs.retrieval.ranking import FloatArray, IntArray, Vectors

Kind = Literal["linear", "mlp"]
Layers = tuple[tuple[FloatArray, FloatArray], ...]
"""(inputs, outputs) weights and (outputs,) bias of each layer, between which negative values become 0."""

_FOLDS = 5
_PENALTY = 100.0
"""scikit-learn's C, on vectors whose mean square length is 1."""
_STEPS = 500
_HIDDEN = 64
_DECAY = 1e-2
_PRIOR = 1.0
"""How strongly the calibration is held to doing nothing, in tiles: few labels cannot move it far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A trained classifier."""

    classes: IntArray
    """(known,) classes that it was trained on, ascending."""
    count: int
    """Classes that there are."""
    layers: Layers
    """The last has an output for each of `classes`."""
    temperature: float
    """What logits are divided by."""
    offsets: FloatArray
    """(known,) added to the logits after that."""

    def probabilities(self, vectors: Vectors) -> FloatArray:
        """Return (tiles, count) calibrated probabilities, rows summing to 1; 0 for classes that no training tile had.

        Args:
            vectors: (tiles, dim) float32.
        """
        return self.calibrated(_through(self.layers, vectors))

    def calibrated(self, logits: FloatArray) -> FloatArray:
        """Return (tiles, count) probabilities of (tiles, known) logits."""
        found = np.zeros((len(logits), self.count))
        found[:, self.classes] = scipy.special.softmax(logits / self.temperature + self.offsets, axis=1)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A head, and what is known of how good it is."""

    head: Head
    """Trained on all labels."""
    validated: FloatArray | None
    """(tiles, count) probabilities of the training tiles by heads that had not seen them; None where a class has one tile alone. The tiles
    were chosen for labelling, so what is measured of these speaks of them and not of all ground."""


def train_head(vectors: Vectors, labels: IntArray, count: int, *, kind: Kind = "linear", seed: int = 0) -> Trained:
    """Train a head.

    Its probabilities are calibrated by one temperature and an offset for each class, fitted on stratified folds (bias-corrected
    temperature scaling: Alexandari et al., 2020; of two classes Platt's). So each label trains, and each validates once.

    Args:
        vectors: (tiles, dim) float32, finite.
        labels: (tiles,) class of each, 0 to count - 1; at least two different.
        count: classes that there are.
        kind: of `KINDS`.
        seed: of the folds and of weights that begin at random.

    Raises:
        TrainingError: all labels are of one class.
    """
    classes, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:  # noqa: PLR2004  a choice is between two
        raise TrainingError(f"{len(labels)} labels are of {len(classes)} class alone, and a head needs two; label more tiles")
    centre = vectors.mean(0, dtype=np.float64)
    points = vectors - centre
    scale = float(np.sqrt(np.square(points).sum(1).mean())) or 1.0
    made = partial(KINDS[kind], seed=seed)
    with threadpool_limits(limits=1), warnings.catch_warnings():  # how BLAS shares a product among threads may change its last bit
        warnings.simplefilter("ignore", ConvergenceWarning)  # a head that is nearly there serves as well
        axes = _axes(points)
        points = points @ axes / scale
        ((first, bias), *further) = made(points, codes, _balance(codes))
        logits = _unseen(made, points, codes, int(sizes.min()), seed)
    temperature, offsets = (1.0, np.zeros(len(classes))) if logits is None else _calibration(logits, codes)
    head = Head(
        classes=classes,
        count=count,
        layers=((axes @ first / scale, bias - centre @ axes @ first / scale), *further),
        temperature=temperature,
        offsets=offsets,
    )
    return Trained(head=head, validated=None if logits is None else head.calibrated(logits))


def _axes(points: FloatArray) -> FloatArray:
    """Return (dim, axes) orthonormal axes that hold all points: a penalised head has no part outside, and few points are learned faster."""
    tiles, dim = points.shape
    return np.linalg.qr(points.T)[0] if tiles < dim else np.eye(dim)


def _unseen(made: Callable[..., Layers], points: FloatArray, codes: IntArray, rarest: int, seed: int) -> FloatArray | None:
    """Return (tiles, known) logits of each tile by a head that has not seen it; None where a class has one tile alone."""
    if rarest < 2:  # noqa: PLR2004  a fold to train on, and one to validate
        return None
    logits = np.empty((len(codes), int(codes.max()) + 1))
    for train, test in StratifiedKFold(min(_FOLDS, rarest), shuffle=True, random_state=seed).split(points, codes):
        logits[test] = _through(made(points[train], codes[train], _balance(codes[train])), points[test])
    return logits


def _balance(codes: IntArray) -> FloatArray:
    """Return (tiles,) weights with which each class weighs the same, 1 in the mean."""
    sizes = np.bincount(codes)
    weights: FloatArray = (len(codes) / len(sizes) / sizes)[codes]
    return weights


def _through(layers: Layers, points: FloatArray | Vectors) -> FloatArray:
    values: np.ndarray[Any, Any] = np.asarray(points)
    for number, (weights, bias) in enumerate(layers):
        values = (np.maximum(values, 0) if number else values) @ weights + bias
    return np.asarray(values, np.float64)


def _linear(points: FloatArray, codes: IntArray, weights: FloatArray, seed: int) -> Layers:
    """Fit a logistic regression."""
    found = LogisticRegression(C=_PENALTY, max_iter=_STEPS, random_state=seed).fit(points, codes, weights)
    return _both_sides((found.coef_.T, found.intercept_))


def _mlp(points: FloatArray, codes: IntArray, weights: FloatArray, seed: int) -> Layers:
    """Fit a perceptron with one hidden layer of 64."""
    made = MLPClassifier((_HIDDEN,), solver="lbfgs", alpha=_DECAY, max_iter=_STEPS, random_state=seed)
    found = made.fit(points, codes, sample_weight=weights)
    return _both_sides(*zip(found.coefs_, found.intercepts_, strict=True))


def _both_sides(*layers: tuple[Any, Any]) -> Layers:
    """Give the first of two classes a logit of its own, 0, where there is but one for the second."""
    *inner, (weights, bias) = layers
    if len(bias) == 1:
        weights, bias = np.hstack([np.zeros_like(weights), weights]), np.array([0.0, bias[0]])
    return (*inner, (weights, bias))


KINDS: Mapping[Kind, Callable[..., Layers]] = {"linear": _linear, "mlp": _mlp}
"""Kinds of heads by name; each takes points, codes, weights and a seed."""


def _calibration(logits: FloatArray, codes: IntArray) -> tuple[float, FloatArray]:
    """Return the temperature and the offsets of greatest likelihood, held to 1 and 0 by a weak prior."""
    truth = np.arange(len(codes)), codes

    def loss(values: FloatArray) -> float:
        likely = scipy.special.log_softmax(logits * np.exp(-values[0]) + values[1:], axis=1)[truth]
        return float(_PRIOR * np.square(values).sum() / 2 - likely.sum())

    found = scipy.optimize.minimize(loss, np.zeros(logits.shape[1] + 1), method="L-BFGS-B").x
    return float(np.exp(found[0])), found[1:]


def head_metrics(probabilities: FloatArray, labels: IntArray, sought: int) -> dict[str, float]:
    """Return what probabilities are worth, by name.

    Args:
        probabilities: (tiles, classes), one tile at least.
        labels: (tiles,) true class.
        sought: the class whose average precision is `AP`; without a tile of it there is none.

    Returns:
        accuracy, balanced accuracy, weighted F1, expected calibration error, and AP.
    """
    predicted, positive = probabilities.argmax(1), labels == sought
    found = {name: float(metric(labels, predicted)) for name, metric in CLASSIFICATION.items()}
    precision = {"AP": float(average_precision_score(positive, probabilities[:, sought]))} if positive.any() else {}
    return {**precision, **found, "calibration_error": calibration_error(probabilities, labels)}


def calibration_error(probabilities: FloatArray, labels: IntArray, *, bins: int = 10) -> float:
    """Return the expected calibration error (Guo et al., 2017): how far confidence lies from accuracy, mean over tiles.

    Args:
        probabilities: (tiles, classes).
        labels: (tiles,) true class.
        bins: of equal width in the largest probability.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    of_bin = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(of_bin, confidence - right, bins)
    return float(np.abs(gaps).sum() / len(labels))
