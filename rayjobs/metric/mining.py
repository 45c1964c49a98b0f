"""Exact mining over a whole set: each anchor's most similar tiles that the guards admit as negatives.

Work is cut into canonical blocks of anchors. A block's answer depends on nothing but the vectors, the guards and the block itself, so
workers may share the blocks as they like. Memory: the vectors, and about b x (16,384 + max_candidates) x 32 bytes for a block of b anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rayjobs.errors import TrainingError
from rayjobs.metric.guards import BoolArray, DistanceGuard, Guard, IntArray, LabelGuard, OverlapGuard, ProportionGuard

__all__ = ["DistanceGuard", "Guard", "LabelGuard", "MinedBlock", "OverlapGuard", "ProportionGuard", "canonical_blocks", "mine"]

Vectors = np.ndarray[Any, np.dtype[np.float32]]
_Keys = np.ndarray[Any, np.dtype[np.uint64]]

_GALLERY = 16_384
"""Tiles compared with a block at once."""
_FIRST_LOOK = 4
"""Candidates first shown to the guards, in multiples of the negatives wanted."""
_SHORT = 24
"""Candidates ranked at first, likewise."""
_NOBODY = np.uint64(2**64 - 1)
_LOW_HALF = np.uint64(2**32 - 1)
_SIGN = np.uint32(2**31)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedBlock:
    """The negatives of one block of anchors."""

    candidates: IntArray
    """(anchors, negatives) index of each negative, most similar first; -1 where there are fewer."""
    scores: Vectors
    """(anchors, negatives) float32 inner product; 0 where there is none."""
    refused: dict[str, int]
    """By guard: candidates that it was the first to refuse, among those more similar than the anchor's last negative."""


def canonical_blocks(count: int, size: int) -> list[slice]:
    """Cut `count` tiles into consecutive blocks of `size`, the last one shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def mine(vectors: Vectors, block: slice, guards: Sequence[Guard], *, negatives: int, max_candidates: int) -> MinedBlock:
    """Find the negatives of one block of anchors among all tiles.

    Args:
        vectors: (tiles, dim) float32 of length 1, at most 2**32 of them.
        block: the anchors; see `canonical_blocks`.
        guards: asked in this order; the first that refuses a candidate is the one that is counted.
        negatives: wanted per anchor.
        max_candidates: most similar tiles that are looked at per anchor; where the guards refuse too many of them, it gets fewer negatives.

    Returns:
        Most similar first, equal similarities by index; the anchor itself is never among them.

    Raises:
        TrainingError: a vector is not finite.
    """
    if not np.isfinite(vectors[block]).all():  # the other blocks are checked by whoever mines them
        raise TrainingError(
            "an embedding is not finite, so there is nothing to mine; lower train.learning_rate, or set train.precision: fp32"
        )
    anchors = np.arange(len(vectors))[block]
    # The short ranking is much cheaper and mostly enough; if it is not, the long one gives the same answer as if it had been taken first.
    short = _SHORT * negatives
    if short < min(max_candidates, len(vectors)):
        mined = _walk(_most_similar(vectors, block, anchors, short), anchors, guards, negatives)
        if (mined.candidates >= 0).all():
            return mined
    return _walk(_most_similar(vectors, block, anchors, max_candidates), anchors, guards, negatives)


def _most_similar(vectors: Vectors, block: slice, anchors: IntArray, count: int) -> _Keys:
    """Return (anchors, at most count) keys of the most similar tiles, most similar first."""
    count = min(count, len(vectors))
    best = np.full((len(anchors), count), _NOBODY)
    queries = np.ascontiguousarray(vectors[block])
    # One thread: how BLAS shares a product among threads may change its last bit, and with it the table.
    with threadpool_limits(limits=1, user_api="blas"):
        for part in canonical_blocks(len(vectors), _GALLERY):
            scores = queries @ vectors[part].T
            inside = (anchors >= part.start) & (anchors < part.stop)
            scores[inside, anchors[inside] - part.start] = -np.inf
            best = np.concatenate([best, _rivals(scores, part.start, best, count)], axis=1)
            best = np.partition(best, count - 1, axis=1)[:, :count]
    best.sort(axis=1)
    return best


def _rivals(scores: Vectors, first: int, best: _Keys, count: int) -> _Keys:
    """Return the keys of those of some tiles that may be among the best `count`, padded: few, once good ones are known."""
    worst = best.max(axis=1)
    _, floor = _unpacked(worst)
    floor[worst == _NOBODY] = np.finfo(np.float32).min
    if first == 0 and count < scores.shape[1]:
        floor = np.partition(scores, -count, axis=1)[:, -count].clip(min=np.finfo(np.float32).min)
    rows, columns = np.divmod(np.flatnonzero(scores >= floor[:, None]), scores.shape[1])
    per_row = np.bincount(rows, minlength=len(scores))
    place = np.arange(len(rows)) - (per_row.cumsum() - per_row)[rows]
    padded = np.full((len(scores), int(per_row.max(initial=0))), _NOBODY)
    padded[rows, place] = _keys(scores[rows, columns], columns + first)
    return padded


def _keys(scores: Vectors, indices: IntArray) -> _Keys:
    """Pack score and index into one number whose order is: greater score first, equal scores by index."""
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum makes -0.0 equal 0.0
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    packed: _Keys = ((~ascending).astype(np.uint64) << np.uint64(32)) | indices.astype(np.uint64)
    return packed


def _unpacked(keys: _Keys) -> tuple[IntArray, Vectors]:
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ascending & _SIGN, ascending & ~_SIGN, ~ascending)
    return (keys & _LOW_HALF).astype(np.int64), bits.view(np.float32)


def _walk(keys: _Keys, anchors: IntArray, guards: Sequence[Guard], negatives: int) -> MinedBlock:
    """Go down each anchor's ranking until it has enough; look farther, twice as far each time, only for those that have not."""
    candidates = np.full((len(anchors), negatives), -1, np.int64)
    scores = np.zeros((len(anchors), negatives), np.float32)
    refused = np.zeros(len(guards), np.int64)
    have = np.zeros(len(anchors), np.int64)
    start, stop = 0, _FIRST_LOOK * negatives
    wanting = np.arange(len(anchors))
    while len(wanting) and start < keys.shape[1]:
        shown = keys[wanting, start:stop]
        refuser = _refusers(shown, anchors[wanting], guards)
        admitted = refuser == _ADMITTED
        place = have[wanting, None] + admitted.cumsum(axis=1) - admitted  # admitted before this one
        visited = place < negatives
        refused += np.bincount(refuser[visited & (refuser >= 0)], minlength=len(guards))
        rows, columns = np.nonzero(admitted & visited)
        at = wanting[rows], place[rows, columns]
        candidates[at], scores[at] = _unpacked(shown[rows, columns])
        have[wanting] += (admitted & visited).sum(axis=1)
        wanting = wanting[have[wanting] < negatives]
        start, stop = stop, 2 * stop
    counts = {guard.name: int(count) for guard, count in zip(guards, refused, strict=True)}
    return MinedBlock(candidates=candidates, scores=scores, refused=counts)


_ADMITTED, _ABSENT = -1, -2


def _refusers(shown: _Keys, anchors: IntArray, guards: Sequence[Guard]) -> IntArray:
    """Return for each shown candidate the number of the first guard that refuses it, or -1: none does, or -2: there is no candidate."""
    refuser = np.where(shown == _NOBODY, _ABSENT, _ADMITTED).astype(np.int64)
    indices = (shown & _LOW_HALF).astype(np.int64)
    for number, guard in enumerate(guards):
        rows, columns = np.nonzero(refuser == _ADMITTED)
        no: BoolArray = guard.refuses(anchors[rows], indices[rows, columns])
        refuser[rows[no], columns[no]] = number
    return refuser
