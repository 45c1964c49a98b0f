"""Ranking metrics, query by query.

The pure functions take hits, (queries, depth) bool: whether the item at each rank, best first, is relevant; and relevant, (queries,)
int: how many items of the gallery are. `score` ranks a gallery in blocks, so that memory stays bounded by `block` x gallery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from rayjobs.errors import RetrievalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

_BLOCK = 256
"""Queries ranked together: the similarities of a block are what memory holds."""


def recall_at_k(hits: BoolArray, relevant: IntArray, k: int) -> FloatArray:
    """Share of the relevant items that are among the first k."""
    found: FloatArray = hits[:, :k].sum(1) / relevant
    return found


def hit_rate_at_k(hits: BoolArray, relevant: IntArray, k: int) -> FloatArray:  # noqa: ARG001  called like the others
    """Whether one of the first k is relevant: what metric learning calls Recall@k."""
    return hits[:, :k].any(1).astype(float)


def precision_at_k(hits: BoolArray, relevant: IntArray, k: int) -> FloatArray:  # noqa: ARG001  called like the others
    """Share of the first k that is relevant."""
    found: FloatArray = hits[:, :k].sum(1) / k
    return found


def map_at_r(hits: BoolArray, relevant: IntArray) -> FloatArray:
    """Mean of the precision at each relevant rank up to R, over R = number of relevant items (Musgrave et al. 2020, eq. 3).

    Raises:
        ValueError: `hits` does not reach down to the greatest R.
    """
    depth = int(relevant.max(initial=0))
    if hits.shape[1] < depth:
        raise ValueError(f"MAP@R needs the first {depth} ranks, and there are {hits.shape[1]}")
    return _precision_sum(hits[:, :depth] & (np.arange(depth) < relevant[:, None])) / relevant


def average_precision_at_k(hits: BoolArray, relevant: IntArray, k: int, *, over: Literal["relevant", "retrieved"]) -> FloatArray:
    """Mean of the precision at each relevant rank up to k.

    Args:
        hits: as above.
        relevant: as above.
        k: cut-off.
        over: `relevant` divides by min(R, k); `retrieved` by the relevant items found, which makes one hit at rank 1 perfect.
    """
    found = hits[:, :k].sum(1)
    divisor = np.minimum(relevant, k) if over == "relevant" else np.maximum(found, 1)
    return _precision_sum(hits[:, :k]) / divisor


def reciprocal_rank_at_k(hits: BoolArray, relevant: IntArray, k: int) -> FloatArray:  # noqa: ARG001  called like the others
    """One over the rank of the first relevant item, 0 if it is not among the first k."""
    first = hits[:, :k].argmax(1)
    return np.where(hits[:, :k].any(1), 1.0 / (first + 1), 0.0)


def _precision_sum(hits: BoolArray) -> FloatArray:
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    summed: FloatArray = (precision * hits).sum(1)
    return summed


AT_K: Mapping[str, Callable[[BoolArray, IntArray, int], FloatArray]] = {
    "recall": recall_at_k,
    "hit_rate": hit_rate_at_k,
    "precision": precision_at_k,
}
"""Metrics with a cut-off, by the name before `@k`."""


class Pairs(Protocol):
    """Which gallery items belong to each query."""

    def rows(self, queries: IntArray) -> BoolArray:
        """Return (queries, gallery) bool for some queries."""


@dataclass(frozen=True, slots=True)
class PairList:
    """Pairs given one by one."""

    pairs: IntArray
    """(pairs, 2) query and gallery item."""
    gallery: int
    """Number of gallery items."""

    def rows(self, queries: IntArray) -> BoolArray:
        """Mark the listed pairs."""
        marked = np.zeros((len(queries), self.gallery), bool)
        place = np.full(int(max(queries.max(initial=0), self.pairs[:, 0].max(initial=0))) + 1, -1, np.int64)
        place[queries] = np.arange(len(queries))
        rows = place[self.pairs[:, 0]]
        marked[rows[rows >= 0], self.pairs[rows >= 0, 1]] = True
        return marked


@dataclass(frozen=True, slots=True)
class SameLabel:
    """Items of the query's class; an unknown class (negative) equals none."""

    queries: IntArray
    """(queries,) class."""
    gallery: IntArray
    """(gallery,) class."""

    def rows(self, queries: IntArray) -> BoolArray:
        """Compare classes."""
        wanted = self.queries[queries]
        equal: BoolArray = (wanted[:, None] == self.gallery[None, :]) & (wanted >= 0)[:, None]
        return equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Metrics of every query that has something to find."""

    queries: IntArray
    """Indices of those queries; the others are `lone`."""
    values: dict[str, FloatArray]
    """(len(queries),) by metric: `recall@10`, `MAP@R`, ..."""
    lone: int
    """Queries with no relevant item, left out."""


def score(
    queries: Vectors,
    gallery: Vectors,
    *,
    relevance: Pairs,
    excluded: Pairs,
    ks: Sequence[int],
    distance: Literal["cosine", "euclidean"],
    seed: int = 0,
) -> Scores:
    """Rank the gallery for every query and measure the rankings.

    Ties are broken by one random order of the gallery (seeded), never by its own order, which often goes by class or place.

    Args:
        queries: (queries, dim) float32.
        gallery: (gallery, dim) float32.
        relevance: which items should be found.
        excluded: which items are no candidates: the query itself and what shares its ground.
        ks: cut-offs.
        distance: `cosine` of vectors of length 1, or `euclidean`.
        seed: of the order of ties.

    Raises:
        RetrievalError: a vector is not finite.
    """
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise RetrievalError(
            "an embedding is not finite, so nothing can be ranked; train the encoder again with a lower train.learning_rate"
        )
    order = np.random.default_rng(seed).permutation(len(gallery))
    shuffled = np.ascontiguousarray(gallery[order])
    blocks: list[dict[str, FloatArray]] = []
    kept: list[IntArray] = []
    for start in range(0, len(queries), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(queries)))
        out = excluded.rows(rows)[:, order]
        relevant = relevance.rows(rows)[:, order] & ~out
        something = relevant.any(1)
        rows, out, relevant = rows[something], out[something], relevant[something]
        if len(rows):
            hits = _ranked(similarity(queries[rows], shuffled, distance), relevant, out)
            blocks.append(_measure(hits, relevant.sum(1), ks))
            kept.append(rows)
    names = [*(f"{name}@{k}" for name in AT_K for k in ks), "MAP@R"]
    values = {name: np.concatenate([block[name] for block in blocks]) if blocks else np.empty(0) for name in names}
    found = np.concatenate(kept) if kept else np.empty(0, np.int64)
    return Scores(queries=found, values=values, lone=len(queries) - len(found))


def similarity(queries: Vectors, gallery: Vectors, distance: Literal["cosine", "euclidean"]) -> Vectors:
    """Return (queries, gallery) float32, higher is nearer: the inner product, or minus the squared distance up to a constant per query."""
    product: Vectors = queries @ gallery.T
    if distance == "cosine":
        return product
    squares: Vectors = np.einsum("nd,nd->n", gallery, gallery)
    return 2 * product - squares[None, :]


def _ranked(similarities: Vectors, relevant: BoolArray, out: BoolArray) -> BoolArray:
    """Return relevance in the order of rank; what is excluded comes last and is not relevant."""
    similarities[out] = -np.inf
    order = np.argsort(-similarities, axis=1, kind="stable")
    return np.take_along_axis(relevant, order, axis=1)


def _measure(hits: BoolArray, relevant: IntArray, ks: Sequence[int]) -> dict[str, FloatArray]:
    values = {f"{name}@{k}": metric(hits, relevant, k) for name, metric in AT_K.items() for k in ks}
    return {**values, "MAP@R": map_at_r(hits, relevant)}
