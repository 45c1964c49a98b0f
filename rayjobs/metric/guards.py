"""Guards of mining: which candidates are no negatives of an anchor, however near their embeddings lie."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Fractions = np.ndarray[Any, np.dtype[np.float32]]

ROUNDING = 1e-5
"""How far a sum of shares in float32 may be off."""


class Guard(Protocol):
    """A rule over pairs of tiles, vectorised."""

    name: str
    """Under which its refusals are counted."""

    def refuses(self, anchors: IntArray, candidates: IntArray) -> BoolArray:
        """Return (pairs,) bool, True where the candidate is no negative of the anchor.

        Args:
            anchors: (pairs,) indices of tiles.
            candidates: (pairs,) indices of tiles.
        """
        ...


class OverlapGuard:
    """Refuses candidates whose ground may overlap the anchor's, on whichever date and in whichever scene."""

    name = "overlap"

    def __init__(self, positions: FloatArray, reaches: FloatArray) -> None:
        """Take where the tiles lie.

        Args:
            positions: (tiles, 3) centres, in metres or pixels.
            reaches: (tiles,) from a centre to its tile's farthest corner, in the same unit. Tiles turned against each other in any way are
                apart when their centres are farther apart than their reaches together: nearer than that counts as overlap.
        """
        self._positions, self._reach = positions, reaches

    def refuses(self, anchors: IntArray, candidates: IntArray) -> BoolArray:
        """See `Guard`."""
        return _distances(self._positions, anchors, candidates) < self._reach[anchors] + self._reach[candidates]


class DistanceGuard:
    """Refuses candidates nearer than some tile sizes, whose ground is likely of the anchor's kind; or, if wanted, farther than some."""

    name = "distance"

    def __init__(self, positions: FloatArray, sizes: FloatArray, *, min_dist: float, max_dist: float | None = None) -> None:
        """Take where the tiles lie.

        Args:
            positions: (tiles, 3) centres, in metres or pixels.
            sizes: (tiles,) sides, in the same unit.
            min_dist: least distance between centres, in sizes of the larger of the two tiles.
            max_dist: greatest distance, likewise; None for any.
        """
        self._positions, self._sizes, self._min_dist = positions, sizes, min_dist
        self._max_dist = math.inf if max_dist is None else max_dist

    def refuses(self, anchors: IntArray, candidates: IntArray) -> BoolArray:
        """See `Guard`."""
        in_sizes = _distances(self._positions, anchors, candidates) / np.maximum(self._sizes[anchors], self._sizes[candidates])
        return (in_sizes < self._min_dist) | (in_sizes > self._max_dist)


class LabelGuard:
    """Refuses candidates of the anchor's class, where both are known."""

    name = "label"

    def __init__(self, labels: IntArray) -> None:
        """Take (tiles,) classes, negative where unknown."""
        self._labels = labels

    def refuses(self, anchors: IntArray, candidates: IntArray) -> BoolArray:
        """See `Guard`."""
        wanted = self._labels[anchors]
        same: BoolArray = (wanted == self._labels[candidates]) & (wanted >= 0)
        return same


class ProportionGuard:
    """Refuses candidates that share more of their classes with the anchor than two tiles that are unlike may."""

    name = "proportions"

    def __init__(self, fractions: Fractions, *, max_shared: float) -> None:
        """Take what the tiles show.

        Args:
            fractions: (tiles, classes) share of each class, 0 throughout where unknown: such a tile shares nothing.
            max_shared: greatest `shared_proportion` of two tiles that are unlike.
        """
        self._fractions, self._max_shared = fractions, max_shared + ROUNDING

    def refuses(self, anchors: IntArray, candidates: IntArray) -> BoolArray:
        """See `Guard`."""
        refused: BoolArray = shared_proportion(self._fractions[anchors], self._fractions[candidates]) > self._max_shared
        return refused


def shared_proportion(one: Fractions, other: Fractions) -> Fractions:
    """Return how much of their classes tiles share: sum_c min(one_c, other_c), 0 to 1; (..., classes) each, broadcast."""
    found: Fractions = np.minimum(one, other).sum(axis=-1)
    return found


def _distances(positions: FloatArray, anchors: IntArray, candidates: IntArray) -> FloatArray:
    apart = positions[anchors] - positions[candidates]
    found: FloatArray = np.sqrt(np.einsum("pd,pd->p", apart, apart))
    return found
