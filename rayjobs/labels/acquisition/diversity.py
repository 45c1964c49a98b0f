"""Which tiles are labelled together: the wanted ones, and not many that show the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from rayjobs.geo import FloatArray, IntArray

Diversity = Literal["top_n", "proximity", "cluster", "core_set"]
Vectors = np.ndarray[Any, np.dtype[np.float32]]
Choose = Callable[[FloatArray, Vectors, Vectors, int, np.random.Generator], IntArray]
"""Takes scores (tiles,), embeddings (tiles, dim) and those of the tiles that have a label (labelled, dim), compared by Euclid; how many
are wanted, and where chance comes from. Returns the indices of so many different tiles (all, where there are no more), the most wanted
first. What scores alike is taken in the order of the tiles."""

_BATCH = 10
_REACH = 0.3
"""How much nearness counts beside scores of deviation 1."""
_CLUSTERS = 3
_TRIES, _ITERATIONS = 3, 25
_CANDIDATES = 10
"""For each tile wanted, how many of the best scores the core set is chosen among."""


def top_n(scores: FloatArray, vectors: Vectors, labelled: Vectors, count: int, rng: np.random.Generator) -> IntArray:  # noqa: ARG001
    """Take the best scores."""
    return np.argsort(-scores, kind="stable")[:count]


def proximity(scores: FloatArray, vectors: Vectors, labelled: Vectors, count: int, rng: np.random.Generator) -> IntArray:  # noqa: ARG001
    """Take ten at a time by score and by distance to the centroid of what is taken, the farther the better.

    Scores are brought to mean 0 and deviation 1, distances to -.3 to .3; the first ten have the best scores.
    """
    wanted, count, lengths = _standardised(scores), min(count, len(scores)), squared_lengths(vectors)
    chosen: list[int] = []
    while len(chosen) < count:
        total = wanted.copy()
        if chosen:
            apart = np.sqrt(_squared(vectors, lengths, vectors[chosen].mean(0)))
            spread = float(np.ptp(apart))
            total += _REACH * (2 * (apart - apart.min()) / spread - 1) if spread else 0
        total[chosen] = -np.inf
        chosen += np.argsort(-total, kind="stable")[: min(_BATCH, count - len(chosen))].tolist()
    return np.array(chosen, np.int64)


def cluster(scores: FloatArray, vectors: Vectors, labelled: Vectors, count: int, rng: np.random.Generator) -> IntArray:  # noqa: ARG001
    """Take from each of three clusters of all tiles the best scores, as many as is its share of the tiles (k-means, largest remainders)."""
    count = min(count, len(scores))
    of_tile = kmeans(vectors, _CLUSTERS, rng)
    exact = np.bincount(of_tile) * count / max(1, len(scores))
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: count - int(quota.sum())]] += 1
    ordered = np.argsort(-scores, kind="stable")
    taken = [ordered[of_tile[ordered] == number][:share] for number, share in enumerate(quota.tolist())]
    chosen = np.concatenate(taken) if taken else ordered
    return np.asarray(chosen[np.argsort(-scores[chosen], kind="stable")], np.int64)


def core_set(scores: FloatArray, vectors: Vectors, labelled: Vectors, count: int, rng: np.random.Generator) -> IntArray:  # noqa: ARG001
    """Take again and again the tile that is farthest from all that have a label or are taken (k-centre greedy: Sener and Savarese, 2018).

    Among ten times as many of the best scores; where nothing has a label, the best score is the first.
    """
    candidates = np.argsort(-scores, kind="stable")[: _CANDIDATES * count]
    among, lengths = vectors[candidates], squared_lengths(vectors[candidates])
    apart = np.full(len(candidates), np.inf)
    for vector in labelled:
        apart = np.minimum(apart, _squared(among, lengths, vector))
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        farthest = int(np.argmax(apart))
        chosen.append(farthest)
        apart = np.minimum(apart, _squared(among, lengths, among[farthest]))
        apart[chosen] = -np.inf
    return np.asarray(candidates[chosen], np.int64)


DIVERSITIES: Mapping[Diversity, Choose] = {"top_n": top_n, "proximity": proximity, "cluster": cluster, "core_set": core_set}
"""Ways to choose by name."""


def kmeans(vectors: Vectors, count: int, rng: np.random.Generator) -> IntArray:
    """Divide vectors into at most `count` clusters, and return the cluster of each, (items,).

    Lloyd's iterations from k-means++ beginnings (Arthur and Vassilvitskii, 2007), the best of three. The room of labels may not ask FAISS.
    """
    lengths = squared_lengths(vectors)
    tries = [_lloyd(vectors, lengths, _beginnings(vectors, lengths, count, rng)) for _ in range(_TRIES)]
    best = min(tries, key=lambda found: found[1])[0]
    return np.unique(best, return_inverse=True)[1].astype(np.int64)


def _beginnings(vectors: Vectors, lengths: FloatArray, count: int, rng: np.random.Generator) -> Vectors:
    """Draw centres, each with odds as its squared distance to those before it."""
    chosen = [int(rng.integers(len(vectors)))]
    apart = _squared(vectors, lengths, vectors[chosen[0]])
    while len(chosen) < count and apart.sum() > 0:
        chosen.append(int(rng.choice(len(vectors), p=apart / apart.sum())))
        apart = np.minimum(apart, _squared(vectors, lengths, vectors[chosen[-1]]))
    return vectors[chosen]


def _lloyd(vectors: Vectors, lengths: FloatArray, centres: Vectors) -> tuple[IntArray, float]:
    """Return the cluster of each vector, and the sum of squared distances to their centres."""
    for _ in range(_ITERATIONS):
        apart = np.stack([_squared(vectors, lengths, centre) for centre in centres])
        nearest = apart.argmin(0)
        of_centre = (nearest == np.arange(len(centres))[:, None]).astype(np.float32)
        sizes = of_centre.sum(1, keepdims=True)
        moved = np.where(sizes > 0, of_centre @ vectors / np.maximum(sizes, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return nearest, float(apart.min(0).sum())


def squared_lengths(vectors: Vectors) -> FloatArray:
    """Return (items,) squared lengths."""
    lengths: FloatArray = np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)
    return lengths


def _squared(vectors: Vectors, lengths: FloatArray, point: Vectors) -> FloatArray:
    """Return (items,) squared distances to a point (dim,), without a copy of the vectors as large as they are."""
    squared: FloatArray = np.maximum(lengths - 2.0 * (vectors @ point) + float(np.dot(point, point)), 0)
    return squared


def _standardised(scores: FloatArray) -> FloatArray:
    deviation = float(scores.std()) if len(scores) else 0.0
    return (scores - scores.mean()) / deviation if deviation else np.zeros(len(scores))
