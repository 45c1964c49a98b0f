"""A linear probe of single pixels on feature maps, and how well it divides ground into classes.

A cell of a feature map covers several pixels, so that it learns the shares of classes among them; between cells, logits are interpolated.
Knows neither networks nor rasters: maps of features and of classes come in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]  # scikit-learn ships no types
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # likewise
from sklearn.model_selection import GroupShuffleSplit  # type: ignore[import-untyped]  # likewise
from sklearn.pipeline import Pipeline, make_pipeline  # type: ignore[import-untyped]  # likewise
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]  # likewise
from torch.nn import functional

from rayjobs.errors import RetrievalError
from rayjobs.retrieval.intervals import Interval
from rayjobs.retrieval.ranking import FloatArray, IntArray, Vectors

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of regularisation, of which the probe takes that with the least cross-entropy on held-out training units."""

_MIDDLING = PENALTIES[2]
_HELD_OUT = 0.25
_STEPS = 200
"""Most of L-BFGS."""
_CHUNK = 256
"""Resamples drawn together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Cells of feature maps, with what lies in them: what a probe is fitted on."""

    features: Vectors
    """(cells, features) float32."""
    shares: FloatArray
    """(cells, classes) share of each class among the pixels that have one; rows sum to 1."""
    units: np.ndarray[Any, Any]
    """(cells,) unit of ground that each lies in."""


def sample_cells(
    features: Vectors, labels: Sequence[IntArray], units: np.ndarray[Any, Any], classes: int, *, per_tile: int, rng: np.random.Generator
) -> Cells:
    """Draw cells that hold a pixel with a class.

    Args:
        features: (tiles, features, h, w) float32; cells divide their tile evenly.
        labels: (height, width) int of each tile, its pixels' classes from 0, -1 where unknown.
        units: (tiles,).
        classes: how many there are.
        per_tile: most cells of one tile.
        rng: of the draws.
    """
    height, width = features.shape[2:]
    found: list[tuple[Vectors, FloatArray]] = []
    for tile, of_tile in enumerate(labels):
        shares = cell_shares(of_tile, (height, width), classes)
        known = np.flatnonzero(shares.any(axis=1))
        chosen = known if len(known) <= per_tile else np.sort(rng.choice(known, per_tile, replace=False))
        found.append((features[tile].reshape(-1, height * width).T[chosen], shares[chosen]))
    return Cells(
        features=np.concatenate([of_tile for of_tile, _ in found]),
        shares=np.concatenate([shares for _, shares in found]),
        units=np.repeat(units, [len(shares) for _, shares in found]),
    )


def joined(parts: Sequence[Cells]) -> Cells:
    """Return the cells of several samples as one."""
    return Cells(
        features=np.concatenate([part.features for part in parts]),
        shares=np.concatenate([part.shares for part in parts]),
        units=np.concatenate([part.units for part in parts]),
    )


def cell_shares(labels: IntArray, shape: tuple[int, int], classes: int) -> FloatArray:
    """Return (h x w, classes) share of each class among the pixels of each cell that have one; all 0 where none has.

    Args:
        labels: (height, width) int class, -1 where unknown.
        shape: h and w of the map; a pixel belongs to the cell that holds its centre.
        classes: how many there are.
    """
    sizes = zip(labels.shape, shape, strict=True)
    rows, cols = (np.floor((np.arange(size) + 0.5) * cells / size).astype(np.int64) for size, cells in sizes)
    cell = rows[:, None] * shape[1] + cols[None, :]
    known = labels >= 0
    counts = np.bincount(cell[known] * classes + labels[known], minlength=shape[0] * shape[1] * classes)
    counts = counts.reshape(-1, classes).astype(float)
    shares: FloatArray = counts / counts.sum(axis=1, keepdims=True).clip(1)
    return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelProbe:
    """Multinomial logistic regression on standardised features of cells."""

    pipeline: Pipeline
    penalty: float
    """Of `PENALTIES`."""

    @classmethod
    def fit(cls, cells: Cells, *, seed: int = 0) -> PixelProbe:
        """Fit to the shares of classes: a cell counts for each of its classes by that class's share.

        Args:
            cells: at least one; memory is that of their features times the classes in a cell.
            seed: of the units that choose the penalty.

        Raises:
            RetrievalError: all pixels are of one class.
        """
        if np.count_nonzero(cells.shares.any(axis=0)) < 2:  # noqa: PLR2004  one class cannot be told from itself
            raise RetrievalError("the training pixels have fewer than two classes; sample more tiles, or check rasters.label_map")
        penalty = _penalty(cells, seed)
        return cls(pipeline=_fitted(cells, np.arange(len(cells.features)), penalty), penalty=penalty)

    def predict(self, features: Vectors, shapes: Sequence[tuple[int, int]]) -> list[IntArray]:
        """Return the class of each pixel, (height, width) int of each tile.

        Args:
            features: (tiles, features, h, w) float32.
            shapes: height and width in pixels of each tile, to which logits are interpolated (bilinear).
        """
        return [self._predicted(of_tile, shape) for of_tile, shape in zip(features, shapes, strict=True)]

    def _predicted(self, features: Vectors, shape: tuple[int, int]) -> IntArray:
        """Return (height, width) class of each pixel of one tile: many classes of many tiles would take more memory than their features."""
        dim, height, width = features.shape
        flat = _logits(self.pipeline, features.reshape(dim, -1).T)
        logits = torch.from_numpy(flat.reshape(1, height, width, -1)).permute(0, 3, 1, 2)
        resized = functional.interpolate(logits, shape, mode="bilinear", align_corners=False)[0]
        found: IntArray = self.pipeline[-1].classes_[resized.argmax(0).numpy()]
        return found


def _penalty(cells: Cells, seed: int) -> float:
    """Return the penalty that does best on held-out units; a middling one where there is nothing to hold out."""
    if len(np.unique(cells.units)) < 2:  # noqa: PLR2004  one to fit on and one to judge by
        return _MIDDLING
    train, test = next(GroupShuffleSplit(1, test_size=_HELD_OUT, random_state=seed).split(cells.features, groups=cells.units))
    if np.count_nonzero(cells.shares[train].any(axis=0)) < 2:  # noqa: PLR2004  as in `fit`
        return _MIDDLING
    losses = [_log_loss(_fitted(cells, train, penalty), cells.features[test], cells.shares[test]) for penalty in PENALTIES]
    return PENALTIES[int(np.argmin(losses))]


def _log_loss(pipeline: Pipeline, features: Vectors, shares: FloatArray) -> float:
    """Return the cross-entropy of cells with the classes that the probe knows; accuracy would favour seeing the frequent class alone."""
    known = pipeline[-1].classes_
    return -float((shares[:, known] * pipeline.predict_log_proba(features)).sum())


def _fitted(cells: Cells, chosen: IntArray, penalty: float) -> Pipeline:
    cell, label = np.nonzero(cells.shares[chosen])
    weight = cells.shares[chosen][cell, label]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=_STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(cells.features[chosen][cell], label, standardscaler__sample_weight=weight, logisticregression__sample_weight=weight)
    return pipeline


def _logits(pipeline: Pipeline, features: Vectors) -> FloatArray:
    """Return (n, known classes); scikit-learn gives but one number where there are two classes."""
    found: FloatArray = pipeline.decision_function(features)
    return found if found.ndim > 1 else np.stack([np.zeros_like(found), found], axis=1)


def confusion(truth: IntArray, predicted: IntArray, classes: int) -> IntArray:
    """Return (classes, classes) pixels by true class (row) and predicted class (column); where the truth is negative, none."""
    known = truth >= 0
    return np.bincount(truth[known] * classes + predicted[known], minlength=classes**2).reshape(classes, classes)


def class_iou(confusions: IntArray | FloatArray) -> FloatArray:
    """Return (..., classes) intersection over union of each class (Jaccard index), NaN for classes that no true pixel has.

    Args:
        confusions: (..., classes, classes) as of `confusion`, or sums of such.
    """
    right = np.diagonal(confusions, axis1=-2, axis2=-1).astype(float)
    true, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, right / (true + predicted - right), np.nan)


def mean_iou(confusions: IntArray | FloatArray) -> FloatArray:
    """Return (...,) the mean of `class_iou` over the classes that a true pixel has; NaN where no pixel has a class."""
    found = class_iou(confusions)
    there = np.isfinite(found)
    with np.errstate(invalid="ignore"):
        mean: FloatArray = np.where(there, found, 0.0).sum(axis=-1) / there.sum(axis=-1)
    return mean


def pixel_accuracy(confusions: IntArray | FloatArray) -> FloatArray:
    """Return (...,) the share of pixels predicted right; NaN where no pixel has a class."""
    with np.errstate(invalid="ignore"):
        share: FloatArray = np.trace(confusions, axis1=-2, axis2=-1) / confusions.sum(axis=(-2, -1))
    return share


SEGMENTATION: Mapping[str, Callable[[IntArray | FloatArray], FloatArray]] = {"mIoU": mean_iou, "pixel_accuracy": pixel_accuracy}
"""Metrics of confusion matrices, by name."""


def segmentation_interval(
    metric: str, confusions: IntArray, units: np.ndarray[Any, Any], *, minus: IntArray | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return a metric of all tiles together, with a 95 % interval from resampling whole units with replacement.

    The metrics are no means over tiles: each resample sums up the confusions of its units, and takes the metric of the sum.

    Args:
        metric: a name of `SEGMENTATION`.
        confusions: (tiles, classes, classes) of each tile.
        units: (tiles,) the unit of each tile.
        minus: (tiles, classes, classes) of another method on the same tiles: its metric is subtracted in each resample.
        resamples: number of resamples.
        seed: of the resampling.
    """
    of = SEGMENTATION[metric]
    names, inverse = np.unique(units, return_inverse=True)
    methods = [confusions] if minus is None else [confusions, minus]
    sums = [_summed(method, inverse, len(names)) for method in methods]
    rng = np.random.default_rng(seed)
    values: list[FloatArray] = []
    for start in range(0, resamples, _CHUNK):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(_CHUNK, resamples - start))
        values.append(_difference([of(np.tensordot(times, of_units, 1)) for of_units in sums]))
    low, high = np.nanpercentile(np.concatenate(values), [2.5, 97.5])
    value = _difference([of(of_units.sum(axis=0)) for of_units in sums])
    return Interval(value=float(value), low=float(low), high=float(high), units=len(names))


def _summed(confusions: IntArray, inverse: IntArray, count: int) -> FloatArray:
    sums = np.zeros((count, *confusions.shape[1:]))
    np.add.at(sums, inverse, confusions)
    return sums


def _difference(values: Sequence[FloatArray]) -> FloatArray:
    return values[0] if len(values) == 1 else values[0] - values[1]
