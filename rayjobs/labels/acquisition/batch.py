"""The next tiles to be labelled: a strategy and a way to choose, put together."""

from __future__ import annotations

import numpy as np

from rayjobs.geo import FloatArray, IntArray
from rayjobs.labels.acquisition.balance import balanced
from rayjobs.labels.acquisition.diversity import DIVERSITIES, Diversity, Vectors
from rayjobs.labels.acquisition.seeds import nearest
from rayjobs.labels.acquisition.strategies import STRATEGIES, Strategy


def next_tiles(
    probabilities: FloatArray,
    vectors: Vectors,
    labelled: Vectors,
    count: int,
    *,
    sought: int,
    strategy: Strategy,
    diversity: Diversity = "top_n",
    rebalance: bool = False,
    neighbours: int = 0,
    rng: np.random.Generator,
) -> IntArray:
    """Return the indices of so many different tiles (all, where there are no more), the most wanted first.

    Args:
        probabilities: (tiles, classes) of the tiles without a label.
        vectors: (tiles, dim) their embeddings, compared by Euclid.
        labelled: (labelled, dim) embeddings of those that have one.
        count: tiles wanted.
        sought: column of the class that is sought.
        strategy: of `STRATEGIES`.
        diversity: of `DIVERSITIES`.
        rebalance: whether to choose among as many tiles of each pseudo-label; see `balanced`.
        neighbours: tiles that follow each chosen one: its nearest that are not chosen; they count among `count`.
        rng: where chance comes from.
    """
    tiles = balanced(probabilities, least=count, rng=rng) if rebalance else np.arange(len(vectors))
    if not len(tiles):
        return tiles
    wanted = -(-count // (1 + neighbours))
    scores = STRATEGIES[strategy](probabilities[tiles], sought, rng)
    chosen = tiles[DIVERSITIES[diversity](scores, vectors[tiles], labelled, wanted, rng)]
    return _followed(chosen, vectors, neighbours)[:count] if neighbours else chosen


def _followed(chosen: IntArray, vectors: Vectors, neighbours: int) -> IntArray:
    """Put behind each chosen tile its nearest that are not there yet."""
    taken = np.zeros(len(vectors), bool)
    taken[chosen] = True
    found: list[int] = []
    for tile in chosen.tolist():
        near = nearest(vectors, vectors[tile : tile + 1])
        near = near[~taken[near]][:neighbours]
        taken[near] = True
        found += [tile, *near.tolist()]
    return np.array(found, np.int64)
