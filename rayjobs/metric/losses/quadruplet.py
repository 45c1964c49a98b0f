"""Quadruplet losses (Chen et al., Beyond triplet loss, 2017) on distances of embeddings of length 1."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from rayjobs.errors import TrainingError
from rayjobs.metric.distances import DISTANCES
from rayjobs.metric.losses.protocol import Loss, mean_of_positive
from rayjobs.metric.relations import Quadruplets, Reference, Tuples, as_pairs, as_quadruplets, as_triplets
from rayjobs.metric.section import Distance


class QuadrupletLoss(Loss):
    """A positive must be nearer than a negative of its anchor, and nearer than two items of other groups that are unlike.

    `margin`: mean over triplets of max(0, d(anchor, positive) - d(anchor, negative) + margin), plus mean over every positive pair and every
    negative pair (other, negative) without an item of its group of max(0, d(anchor, positive) - d(other, negative) + second_margin), each
    over those not 0.
    `ratio`, the earlier system's `alt_loss`: with w+, w1 and w2 the softmax of d(anchor, positive), d(anchor, negative) and
    d(other, negative), mean over `as_quadruplets` of (w+ - (w1 - 1))^2 + (w+ - (w2 - second_margin))^2. Their number, and the memory, grow
    with the cube of a batch in which every tuple counts: it wants a miner.
    """

    takes_tuples = True

    def __init__(
        self,
        *,
        form: Literal["margin", "ratio"] = "margin",
        margin: float = 0.2,
        second_margin: float | None = None,
        distance: Distance = "euclidean",
    ) -> None:
        """Take the form, the margins, the second half of the first if None, and the distance."""
        super().__init__()
        self.form, self.margin = form, margin
        self.second_margin = margin / 2 if second_margin is None else second_margin
        self.distance = DISTANCES[distance]()

    def forward(
        self, embeddings: torch.Tensor, groups: torch.Tensor, tuples: Tuples | None = None, *, reference: Reference | None = None
    ) -> torch.Tensor:
        """See `Loss`. A batch without a valid tuple costs 0, with the graph kept.

        Raises:
            TrainingError: there are no tuples.
        """
        if tuples is None:
            raise TrainingError("a loss on pairs or triplets was called without them; give it what a miner chose")
        distances = self.distance(embeddings, embeddings if reference is None else reference.embeddings)
        if self.form == "ratio":
            return self._ratio(distances, as_quadruplets(tuples, groups, reference))
        anchor, positive, negative = as_triplets(tuples)
        first = (distances[anchor, positive] - distances[anchor, negative] + self.margin).relu()
        return mean_of_positive(first) + self._second(
            distances, as_pairs(tuples), groups, groups if reference is None else reference.groups
        )

    def _ratio(self, distances: torch.Tensor, found: Quadruplets) -> torch.Tensor:
        """Return the mean loss of quadruplets; 0, with the graph kept, if there are none."""
        anchor, positive, negative = found.triplets
        near = distances[anchor, positive].index_select(0, found.triplet)
        far = distances[anchor, negative].index_select(0, found.triplet)
        apart = distances[found.others].index_select(0, found.other)
        plus, one, two = torch.stack([near, far, apart]).softmax(0)
        losses: torch.Tensor = (plus - one + 1).square() + (plus - two + self.second_margin).square()
        return losses.sum() / max(1, len(losses))

    def _second(self, distances: torch.Tensor, pairs: Tuples, groups: torch.Tensor, other_groups: torch.Tensor) -> torch.Tensor:
        """Return the mean of what is not 0 over positive pairs x negative pairs, of which no list is made: there may be billions.

        Of sorted distances, those below a limit are the first few, and the sum of what they lack is a difference of two sums.
        """
        anchor, positive, other, negative = pairs
        limits, owner = distances[anchor, positive] + self.second_margin, groups[anchor]
        apart, order = distances[other, negative].sort()
        one, two = groups[other][order], other_groups[negative][order]
        summed, count = distances.sum() * 0.0, 0
        for group in torch.unique(owner):
            longest, lengths = limits[owner == group], apart[(one != group) & (two != group)]
            below = torch.searchsorted(lengths.detach(), longest.detach())
            upto = functional.pad(lengths.cumsum(0), (1, 0))
            summed = summed + (below * longest - upto[below]).sum()
            count += int(below.sum())
        return summed / max(1, count)
