"""Ranking metrics, query by query, and `score`, which ranks a gallery for them.

The pure functions take hits, (queries, depth) bool: whether the item at each rank, best first, is relevant; and relevant, (queries,)
int, at least 1: how many items of the gallery are. `score` ranks in blocks of queries, so that memory stays within `ranking.BLOCK_BYTES`,
and only down to the deepest rank that a metric looks at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from rayjobs.retrieval.ranking import CELL_BYTES, BoolArray, Distance, FloatArray, IntArray, Ranker, Vectors, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


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


def average_precision_at_k(hits: BoolArray, relevant: IntArray, k: int, *, over: Literal["min", "found"]) -> FloatArray:
    """Sum of the precision at each relevant rank up to k, over one of two numbers that are both called mAP@k.

    Args:
        hits: as above.
        relevant: as above.
        k: cut-off.
        over: `min` divides by min(R, k), all that could be found; `found` by the relevant items among the first k, which makes
            one hit at rank 1 perfect.
    """
    divisor = np.minimum(relevant, k) if over == "min" else np.maximum(hits[:, :k].sum(1), 1)
    return _precision_sum(hits[:, :k]) / divisor


def reciprocal_rank_at_k(hits: BoolArray, relevant: IntArray, k: int) -> FloatArray:  # noqa: ARG001  called like the others
    """One over the rank of the first relevant item, 0 if it is not among the first k."""
    first = hits[:, :k].argmax(1)
    return np.where(hits[:, :k].any(1), 1.0 / (first + 1), 0.0)


def ndcg_at_k(hits: BoolArray, relevant: IntArray, k: int) -> FloatArray:
    """Discounted cumulative gain of the first k, over that of the best ranking; a relevant item gains 1 (Järvelin and Kekäläinen 2002)."""
    best = _discounts(k).cumsum()[np.minimum(relevant, k) - 1]
    gained: FloatArray = hits[:, :k] @ _discounts(min(k, hits.shape[1])) / best
    return gained


def graded_ndcg_at_k(gains: FloatArray, best: FloatArray, k: int) -> FloatArray:
    """Discounted cumulative gain of the first k, over that of the best ranking; gains are numbers, discounted by log2(1 + rank).

    Args:
        gains: (queries, depth) gain of the item at each rank, best first, at least 0.
        best: (queries, depth) highest gains of the gallery in falling order, the first above 0.
        k: cut-off.
    """
    gained: FloatArray = _dcg(gains[:, :k]) / _dcg(best[:, :k])
    return gained


def _precision_sum(hits: BoolArray) -> FloatArray:
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    summed: FloatArray = (precision * hits).sum(1)
    return summed


def _dcg(gains: FloatArray) -> FloatArray:
    summed: FloatArray = gains @ _discounts(gains.shape[1])
    return summed


def _discounts(count: int) -> FloatArray:
    discounts: FloatArray = 1 / np.log2(np.arange(count) + 2)
    return discounts


AT_K: Mapping[str, Callable[[BoolArray, IntArray, int], FloatArray]] = {
    "recall@{k}": recall_at_k,
    "hit_rate@{k}": hit_rate_at_k,
    "precision@{k}": precision_at_k,
    "mAP@{k}/min": partial(average_precision_at_k, over="min"),
    "mAP@{k}/found": partial(average_precision_at_k, over="found"),
    "MRR@{k}": reciprocal_rank_at_k,
    "nDCG@{k}": ndcg_at_k,
}
"""Metrics of hits with a cut-off, by name."""

GRADED_AT_K: Mapping[str, Callable[[FloatArray, FloatArray, int], FloatArray]] = {"nDCG@{k}/graded": graded_ndcg_at_k}
"""Metrics of gains with a cut-off, by name."""

AT_R: Mapping[str, Callable[[BoolArray, IntArray], FloatArray]] = {"MAP@R": map_at_r}
"""Metrics of hits whose cut-off is each query's number of relevant items, by name."""


def metric_names(ks: Sequence[int], *, graded: bool = False) -> list[str]:
    """Return the names of what `score` measures: `recall@10`, ..., `MAP@R`; with `graded`, also what needs gains."""
    names = [*AT_K, *(GRADED_AT_K if graded else ())]
    return [*(name.format(k=k) for name in names for k in ks), *AT_R]


class Pairs(Protocol):
    """Which gallery items belong to each query."""

    def rows(self, queries: IntArray) -> BoolArray:
        """Return (queries, gallery) bool for some queries."""


class Gains(Protocol):
    """How much finding each gallery item is worth to each query."""

    def rows(self, queries: IntArray) -> FloatArray:
        """Return (queries, gallery) float64 for some queries, at least 0."""


@dataclass(frozen=True, slots=True)
class PairList:
    """Pairs given one by one."""

    pairs: IntArray
    """(pairs, 2) query and gallery item; kept in the order of the queries."""
    gallery: int
    """Number of gallery items."""

    def __post_init__(self) -> None:
        """Sort once, so that the pairs of a few queries are found without a look at all: there are thousands of blocks of queries."""
        order = np.argsort(self.pairs[:, 0], kind="stable")
        object.__setattr__(self, "pairs", np.asfortranarray(self.pairs[order], np.int64))

    def rows(self, queries: IntArray) -> BoolArray:
        """Mark the listed pairs."""
        marked = np.zeros((len(queries), self.gallery), bool)
        first, end = (np.searchsorted(self.pairs[:, 0], queries, side) for side in ("left", "right"))
        counts = end - first
        at = np.arange(counts.sum()) + np.repeat(first - (counts.cumsum() - counts), counts)
        marked[np.repeat(np.arange(len(queries)), counts), self.pairs[at, 1]] = True
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


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Items that belong to the query by one rule or another."""

    rules: tuple[Pairs, ...]
    """At least one."""

    def rows(self, queries: IntArray) -> BoolArray:
        """Join what the rules mark."""
        marked: BoolArray = np.logical_or.reduce([rule.rows(queries) for rule in self.rules])
        return marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Metrics of every query that has something to find."""

    queries: IntArray
    """Indices of those queries; the others are `lone`."""
    values: dict[str, FloatArray]
    """(len(queries),) by metric, as `metric_names` lists them."""
    lone: int
    """Queries with no relevant item (or, of gains, with nothing to gain), left out."""


def score(
    queries: Vectors,
    gallery: Vectors,
    *,
    relevance: Pairs,
    excluded: Pairs,
    ks: Sequence[int],
    distance: Distance,
    seed: int = 0,
    gains: Gains | None = None,
) -> Scores:
    """Rank the gallery for every query and measure the rankings.

    Ties are broken by one random order of the gallery (seeded), never by its own order, which often goes by class or place.

    Args:
        queries: (queries, dim) float32.
        gallery: (gallery, dim) float32.
        relevance: which items should be found.
        excluded: which items are no candidates: the query itself and what shares its ground.
        ks: cut-offs, each at least 1.
        distance: `cosine` of vectors of length 1, or `euclidean`.
        seed: of the order of ties.
        gains: what finding an item is worth, for the graded metrics beside the others.

    Raises:
        RetrievalError: a vector is not finite.
    """
    ranker = Ranker(queries, gallery, distance=distance, seed=seed)
    kept: list[IntArray] = []
    parts: list[dict[str, FloatArray]] = []
    for rows in blocks(len(queries), len(gallery) * CELL_BYTES):
        out = excluded.rows(rows)
        relevant = relevance.rows(rows) & ~out
        worth = None if gains is None else np.where(out, 0, gains.rows(rows))
        something = relevant.any(1) if worth is None else relevant.any(1) & worth.any(1)
        if something.any():
            kept.append(rows[something])
            worth = None if worth is None else worth[something]
            parts.append(_measured(ranker, rows[something], out[something], relevant[something], worth, ks))
    names = metric_names(ks, graded=gains is not None)
    values = {name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0) for name in names}
    found = np.concatenate(kept) if kept else np.empty(0, np.int64)
    return Scores(queries=found, values=values, lone=len(queries) - len(found))


def first_ranks(queries: Vectors, gallery: Vectors, *, relevance: Pairs, excluded: Pairs, distance: Distance, seed: int = 0) -> IntArray:
    """Return (queries,) the rank, from 1, of each query's first relevant item; 0 where it has none. Arguments and errors as of `score`."""
    ranker = Ranker(queries, gallery, distance=distance, seed=seed)
    ranks = np.zeros(len(queries), np.int64)
    for rows in blocks(len(queries), len(gallery) * CELL_BYTES):
        out = excluded.rows(rows)
        relevant = relevance.rows(rows) & ~out
        hits = np.take_along_axis(relevant, ranker.ranked(rows, out, len(gallery)), axis=1)
        ranks[rows] = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    return ranks


def precision_by_rank(
    queries: Vectors, gallery: Vectors, *, relevance: Pairs, excluded: Pairs, depth: int, distance: Distance, seed: int = 0
) -> FloatArray:
    """Return (min(depth, gallery),) the precision at every rank, from 1: the share of relevant items up to it, over all queries.

    Queries that have nothing to find are left out. Arguments and errors as of `score`; nothing (0,) where no query has anything to find.
    """
    ranker, found, asked = Ranker(queries, gallery, distance=distance, seed=seed), np.zeros(min(depth, len(gallery))), 0
    for rows in blocks(len(queries), len(gallery) * CELL_BYTES):
        out = excluded.rows(rows)
        relevant = relevance.rows(rows) & ~out
        something = relevant.any(1)
        if something.any():
            items = ranker.ranked(rows[something], out[something], depth)
            found += np.take_along_axis(relevant[something], items, axis=1).sum(0)
            asked += len(items)
    return found.cumsum() / np.arange(1, len(found) + 1) / asked if asked else np.empty(0)


def _measured(
    ranker: Ranker, rows: IntArray, out: BoolArray, relevant: BoolArray, worth: FloatArray | None, ks: Sequence[int]
) -> dict[str, FloatArray]:
    """Rank for some queries as deep as needed, and return every metric."""
    counts = relevant.sum(1)
    items = ranker.ranked(rows, out, max(*ks, int(counts.max())))
    hits = np.take_along_axis(relevant, items, axis=1)
    values = {name.format(k=k): metric(hits, counts, k) for name, metric in AT_K.items() for k in ks}
    values |= {name: metric(hits, counts) for name, metric in AT_R.items()}
    if worth is not None:
        gained, best = np.take_along_axis(worth, items[:, : max(ks)], axis=1), _highest(worth, max(ks))
        values |= {name.format(k=k): metric(gained, best, k) for name, metric in GRADED_AT_K.items() for k in ks}
    return values


def _highest(numbers: FloatArray, count: int) -> FloatArray:
    """Return the `count` highest of each row, highest first."""
    lowest = -numbers
    if count < lowest.shape[1]:
        lowest.partition(count - 1, axis=1)
    return -np.sort(lowest[:, :count], axis=1)
