"""The first tiles to be labelled, when there is no head yet: what looks like the examples, and some that may look like anything."""

from __future__ import annotations

import numpy as np

from rayjobs.geo import FloatArray, IntArray
from rayjobs.labels.acquisition.diversity import Vectors, squared_lengths

_BLOCK = 256
"""Examples that all tiles are compared with at once."""


def seed_set(vectors: Vectors, examples: Vectors, count: int, *, share: float, rng: np.random.Generator) -> IntArray:
    """Return the indices of so many different tiles (all, where there are no more), the neighbours first, nearest first.

    Args:
        vectors: (tiles, dim) embeddings, compared by Euclid: of length 1, in the order of the cosine.
        examples: (examples, dim) of one or several pictures; a tile is as near as the nearest of them. Of none, all tiles are random.
        count: tiles wanted.
        share: of them that are neighbours, 0 to 1; the others are drawn from the rest.
        rng: of the draw.
    """
    count = min(count, len(vectors))
    near = nearest(vectors, examples)[: round(count * share)] if len(examples) else np.empty(0, np.int64)
    rest = np.setdiff1d(np.arange(len(vectors)), near)
    return np.concatenate([near, rng.choice(rest, count - len(near), replace=False)])


def nearest(vectors: Vectors, examples: Vectors) -> IntArray:
    """Return the indices of all tiles, those nearest to any of the examples (one at least) first."""
    apart: FloatArray = np.full(len(vectors), np.inf)
    for start in range(0, len(examples), _BLOCK):
        block = examples[start : start + _BLOCK]
        apart = np.minimum(apart, (squared_lengths(block) - 2.0 * (vectors @ block.T)).min(1))
    return np.argsort(apart + squared_lengths(vectors), kind="stable")
