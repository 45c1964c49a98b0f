"""Which kind of index, and how hard to search it: by size, memory and wanted recall, with a reason; by measurement on sample queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.errors import ConfigError
from rayjobs.retrieval.kinds import KINDS, LAST_BITS, Effort, Hamming, Kind
from rayjobs.retrieval.manifest import RecallEstimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rayjobs.retrieval.segments import Segment, Vectors

Scores = np.ndarray[Any, np.dtype[np.float32]]

AUTO = "auto"
_FEW = 20_000
"""Up to so many vectors of 128 dimensions, one thread compares all of them in a millisecond."""
_FEW_DIMENSION = 128
_FEW_CODES = 10_000_000
"""Up to so many codes of 128 bits, one thread compares all of them in about ten milliseconds, and ties need no second search."""
_LOSSLESS = 0.9995
"""Above this recall an approximate search saves nothing."""
_SAME = 1e-5
"""A hit as near to its query is the query's own row, or one equal to it."""
_SURE = 2.0
"""Standard errors by which an estimate lies above the wanted recall: one time in forty the truth is below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A kind of index and why."""

    kind: str
    """Key of `KINDS`."""
    why: str
    """One sentence."""


def choose(rows: int, dim: int, *, codes: bool = False, kind: str = AUTO, recall: float = 0.97, bytes_per_vector: float = 64) -> Choice:
    """Choose a kind of index.

    Args:
        rows: vectors in all segments.
        dim: numbers in a vector.
        codes: whether vectors are codes, of which one bit a number is kept.
        kind: a key of `KINDS`, which is taken as it is, or `auto`.
        recall: share of the 10 nearest that a search should find, in (0, 1].
        bytes_per_vector: memory that the compressed index may take. The exact vectors and the metadata lie in mapped files beside it, of
            which the system keeps in memory what fits.

    Raises:
        ConfigError: an unknown kind, one of codes for what are none, or a recall that is no share.
    """
    if kind != AUTO and kind not in KINDS:
        raise ConfigError(f"there is no kind of index {kind!r}; choose auto or one of {', '.join(KINDS)}")
    if kind != AUTO and kind not in kinds_for(codes=codes):
        raise ConfigError(
            f"the kind of index {kind} keeps codes of one bit a number, and the encoder gives none; choose auto or one of "
            f"{', '.join(kinds_for(codes=codes))}, or an encoder with model.projection: hash"
        )
    if not 0 < recall <= 1:
        raise ConfigError(f"a recall of {recall} cannot be had; choose one above 0 and up to 1")
    if kind != AUTO:
        return Choice(kind=kind, why=f"{kind} was asked for")
    if codes:
        return _of_codes(rows, dim, recall)
    few = _FEW * _FEW_DIMENSION // dim
    if rows <= few:
        return Choice(kind="flat", why=f"flat, since all {rows:,} vectors of {dim} numbers are compared in about a millisecond")
    if recall > _LOSSLESS:
        return Choice(kind="flat", why=f"flat, since a recall of {recall:g} leaves nothing to save by approximation")
    return _compressed(rows, dim, recall, bytes_per_vector)


def kinds_for(*, codes: bool) -> list[str]:
    """Return the keys of the kinds that can be built of vectors that are codes, or are none."""
    return [name for name, kind in KINDS.items() if codes or kind.store != Hamming.name]


def _of_codes(rows: int, dim: int, recall: float) -> Choice:
    """Return the kind for codes."""
    if rows <= _FEW_CODES * _FEW_DIMENSION // dim:
        return Choice(kind="hamming", why=f"hamming, since all {rows:,} codes of {dim} bits are compared in some milliseconds")
    if recall > _LOSSLESS:
        return Choice(kind="hamming", why=f"hamming, since a recall of {recall:g} leaves nothing to save by approximation")
    return Choice(kind="hamming_ivf", why=f"hamming_ivf, since {rows:,} codes of {dim} bits are too many to compare all of them")


def _compressed(rows: int, dim: int, recall: float, budget: float) -> Choice:
    """Return the fastest of the compressed kinds that keeps to the budget, or the smallest."""
    sizes = {kind: KINDS[kind].bytes_per_vector(dim) for kind in ("ivf_pq", "ivf_rabitq", "binary")}
    kind = next((kind for kind in ("ivf_pq", "ivf_rabitq") if sizes[kind] <= budget), "binary")
    within = "within" if sizes[kind] <= budget else "which no kind keeps to, the least above"
    why = (
        f"{kind}, since {rows:,} vectors are too many to compare all of them, and codes of at most {sizes[kind]:.0f} bytes a vector are "
        f"{within} the {budget:.0f} allowed; exact vectors in a mapped file lift it to a recall of {recall:g}"
    )
    return Choice(kind=kind, why=why)


def tuned(
    kind: str, segments: Sequence[Segment], queries: Vectors, *, recall: float, count: int = 10
) -> tuple[Effort, RecallEstimate | None]:
    """Return the cheapest effort that finds the wanted share of the nearest, surely enough, and what it found.

    The estimate lies above `recall` by two standard errors of its mean, so that queries other than these find as much. What is cheapest is
    computed (`Kind.cost_ns`) and not timed: the same vectors give the same effort on a busy machine.

    Args:
        kind: of the segments; a key of `KINDS`.
        segments: all of the index.
        queries: (q, dim) float32 of length 1: rows of the index, each of which is then left out of its own answer, or others. A graph
            (hnsw) finds the neighbours of its own rows more easily than those of other queries; lists and codes do not.
        recall: wanted share of the `count` nearest.
        count: hits per query.

    Returns:
        The effort, and its recall; the greatest effort where none suffices. Of exact kinds, an empty effort and None.

    Raises:
        ValueError: no queries or no segments.
    """
    if not len(queries) or not segments:
        raise ValueError("there are no queries or no segments to tune on")
    if KINDS[kind].exact:
        return Effort(), None
    sample = _Sample(KINDS[kind], segments, queries, count, recall)
    best: _Tried | None = None
    for ladder in sample.efforts():
        dearest = best.cost_ns if best and best.enough else math.inf
        cheaper = [effort for effort in ladder if sample.cost_ns(effort) < dearest]
        found = _lowest(cheaper, sample.tried, bounded=dearest < math.inf)
        best = found if found and (best is None or _better(found, best)) else best
    if best is None:
        raise ValueError(f"kind {kind} has no efforts to try")
    return best.effort, best.estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """An effort that was tried."""

    cost_ns: float
    effort: Effort
    estimate: RecallEstimate
    enough: bool
    """Whether it surely finds as much as was wanted."""


class _Sample:
    """Queries and what is nearest to them."""

    def __init__(self, kind: Kind, segments: Sequence[Segment], queries: Vectors, count: int, recall: float) -> None:
        """Search exactly, for one hit more than wanted, which may be the query itself."""
        self._kind, self._segments, self._queries, self._count, self._recall = kind, segments, queries, count, recall
        self._index = max(segments, key=lambda segment: segment.rows).base
        scores = self._merged(segment.exact(queries, count + 1)[0] for segment in segments)
        self._own = scores[:, 0] >= 1 - _SAME
        last = np.take_along_axis(scores, (count - 1 + self._own)[:, None], axis=1)
        self._least = np.maximum(last, -2) - LAST_BITS  # no vector scores below -1: where fewer are wanted than there are, all count
        self._wanted = np.minimum(np.isfinite(scores).sum(axis=1) - self._own, count)

    def _merged(self, scores: Iterable[Scores]) -> Scores:
        """Return the best of all segments, best first."""
        joined = np.concatenate(list(scores), axis=1)
        return -np.sort(-joined, axis=1)[:, : self._count + 1]

    def efforts(self) -> list[list[Effort]]:
        """Return ladders of efforts to try."""
        return self._kind.efforts(self._index)

    def cost_ns(self, effort: Effort) -> float:
        """Return what a query costs in the largest segment."""
        return self._kind.cost_ns(self._index, effort, self._count)

    def _with_a_spare(self, effort: Effort) -> Effort:
        """Return what an effort is for one hit more than wanted: one candidate more in all, which is the query itself."""
        ef = None if effort.ef is None else max(effort.ef, self._count) + 1
        k_factor = None if effort.k_factor is None else (effort.k_factor * self._count + 1.01) / (self._count + 1)
        return Effort(nprobe=effort.nprobe, ef=ef, k_factor=k_factor)

    def tried(self, effort: Effort) -> _Tried:
        """Search with an effort. A hit counts by its score, so that of equal vectors any is right."""
        spare = self._with_a_spare(effort)
        scores = self._merged(segment.approximate(self._queries, self._count + 1, None, spare)[0] for segment in self._segments)
        found = np.clip((scores >= self._least).sum(axis=1) - self._own, 0, self._wanted)
        shares = np.where(self._wanted > 0, found / np.maximum(self._wanted, 1), 1.0)
        estimate = RecallEstimate(at=self._count, value=float(shares.mean()), queries=len(shares))
        sure = shares.mean() - _SURE * shares.std() / math.sqrt(len(shares))
        return _Tried(cost_ns=self.cost_ns(effort), effort=effort, estimate=estimate, enough=bool(sure >= self._recall))


def _better(one: _Tried, other: _Tried) -> bool:
    """Whether one is cheaper, both being enough, or finds more, neither being so."""
    if one.enough and other.enough:
        return one.cost_ns < other.cost_ns
    return one.enough > other.enough or (one.enough == other.enough and one.estimate.value > other.estimate.value)


def _lowest(rungs: Sequence[Effort], tried: Callable[[Effort], _Tried], *, bounded: bool) -> _Tried | None:
    """Return the lowest rung that is enough, or the highest where none is; None where there are none.

    Where the rungs are bounded by what was found before, the highest is tried first, since it mostly fails. Otherwise steps double on the
    way up, since high rungs cost most, and then halve.
    """
    best: _Tried | None = None
    low, step = -1, len(rungs) if bounded else 1  # the rung `low` is not enough
    high = len(rungs)  # the rung `high` is, or does not exist
    while low + 1 < high:
        rung = min(low + step, high - 1) if best is None or not best.enough else (low + high) // 2
        found = tried(rungs[rung])
        low, high, step = (low, rung, step) if found.enough else (rung, high, 2 * step)
        best = found if best is None or _better(found, best) else best
    return best


def recall_of(kind: str, segments: Sequence[Segment], queries: Vectors, effort: Effort, *, count: int = 10) -> RecallEstimate:
    """Return what an effort finds of the truly nearest: measured as `tuned` does; same arguments, and a kind that is not exact."""
    return _Sample(KINDS[kind], segments, queries, count, 1.0).tried(effort).estimate
