"""How far from its query what is found lies, along great circles of whatever body, and how far tiles lie apart by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayjobs.retrieval.ranking import CELL_BYTES, Ranker, blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.evaluate.relevance import Question
    from rayjobs.retrieval.ranking import Distance, FloatArray, IntArray, Vectors

_PAIRS = 100_000
"""Random pairs of tiles that tell how far these lie apart by chance."""


def mean_distances_km(
    vectors: Vectors, distance: Distance, question: Question, ks: Sequence[int], *, seed: int = 0
) -> tuple[IntArray, dict[int, FloatArray]]:
    """Return how far from each query its first k results lie, on average.

    Args:
        vectors: (tiles, dim) float32.
        distance: what they are compared with.
        question: the tiles, and where they lie.
        ks: cut-offs.
        seed: of the order of ties.

    Returns:
        (measured,) positions of the queries where that is known at the smallest cut-off; and by cut-off (measured,) float64, kilometres.
    """
    if question.spots is None or not np.isfinite(question.spots.lonlat[question.queries]).all(axis=1).any():
        return np.empty(0, np.int64), {k: np.empty(0) for k in ks}
    ranker = Ranker(vectors[question.queries], vectors, distance=distance, seed=seed)
    parts = [_block(ranker, question, rows, ks) for rows in blocks(len(question.queries), len(vectors) * CELL_BYTES)]
    found = np.concatenate(parts)
    known = np.flatnonzero(np.isfinite(found).all(axis=1))
    return known, {k: found[known, place] for place, k in enumerate(ks)}


def _block(ranker: Ranker, question: Question, rows: IntArray, ks: Sequence[int]) -> FloatArray:
    """Return (rows, ks) kilometres; NaN where nothing is known."""
    out = question.excluded.rows(rows)
    found = ranker.ranked(rows, out, max(ks))
    away = distances_km(question, np.repeat(question.queries[rows], found.shape[1]), found.ravel()).reshape(found.shape)
    known = np.isfinite(away) & ~np.take_along_axis(out, found, axis=1)  # after its candidates a query is given what is excluded
    summed, counted = np.where(known, away, 0).cumsum(axis=1), known.cumsum(axis=1)
    deep = np.minimum(ks, found.shape[1]) - 1
    means: FloatArray = np.where(counted[:, deep] > 0, summed[:, deep] / np.maximum(counted[:, deep], 1), np.nan)
    return means


def distances_km(question: Question, first: IntArray, second: IntArray) -> FloatArray:
    """Return how far tiles lie apart, (m,) kilometres; NaN where that is not known."""
    if question.spots is None:
        return np.full(len(first), np.nan)
    return question.spots.apart_m(first, second) / 1000


def by_chance_km(question: Question, *, seed: int = 0) -> float | None:
    """Return the mean distance of random pairs of different tiles, kilometres; None where no pair's is known."""
    count = len(question.tile_ids)
    rng = np.random.default_rng(seed)
    first, second = rng.integers(count, size=_PAIRS), rng.integers(count, size=_PAIRS)
    away = distances_km(question, first, second)[first != second]
    return float(np.nanmean(away)) if np.isfinite(away).any() else None
