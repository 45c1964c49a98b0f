"""How one segment is searched: exactly, or approximately and as hard as its filter makes it.

An approximate search whose filter leaves little finds little; so it tries harder the fewer pass, and what it does not find is
searched for exactly. No answer has fewer hits than asked for where that many tiles pass.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rayjobs.retrieval.kinds import Effort
    from rayjobs.retrieval.segments import Segment

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

FEW_ROWS, FEW_SHARE = 10_000, 0.02
"""A segment of which a filter leaves no more than this many rows, or this share, is searched exactly: that is faster then."""
DEEP_SHARE = 0.05
"""So is one of which more than this share is asked for."""
TUNED_AT = 10
"""Hits for which an index version's effort was chosen."""
_WIDENING = 0.75
_NEIGHBOURS = 100
"""Nearest tiles without the filter, among which the share that passes is counted."""
_NEARLY_ALL = 0.9
"""Where a filter leaves this share, no query can lie far from what passes: deleted tiles are a filter, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What some queries ask of one segment."""

    number: int
    """Of the segment."""
    count: int
    """Hits per query: at most `candidates`, and at least 1."""
    chosen: BoolArray | None
    """(rows,) which rows may be found; None for all."""
    candidates: int
    """How many rows those are."""
    exact: bool
    """Whether an approximate search is forbidden."""


class Nearest(NamedTuple):
    """A segment's tiles nearest to some queries, best first, ties by row."""

    rows: IntArray
    """(q, count) rows of the segment."""
    scores: Vectors
    """(q, count) float32."""
    sure: BoolArray
    """(q,) whether these are provably the nearest."""


def nearest(segment: Segment, queries: Vectors, task: Task, effort: Effort) -> Nearest:
    """Search one segment.

    Args:
        segment: the segment.
        queries: (q, dim) float32 of length 1.
        task: what is asked of it.
        effort: of an approximate search without a filter.
    """
    chosen, count = task.chosen, task.count
    if task.exact or segment.compressed is None or not _worth_approximating(segment.rows, task.candidates, count):
        scores, rows = segment.exact(queries, count, chosen)
        return Nearest(rows, scores, np.ones(len(queries), np.bool_))
    share = task.candidates / segment.rows
    if chosen is not None and share < _NEARLY_ALL:
        share = min(share, _local_share(segment, queries, chosen, effort))
    sought = max(count, TUNED_AT)  # fewer are refined less
    scores, rows = segment.approximate(queries, sought, chosen, widened(effort, share, count))
    scores, rows = scores[:, :count], rows[:, :count]
    short = np.asarray((rows < 0).any(axis=1), np.bool_)
    if short.any():
        scores[short], rows[short] = segment.exact(queries[short], count, chosen)
    return Nearest(rows, scores, short)


def _worth_approximating(rows: int, candidates: int, count: int) -> bool:
    return candidates > max(FEW_ROWS, FEW_SHARE * rows) and count <= DEEP_SHARE * candidates


def _local_share(segment: Segment, queries: Vectors, chosen: BoolArray, effort: Effort) -> float:
    """Return the least share of rows that pass among those near one of the queries.

    Where a filter by place leaves ground on which nothing is like the query, what passes lies in lists far from it.
    """
    _, near = segment.approximate(queries, _NEIGHBOURS, None, effort)
    passing = (chosen[near] & (near >= 0)).sum(axis=1).min()
    return float(passing + 1) / (_NEIGHBOURS + 1)


def widened(effort: Effort, share: float, count: int) -> Effort:
    """Return how hard to try where a filter lets a share of what is near pass, and `count` hits are wanted.

    The nearest `count` of a share lie as far away as the nearest count / share of all. Recall falls more slowly than that grows: a power
    below 1 keeps it, measured by `benchmarks/filtered_search.py`. Codes are compared per hit, so that more hits need no more of them each.
    """
    narrow, deep = max(1.0, 1 / share) ** _WIDENING, max(1.0, count / TUNED_AT / share) ** _WIDENING
    return dataclasses.replace(effort.widened(deep), k_factor=effort.widened(narrow).k_factor)
