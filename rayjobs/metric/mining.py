"""Mining over a whole set: each anchor's most similar tiles that the guards admit as negatives.

Work is cut into canonical blocks of anchors. A block's answer depends on nothing but the ranking, the guards and the block itself, so
workers may share the blocks as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rayjobs.metric.guards import Fractions, Guard, IntArray, Pairs
from rayjobs.metric.ranking import NOBODY, Keys, Ranking, Scores, unpacked

_FIRST_LOOK = 4
"""Candidates first shown to the guards, in multiples of the negatives wanted."""
_SHORT = 24
"""Candidates ranked at first, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedBlock:
    """The negatives of one block of anchors."""

    candidates: IntArray
    """(anchors, negatives) index of each negative, most similar first; -1 where there are fewer."""
    scores: Scores
    """(anchors, negatives) float32 inner product; 0 where there is none."""
    refused: dict[str, int]
    """By guard: candidates that it was the first to refuse, among those more similar than the anchor's last negative."""


def mine(
    ranking: Ranking,
    block: slice,
    guards: Sequence[Guard],
    *,
    negatives: int,
    max_candidates: int,
    ceilings: Fractions | None = None,
    floors: Fractions | None = None,
    skip_in_top: int | None = None,
) -> MinedBlock:
    """Find the negatives of one block of anchors among all tiles.

    Args:
        ranking: of all tiles.
        block: the anchors; see `rayjobs.metric.ranking.canonical_blocks`.
        guards: asked in this order; the first that refuses a candidate is the one that is counted.
        negatives: wanted per anchor.
        max_candidates: most similar tiles that are looked at per anchor; where the guards refuse too many of them, it gets fewer negatives.
        ceilings: (anchors,) similarity of each anchor and the most similar of its known positives, infinity where it has none; None where
            nobody asks.
        floors: (anchors,) likewise of the least similar, infinity where it has none.
        skip_in_top: anchors that have fewer negatives more similar than their least similar known positive get none, and those without a
            known positive; None: all get theirs.

    Returns:
        Most similar first, equal similarities by index; the anchor itself is never among them.
    """
    anchors = np.arange(block.start, block.stop)
    if ceilings is None:
        ceilings = np.full(len(anchors), np.inf, np.float32)
    # A short ranking is cheaper and mostly enough; the anchors that it is not enough for are looked at again.
    short = min(_SHORT * negatives, max_candidates)
    walk = _Walk(guards, negatives)
    found = walk.down(ranking.most_similar(anchors, short), anchors, ceilings)
    lacking = np.flatnonzero(found.candidates[:, -1] < 0)
    if len(lacking) and short < max_candidates:
        again = walk.down(ranking.most_similar(anchors[lacking], max_candidates), anchors[lacking], ceilings[lacking])
        for part, longer in ((found.candidates, again.candidates), (found.scores, again.scores), (found.refused, again.refused)):
            part[lacking] = longer
    if skip_in_top is not None and floors is not None:
        easy = (found.scores > floors[:, None]).sum(axis=1, where=found.candidates >= 0) < skip_in_top
        found.candidates[easy], found.scores[easy] = -1, 0
    counts = found.refused.sum(axis=0).tolist()
    return MinedBlock(
        candidates=found.candidates, scores=found.scores, refused={guard.name: n for guard, n in zip(guards, counts, strict=True)}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MinedPositives:
    """What the known positives of one block of anchors are to the embeddings."""

    candidates: IntArray
    """(anchors, positives) index of each hard positive, least similar first; -1 where there are fewer."""
    scores: Scores
    """(anchors, positives) float32 inner product; 0 where there is none."""
    ceilings: Scores
    """(anchors,) similarity of the most similar known positive; infinity where there is none."""
    floors: Scores
    """(anchors,) of the least similar one; infinity where there is none."""


def mine_positives(vectors: torch.Tensor, block: slice, known: Callable[[int], IntArray], *, positives: int) -> MinedPositives:
    """Compare the anchors of one block with their known positives.

    Args:
        vectors: (tiles, dim) float32 of length 1.
        block: the anchors.
        known: from an anchor to its known positives, different tiles and not itself.
        positives: wanted per anchor: the least similar, equal similarities by index.
    """
    count = block.stop - block.start
    candidates = np.full((count, positives), -1, np.int64)
    scores = np.zeros((count, positives), np.float32)
    ceilings, floors = np.full(count, np.inf, np.float32), np.full(count, np.inf, np.float32)
    for row, anchor in enumerate(range(block.start, block.stop)):
        alike = known(anchor)
        if len(alike):
            similar = torch.mv(vectors[torch.from_numpy(alike)], vectors[anchor]).numpy()
            hardest = np.lexsort((alike, similar))[:positives]
            candidates[row, : len(hardest)], scores[row, : len(hardest)] = alike[hardest], similar[hardest]
            ceilings[row], floors[row] = similar.max(), similar.min()
    return MinedPositives(candidates=candidates, scores=scores, ceilings=ceilings, floors=floors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    candidates: IntArray
    scores: Scores
    refused: IntArray
    """(anchors, guards)."""


_ADMITTED, _ABSENT = -1, -2


class _Walk:
    """Goes down each anchor's ranking until it has enough; looks farther, twice as far each time, only for those that have not."""

    def __init__(self, guards: Sequence[Guard], negatives: int) -> None:
        self._guards, self._negatives = guards, negatives

    def down(self, keys: Keys, anchors: IntArray, ceilings: Fractions) -> _Found:
        """Return what the ranking (anchors, candidates) gives each anchor."""
        found = _Found(
            candidates=np.full((len(anchors), self._negatives), -1, np.int64),
            scores=np.zeros((len(anchors), self._negatives), np.float32),
            refused=np.zeros((len(anchors), len(self._guards)), np.int64),
        )
        have = np.zeros(len(anchors), np.int64)
        start, stop = 0, _FIRST_LOOK * self._negatives
        wanting = np.arange(len(anchors))
        while len(wanting) and start < keys.shape[1]:
            self._look(keys[wanting, start:stop], wanting, anchors, ceilings, have, found)
            wanting = wanting[have[wanting] < self._negatives]
            start, stop = stop, 2 * stop
        return found

    def _look(self, shown: Keys, wanting: IntArray, anchors: IntArray, ceilings: Fractions, have: IntArray, found: _Found) -> None:
        """Give those that want more what the guards admit of the candidates shown, (wanting, candidates)."""
        indices, scores = unpacked(shown)
        refuser = self._refusers(shown, indices, scores, anchors[wanting], ceilings[wanting], found.candidates[wanting])
        admitted = refuser == _ADMITTED
        place = have[wanting, None] + admitted.cumsum(axis=1) - admitted  # admitted before this one
        visited = place < self._negatives
        for number in range(len(self._guards)):
            found.refused[wanting, number] += (visited & (refuser == number)).sum(axis=1)
        rows, columns = np.nonzero(admitted & visited)
        at = wanting[rows], place[rows, columns]
        found.candidates[at], found.scores[at] = indices[rows, columns], scores[rows, columns]
        have[wanting] += (admitted & visited).sum(axis=1)

    def _refusers(
        self, shown: Keys, indices: IntArray, scores: Scores, anchors: IntArray, ceilings: Fractions, chosen: IntArray
    ) -> IntArray:
        """Return the number of the first guard that refuses each candidate, or -1: none does, or -2: there is no candidate."""
        refuser = np.where(shown == NOBODY, _ABSENT, _ADMITTED).astype(np.int64)
        for number, guard in enumerate(self._guards):
            rows, columns = np.nonzero(refuser == _ADMITTED)
            pairs = Pairs(
                anchors=anchors[rows],
                candidates=indices[rows, columns],
                scores=scores[rows, columns],
                ceilings=ceilings[rows],
                chosen=chosen[rows],
            )
            no = guard.refuses(pairs)
            refuser[rows[no], columns[no]] = number
        return refuser
