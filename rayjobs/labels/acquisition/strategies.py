"""How much a tile is wanted for labelling, from the probabilities that a head gives its classes.

Every strategy is a score for each tile, the highest wanted most; chance, where there is any, is in the score. So each goes with every
way of choosing in `diversity`. Of two classes, least confidence, margin and entropy put tiles in one and the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from rayjobs.geo import FloatArray

Strategy = Literal["random", "least_confidence", "margin", "entropy", "uncertain_balanced", "positive", "gaussian"]
Scores = Callable[[FloatArray, int, np.random.Generator], FloatArray]
"""Takes probabilities (tiles, classes) whose rows sum to 1, the column of the class that is sought, and where chance comes from; returns
(tiles,) scores."""

_MEAN, _DEVIATION = 0.5, 0.2
"""Of the weights of `gaussian`."""


def random(probabilities: FloatArray, sought: int, rng: np.random.Generator) -> FloatArray:  # noqa: ARG001  chance asks nobody
    """Score by chance alone: the best are a sample without replacement."""
    return rng.random(len(probabilities))


def least_confidence(probabilities: FloatArray, sought: int, rng: np.random.Generator) -> FloatArray:  # noqa: ARG001  no class is sought
    """Score 1 - max p (Lewis and Gale, 1994); of two classes, the nearest to .5."""
    scores: FloatArray = 1 - probabilities.max(1)
    return scores


def margin(probabilities: FloatArray, sought: int, rng: np.random.Generator) -> FloatArray:  # noqa: ARG001  likewise
    """Score p2 - p1, the two largest probabilities, the largest last (Scheffer et al., 2001)."""
    ordered = np.sort(probabilities, axis=1)
    scores: FloatArray = ordered[:, -2] - ordered[:, -1]
    return scores


def entropy(probabilities: FloatArray, sought: int, rng: np.random.Generator) -> FloatArray:  # noqa: ARG001  likewise
    """Score - sum p log p, in nats (Shannon, 1948)."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    scores: FloatArray = -(probabilities * logs).sum(1)
    return scores


def uncertain_balanced(probabilities: FloatArray, sought: int, rng: np.random.Generator) -> FloatArray:  # noqa: ARG001  no chance
    """Score by turns the most uncertain tile that the head takes for the class sought, and the most uncertain that it does not.

    The best n hold n/2 of each side; where one side is used up, the other follows.
    """
    scores = np.empty(len(probabilities))
    wanted = probabilities[:, sought]
    for side in (wanted >= _MEAN, wanted < _MEAN):
        (tiles,) = np.nonzero(side)
        ordered = tiles[np.argsort(np.abs(wanted[tiles] - _MEAN), kind="stable")]
        scores[ordered] = -np.arange(len(tiles), dtype=float)
    return scores


def positive(probabilities: FloatArray, sought: int, rng: np.random.Generator) -> FloatArray:  # noqa: ARG001  no chance
    """Score the probability of the class sought."""
    return probabilities[:, sought].copy()


def gaussian(probabilities: FloatArray, sought: int, rng: np.random.Generator) -> FloatArray:
    """Score so that the best n are a sample without replacement with weights N(p; .5, .2) of the class sought.

    log weight + Gumbel noise: taking the largest is drawing one by one with those weights (Efraimidis and Spirakis, 2006).
    """
    exponents = -np.square((probabilities[:, sought] - _MEAN) / _DEVIATION) / 2
    return np.asarray(exponents + rng.gumbel(size=len(probabilities)))


STRATEGIES: Mapping[Strategy, Scores] = {
    "random": random,
    "least_confidence": least_confidence,
    "margin": margin,
    "entropy": entropy,
    "uncertain_balanced": uncertain_balanced,
    "positive": positive,
    "gaussian": gaussian,
}
"""Strategies by name."""
