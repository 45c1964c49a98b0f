"""Guards of mining: which candidates are no negatives of an anchor, however near their embeddings lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Fractions = np.ndarray[Any, np.dtype[np.float32]]

ROUNDING = 1e-5
"""How far a sum of shares in float32 may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Anchors, and the candidates that a guard is asked about: those that every guard before it has admitted."""

    anchors: IntArray
    """(pairs,) indices of tiles; equal ones stand together."""
    candidates: IntArray
    """(pairs,) indices of tiles; of one anchor, the most similar first."""
    scores: Fractions
    """(pairs,) float32 cosine similarity of the two."""
    ceilings: Fractions
    """(pairs,) float32 cosine similarity of the anchor and the most similar of its known positives; infinity where it has none."""
    chosen: IntArray
    """(pairs, negatives) what the anchor has so far been given, of the candidates before these; -1 where nothing."""


class Guard(Protocol):
    """A rule over pairs of tiles, vectorised."""

    name: str
    """Under which its refusals are counted."""

    def refuses(self, pairs: Pairs) -> BoolArray:
        """Return (pairs,) bool, True where the candidate is no negative of the anchor."""
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

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        return _distances(self._positions, pairs) < self._reach[pairs.anchors] + self._reach[pairs.candidates]


class PlaceGuard:
    """Refuses candidates that show the anchor's own place, on another date or in another scene."""

    name = "place"

    def __init__(self, places: IntArray) -> None:
        """Take (tiles,) the number of each tile's place."""
        self._places = places

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        same: BoolArray = self._places[pairs.anchors] == self._places[pairs.candidates]
        return same


class DateGuard:
    """Refuses candidates of the anchor's own date, where places are looked for on others."""

    name = "date"

    def __init__(self, dates: IntArray) -> None:
        """Take (tiles,) the number of each tile's date."""
        self._dates = dates

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        same: BoolArray = self._dates[pairs.anchors] == self._dates[pairs.candidates]
        return same


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

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        in_sizes = _distances(self._positions, pairs) / np.maximum(self._sizes[pairs.anchors], self._sizes[pairs.candidates])
        return (in_sizes < self._min_dist) | (in_sizes > self._max_dist)


class LabelGuard:
    """Refuses candidates of the anchor's class, where both are known."""

    name = "label"

    def __init__(self, labels: IntArray) -> None:
        """Take (tiles,) classes, negative where unknown."""
        self._labels = labels

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        wanted = self._labels[pairs.anchors]
        same: BoolArray = (wanted == self._labels[pairs.candidates]) & (wanted >= 0)
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

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        shared = shared_proportion(self._fractions[pairs.anchors], self._fractions[pairs.candidates])
        refused: BoolArray = shared > self._max_shared
        return refused


class SimilarityGuard:
    """Refuses candidates that are all but the anchor's likeness: probably the same thing, whatever else is known of them."""

    name = "max_similarity"

    def __init__(self, *, most: float) -> None:
        """Take the greatest cosine similarity of a negative."""
        self._most = most

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        refused: BoolArray = pairs.scores > self._most
        return refused


class BeyondPositivesGuard:
    """Refuses candidates more similar to the anchor than all its known positives (Moreira et al., NV-Retriever, 2024, TopK-MarginPos with
    margin 0): probable positives that nobody has told of."""  # noqa: D205,D209  one sentence with its source

    name = "beyond_positives"

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        refused: BoolArray = pairs.scores > pairs.ceilings
        return refused


class SceneGuard:
    """Refuses further candidates of a scene that has given the anchor enough. To be asked last: what a later guard refused would count."""

    name = "max_per_scene"

    def __init__(self, scenes: IntArray, *, most: int) -> None:
        """Take the number of each tile's scene, (tiles,) from 0, and how many negatives one scene may give an anchor."""
        self._scenes, self._most = scenes, most

    def refuses(self, pairs: Pairs) -> BoolArray:
        """See `Guard`."""
        scenes = self._scenes[pairs.candidates]
        given = ((self._scenes[pairs.chosen] == scenes[:, None]) & (pairs.chosen >= 0)).sum(axis=1)
        refused: BoolArray = given + _earlier_alike(pairs.anchors, scenes) >= self._most
        return refused


def _earlier_alike(anchors: IntArray, scenes: IntArray) -> IntArray:
    """Return for each pair how many before it have the same anchor and the same scene."""
    order = np.lexsort((scenes, anchors))  # stable
    begins = np.ones(len(order), bool)
    begins[1:] = (np.diff(anchors[order]) != 0) | (np.diff(scenes[order]) != 0)
    position = np.arange(len(order))
    earlier = np.empty(len(order), np.int64)
    earlier[order] = position - np.maximum.accumulate(np.where(begins, position, 0))
    return earlier


def shared_proportion(one: Fractions, other: Fractions) -> Fractions:
    """Return how much of their classes tiles share: sum_c min(one_c, other_c), 0 to 1; (..., classes) each, broadcast."""
    found: Fractions = np.minimum(one, other).sum(axis=-1)
    return found


def _distances(positions: FloatArray, pairs: Pairs) -> FloatArray:
    apart = positions[pairs.anchors] - positions[pairs.candidates]
    found: FloatArray = np.sqrt(np.einsum("pd,pd->p", apart, apart))
    return found
