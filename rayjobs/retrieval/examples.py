"""One query out of several examples: what hits should look like, and what they should not.

Every method ends in one vector of length 1 that is compared by inner product, so that any index can be searched with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]  # scikit-learn ships no types
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from rayjobs.errors import QueryError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Method = Literal["mean", "rocchio", "linear"]

BACKGROUND = 1000
"""Tiles drawn from the index that a linear head tells positives from."""

_ALPHA, _BETA, _GAMMA = 1.0, 0.75, 0.15
"""Rocchio's weights of the query, the positives and the negatives: Manning, Raghavan, Schuetze (2008), section 9.1.1."""
_PENALTY = 100.0
"""scikit-learn's C for weights that sum up to 1: mild."""
_STEPS = 200
_NO_DIRECTION = 1e-6
"""Vectors shorter than this are what rounding left of examples that cancel out."""


def query_vector(positives: Vectors, negatives: Vectors, background: Callable[[], Vectors], *, method: Method | None = None) -> Vectors:
    """Return the query, (dim,) float32 of length 1.

    Args:
        positives: (p, dim) of length 1, at least one; the first is the query that the others refine.
        negatives: (n, dim) of length 1.
        background: gives (b, dim) tiles drawn at random, of which few will be like the positives; only `linear` asks.
        method: of `METHODS`; None takes `rocchio` where there are negatives, else `mean`.

    Raises:
        QueryError: examples that cancel out, or that the method cannot use.
    """
    chosen = method or ("rocchio" if len(negatives) else "mean")
    return unit(METHODS[chosen](positives.astype(np.float64), negatives.astype(np.float64), background))


def unit(vector: FloatArray | Vectors) -> Vectors:
    """Return a vector (dim,) at length 1. Raises `QueryError` where it has no direction."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not _NO_DIRECTION < length < np.inf:
        raise QueryError("the query has no direction: its length is zero or not finite; give other examples")
    return np.asarray(vector / length, np.float32)


def _mean(positives: FloatArray, negatives: FloatArray, _: Callable[[], Vectors]) -> FloatArray:
    if len(negatives):
        raise QueryError("method mean takes no negatives; use rocchio or linear")
    return np.asarray(positives.mean(axis=0), np.float64)


def _rocchio(positives: FloatArray, negatives: FloatArray, _: Callable[[], Vectors]) -> FloatArray:
    moved = _ALPHA * positives[0] + _BETA * positives.mean(axis=0)
    return np.asarray(moved - _GAMMA * negatives.mean(axis=0) if len(negatives) else moved, np.float64)


def _linear(positives: FloatArray, negatives: FloatArray, background: Callable[[], Vectors]) -> FloatArray:
    """Fit a logistic regression; both sides weigh the same, and of the other side the negatives as much as the background."""
    others = [side for side in (negatives, background().astype(np.float64)) if len(side)]
    if not others:
        raise QueryError("method linear needs negatives, or other tiles in the index; use mean")
    weights = [np.full(len(positives), 0.5 / len(positives)), *(np.full(len(side), 0.5 / len(others) / len(side)) for side in others)]
    truth = np.repeat([1, 0], [len(positives), sum(map(len, others))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a head that is nearly there ranks as well
        head = LogisticRegression(C=_PENALTY, max_iter=_STEPS).fit(np.concatenate([positives, *others]), truth, np.concatenate(weights))
    return np.asarray(head.coef_[0], np.float64)


METHODS: Mapping[str, Callable[[FloatArray, FloatArray, Callable[[], Vectors]], FloatArray]] = {
    "mean": _mean,
    "rocchio": _rocchio,
    "linear": _linear,
}
"""Ways to make one vector out of positives and negatives, by name."""
