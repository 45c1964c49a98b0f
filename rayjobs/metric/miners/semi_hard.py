"""Semi-hard triplets (Schroff et al., FaceNet, 2015)."""

from __future__ import annotations

from typing import Literal

import torch

from rayjobs.metric.miners.protocol import Compared, Miner
from rayjobs.metric.relations import Tuples, as_triplets
from rayjobs.metric.section import Distance


class SemiHardMiner(Miner):
    """Triplets with d(a, p) < d(a, n) <= d(a, p) + margin: all of them, or of each positive pair the one whose negative is nearest."""

    def __init__(self, *, margin: float = 0.2, distance: Distance = "euclidean", negatives: Literal["all", "nearest"] = "all") -> None:
        """Take the margin, the distance that it is measured in, and which negatives of a positive pair are wanted.

        Memory for `all` grows with the number of triplets of the batch, for `nearest` with that of its pairs.
        """
        self.margin, self.distance, self.negatives = margin, distance, negatives

    def choose(self, compared: Compared) -> Tuples:
        """Return triplets; see `Miner`."""
        triplets = _every(compared) if self.negatives == "all" else _nearest_beyond(compared)
        anchor, positive, negative = triplets
        slack = compared.distances[anchor, negative] - compared.distances[anchor, positive]
        semi_hard = (slack > 0) & (slack <= self.margin)
        return tuple(part[semi_hard] for part in triplets)


def _every(compared: Compared) -> Tuples:
    return as_triplets((*torch.where(compared.positive), *torch.where(compared.negative)))


def _nearest_beyond(compared: Compared) -> Tuples:
    """Return for each positive pair the nearest of the negatives that are farther than the positive, if there is one."""
    anchor, positive = torch.where(compared.positive)
    ordered, order = compared.distances.masked_fill(~compared.negative, torch.inf).sort(1)
    place = torch.searchsorted(ordered, compared.distances.contiguous(), right=True)[anchor, positive]
    there = place < compared.negative.sum(1)[anchor]
    anchor, positive, place = anchor[there], positive[there], place[there]
    return anchor, positive, order[anchor, place]
