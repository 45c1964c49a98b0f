"""Search over the segments of one index version: filter, search each of them as `planner` says, and merge what they find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs import geo
from rayjobs.errors import QueryError
from rayjobs.retrieval.filters import SearchFilter
from rayjobs.retrieval.gallery import Gallery, Selection
from rayjobs.retrieval.manifest import IndexManifest, read_tombstones
from rayjobs.retrieval.planner import Task
from rayjobs.retrieval.segments import load_table
from rayjobs.retrieval.shards import Shards, load_shards

if TYPE_CHECKING:
    from pathlib import Path

    from rayjobs.storage import Version

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

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
    """One index version. Immutable: safe to search from several threads."""

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
        left_out = [self.rows_of(ids) for ids in without or [()] * len(queries)]
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
        if depth == asked.depth:
            return rankings
        kept = [~np.isin(ranking.rows, rows) for ranking, rows in zip(rankings, left_out, strict=True)]
        return [_Ranking(rows=one.rows[keep], scores=one.scores[keep], exact=one.exact) for one, keep in zip(rankings, kept, strict=True)]

    def _ranked(self, queries: Vectors, depth: int, selection: Selection, *, exact: bool) -> list[_Ranking]:
        """Rank the `depth` nearest of a selection for each query, or all of it."""
        tasks = [
            Task(number=number, count=min(depth, count), chosen=mask, candidates=count, exact=exact)
            for number, (count, mask) in enumerate(zip(selection.counts, selection.masks, strict=True))
            if count
        ]
        parts = [
            (self._numbering.over_all(task.number, found.rows), found.scores, found.sure)
            for task, found in zip(tasks, self.shards.nearest(queries, tasks), strict=True)
        ]
        return [self._merged([(rows[one], scores[one], sure[one]) for rows, scores, sure in parts], depth) for one in range(len(queries))]

    def _merged(self, parts: Sequence[tuple[IntArray, Vectors, bool]], depth: int) -> _Ranking:
        if not parts:
            return _Ranking(rows=np.empty(0, np.int64), scores=np.empty(0, np.float32), exact=True)
        rows, scores = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        if len(scores) > depth:  # ids are looked up of those alone that can be among the best
            near = scores >= np.partition(scores, len(scores) - depth)[len(scores) - depth]
            rows, scores = rows[near], scores[near]
        best = np.lexsort((rows if len(self.tables) == 1 else self.ids_of(rows), -scores))[:depth]  # a segment is sorted by id
        return _Ranking(rows=rows[best], scores=scores[best], exact=all(part[2] for part in parts))

    def _spread(self, query: Vectors, asked: _Asked, remaining: Selection, spread_m: float) -> _Ranking:
        """Rank greedily by score what lies apart, deeper until there is enough or nothing left."""
        rounds: list[_Ranking] = []
        depth, wanted = min(max(_LEAST_ROUND, 4 * asked.depth), _MOST_ROUND), asked.depth
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


def open_searcher(
    version: Version, manifest: IndexManifest, cache: Path, *, load: Callable[[Version, IndexManifest, Path], Shards] = load_shards
) -> Searcher:
    """Open an index version.

    Args:
        version: the index version.
        manifest: its manifest.
        cache: folder for copies of files that lie in a bucket.
        load: what loads the vectors, or has them loaded elsewhere.

    Raises:
        IndexCorruptError: a file differs from its digest, or is not what the manifest says.
    """
    tables = [load_table(version, entry, cache) for entry in manifest.segments]
    return Searcher(load(version, manifest, cache), tables, tombstones=read_tombstones(version, manifest))


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


def _apart(middles: FloatArray, distance_m: float, most: int) -> IntArray:
    """Return which of some places, best first, are no nearer than a distance to a better one that is returned: at most `most`."""
    kept: list[int] = []
    free = np.ones(len(middles), bool)
    while len(kept) < most and free.any():
        kept.append(int(np.argmax(free)))
        free &= ~(geo.great_circle_m(middles, middles[kept[-1]]) < distance_m)
        free[: kept[-1] + 1] = False
    return np.array(kept, np.int64)
