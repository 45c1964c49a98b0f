"""Search over the segments of one index version: filter, then search exactly or approximately as the filter leaves few or many.

An approximate search whose filter leaves little finds little; so it tries harder the fewer pass, and what it does not find is
searched for exactly. No answer has fewer hits than asked for where that many tiles pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs import geo
from rayjobs.errors import QueryError
from rayjobs.retrieval.filters import SearchFilter
from rayjobs.retrieval.gallery import Gallery, Selection
from rayjobs.retrieval.kinds import Effort

if TYPE_CHECKING:
    from rayjobs.retrieval.segments import Segment

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

FEW_ROWS, FEW_SHARE = 10_000, 0.02
"""A segment of which a filter leaves no more than this many rows, or this share, is searched exactly: that is faster then."""
DEEP_SHARE = 0.05
"""So is one of which more than this share is asked for."""
_TUNED_AT = 10
"""Hits for which an index version's effort was chosen."""
_WIDENING = 0.75
_NEIGHBOURS = 100
"""Nearest tiles without the filter, among which the share that passes is counted."""
_LEAST_ROUND, _MOST_ROUND = 64, 2**14
"""Hits that are looked through at once for some that lie apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """An answer, best first; equal scores in order of `tile_id`."""

    rows: IntArray
    """(hits,) row over all segments, in their order; see `Searcher.take`."""
    scores: Vectors
    """(hits,) float32 inner product with the query: the cosine similarity."""
    exact: bool
    """Whether these are provably the nearest of all candidates."""
    candidates: int
    """Tiles that the filter left, the excluded ones not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranking:
    """The tiles nearest to one query."""

    rows: IntArray
    scores: Vectors
    exact: bool


class Searcher(Gallery):
    """One index version, mapped into memory. Immutable: safe to search from several threads."""

    def __init__(self, segments: Sequence[Segment], *, effort: Effort | None = None, tombstones: Collection[str] = ()) -> None:
        """Take loaded segments of one index version.

        Args:
            segments: at least one.
            effort: of approximate searches without a filter, from the manifest.
            tombstones: ids of tiles that were deleted.
        """
        super().__init__(segments, tombstones=tombstones)
        self._effort = effort or Effort()

    def search(
        self,
        query: Vectors,
        limit: int,
        *,
        offset: int = 0,
        only: SearchFilter | None = None,
        without: Collection[str] = (),
        threshold: float | None = None,
        spread_m: float | None = None,
        exact: bool | None = None,
    ) -> Hits:
        """Return the tiles nearest to one query, (dim,); see `search_batch`."""
        query = np.asarray(query)
        if query.ndim != 1:
            raise QueryError(f"a query is one vector, not an array of shape {query.shape}")
        return self.search_batch(
            query[None], limit, offset=offset, only=only, without=[without], threshold=threshold, spread_m=spread_m, exact=exact
        )[0]

    def search_batch(
        self,
        queries: Vectors,
        limit: int,
        *,
        offset: int = 0,
        only: SearchFilter | None = None,
        without: Sequence[Collection[str]] | None = None,
        threshold: float | None = None,
        spread_m: float | None = None,
        exact: bool | None = None,
    ) -> list[Hits]:
        """Return for each query the `limit` nearest tiles that pass the filter, or all of them where fewer do.

        Args:
            queries: (q, dim) float32 of length 1.
            limit: most hits of a query.
            offset: hits that are left out before the first.
            only: the filter.
            without: for each query the ids of tiles to leave out: its own.
            threshold: least score of a hit.
            spread_m: no two hits of a query have their middles nearer than this, metres; of those that have, the best stays. Tiles
                without a place are left out then.
            exact: True never searches approximately; None lets the planner choose.

        Raises:
            QueryError: `limit` below 1, vectors of another dimension or that are not finite, a filter that cannot be asked.
        """
        queries = self._checked(queries, limit, offset, spread_m)
        selection = self.select(only or SearchFilter(), placed=spread_m is not None)
        left_out = [self._rows_of(ids) for ids in without or [()] * len(queries)]
        asked = _Asked(depth=offset + limit, threshold=threshold, exact=bool(exact))
        if spread_m is None:
            rankings = self._ranked_without(queries, asked, selection, left_out)
        else:
            remaining = [selection.without(rows) for rows in left_out]
            rankings = [self._spread(query[None], asked, rows, spread_m) for query, rows in zip(queries, remaining, strict=True)]
        candidates = [selection.total - int(selection.holds(rows).sum()) for rows in left_out]
        return [_hits(ranking, asked, offset, count) for ranking, count in zip(rankings, candidates, strict=True)]

    def _checked(self, queries: Vectors, limit: int, offset: int, spread_m: float | None) -> Vectors:
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:  # noqa: PLR2004  queries by dimensions
            raise QueryError(f"the query has {queries.shape[-1] if queries.ndim else 1} numbers, the index {self.dimension}")
        if not np.isfinite(queries).all():
            raise QueryError("the query holds numbers that are not finite")
        if limit < 1 or offset < 0:
            raise QueryError(f"limit {limit} must be at least 1, and offset {offset} at least 0")
        if spread_m is not None and not 0 < spread_m < np.inf:
            raise QueryError(f"spread_m {spread_m} must be a positive number of metres")
        return np.ascontiguousarray(queries, np.float32)

    def _ranked_without(self, queries: Vectors, asked: _Asked, selection: Selection, left_out: Sequence[IntArray]) -> list[_Ranking]:
        """Rank so much deeper that enough remains without what each query leaves out."""
        depth = asked.depth + max(map(len, left_out))
        rankings = self._ranked(queries, depth, selection, exact=asked.exact)
        kept = [~np.isin(ranking.rows, rows) for ranking, rows in zip(rankings, left_out, strict=True)]
        return [_Ranking(rows=one.rows[keep], scores=one.scores[keep], exact=one.exact) for one, keep in zip(rankings, kept, strict=True)]

    def _ranked(self, queries: Vectors, depth: int, selection: Selection, *, exact: bool) -> list[_Ranking]:
        """Rank the `depth` nearest of a selection for each query, or all of it."""
        parts = [
            self._of_segment(number, queries, min(depth, count), selection, exact=exact)
            for number, count in enumerate(selection.counts)
            if count
        ]
        return [self._merged([(rows[one], scores[one], sure[one]) for rows, scores, sure in parts], depth) for one in range(len(queries))]

    def _merged(self, parts: Sequence[tuple[IntArray, Vectors, bool]], depth: int) -> _Ranking:
        if not parts:
            return _Ranking(rows=np.empty(0, np.int64), scores=np.empty(0, np.float32), exact=True)
        rows, scores = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        best = np.lexsort((rows if len(self.segments) == 1 else self.ids_of(rows), -scores))[:depth]  # a segment is sorted by id
        return _Ranking(rows=rows[best], scores=scores[best], exact=all(part[2] for part in parts))

    def _of_segment(
        self, number: int, queries: Vectors, count: int, selection: Selection, *, exact: bool
    ) -> tuple[IntArray, Vectors, BoolArray]:
        """Return rows over all segments and scores (q, count) of one segment's nearest, and whether they surely are, (q,)."""
        segment, chosen, candidates = self.segments[number], selection.masks[number], selection.counts[number]
        if exact or segment.kind == "flat" or not _worth_approximating(segment.rows, candidates, count):
            scores, rows = segment.exact(queries, count, chosen)
            return self._numbering.over_all(number, rows), scores, np.ones(len(queries), np.bool_)
        share = candidates / segment.rows if chosen is None else self._local_share(segment, queries, chosen)
        sought = max(count, _TUNED_AT)  # fewer are refined less
        scores, rows = segment.approximate(queries, sought, chosen, widened(self._effort, share, count))
        scores, rows = scores[:, :count], rows[:, :count]
        short = (rows < 0).any(axis=1)
        if short.any():
            scores[short], rows[short] = segment.exact(queries[short], count, chosen)
        return self._numbering.over_all(number, rows), scores, np.asarray(short, np.bool_)

    def _local_share(self, segment: Segment, queries: Vectors, chosen: BoolArray) -> float:
        """Return the least share of rows that pass among those near one of the queries, or among all if that is less.

        Where a filter by place leaves ground on which nothing is like the query, what passes lies in lists far from it.
        """
        _, near = segment.approximate(queries, _NEIGHBOURS, None, self._effort)
        passing = (chosen[near] & (near >= 0)).sum(axis=1).min()
        return min(float(chosen.mean()), float(passing + 1) / (_NEIGHBOURS + 1))

    def _spread(self, query: Vectors, asked: _Asked, remaining: Selection, spread_m: float) -> _Ranking:
        """Rank greedily by score what lies apart, deeper until there is enough or nothing left."""
        rounds: list[_Ranking] = []
        depth, wanted = max(_LEAST_ROUND, 4 * asked.depth), asked.depth
        while wanted > 0 and remaining.total:
            found = self._ranked(query, depth, remaining, exact=asked.exact)[0]
            middles = self.middles(found.rows)
            apart = _apart(middles, spread_m, wanted)
            rounds.append(_Ranking(rows=found.rows[apart], scores=found.scores[apart], exact=found.exact))
            wanted, depth = wanted - len(apart), min(2 * depth, _MOST_ROUND)
            if wanted == 0 or (asked.threshold is not None and found.scores[-1] < asked.threshold):
                break
            remaining = remaining.without(self.near(middles[apart], spread_m))
        return self._merged([(one.rows, one.scores, one.exact) for one in rounds], asked.depth)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What all queries of a batch ask for."""

    depth: int
    """Hits, those before the first included."""
    threshold: float | None
    exact: bool


def _hits(ranking: _Ranking, asked: _Asked, offset: int, candidates: int) -> Hits:
    good = slice(offset, asked.depth)
    rows, scores = ranking.rows[good], ranking.scores[good]
    if asked.threshold is not None:
        kept = scores >= asked.threshold
        rows, scores = rows[kept], scores[kept]
    return Hits(rows=rows, scores=scores, exact=ranking.exact, candidates=candidates)


def _worth_approximating(rows: int, candidates: int, count: int) -> bool:
    return candidates > max(FEW_ROWS, FEW_SHARE * rows) and count <= DEEP_SHARE * candidates


def widened(effort: Effort, share: float, count: int) -> Effort:
    """Return how hard to try where a filter lets a share of what is near pass, and `count` hits are wanted.

    The nearest `count` of a share lie as far away as the nearest count / share of all. Recall falls more slowly than that grows: a power
    below 1 keeps it, measured by `benchmarks/filtered_search.py`. Codes are compared per hit, so that more hits need no more of them each.
    """
    narrow, deep = max(1.0, 1 / share) ** _WIDENING, max(1.0, count / _TUNED_AT / share) ** _WIDENING
    return dataclasses.replace(effort.widened(deep), k_factor=effort.widened(narrow).k_factor)


def _apart(middles: FloatArray, distance_m: float, most: int) -> IntArray:
    """Return which of some places, best first, are no nearer than a distance to a better one that is returned: at most `most`."""
    kept: list[int] = []
    free = np.ones(len(middles), bool)
    while len(kept) < most and free.any():
        kept.append(int(np.argmax(free)))
        free &= ~(geo.great_circle_m(middles, middles[kept[-1]]) < distance_m)
        free[: kept[-1] + 1] = False
    return np.array(kept, np.int64)
