"""Triplet losses on distances of embeddings of length 1."""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_metric_learning import losses
from torch import nn

from rayjobs.metric.distances import DISTANCES
from rayjobs.metric.losses.protocol import TupleLoss
from rayjobs.metric.relations import Tuples, as_triplets
from rayjobs.metric.section import Distance


class TripletLoss(TupleLoss):
    """Mean over triplets of how far they are from what is wanted.

    `margin` (Schroff et al., FaceNet, 2015): max(0, d(anchor, positive) - d(anchor, negative) + margin), averaged over those not 0.
    `ratio` (Hoffer & Ailon, Triplet network, 2015): with s+ and s- the softmax of the two distances, (s+ - (s- - 1))^2 = 4 s+^2.
    That is twice the published ||(s+, s- - 1)||^2, and what the earlier system calls `alt_loss`.
    """

    def __init__(self, *, form: Literal["margin", "ratio"] = "margin", margin: float = 0.2, distance: Distance = "euclidean") -> None:
        """Take the form, the margin, which the form `ratio` does without, and the distance."""
        measure = DISTANCES[distance]()
        if form == "margin":
            super().__init__(losses.TripletMarginLoss(margin=margin, distance=measure), as_triplets, of="positive")
        else:
            super().__init__(_Ratio(measure), as_triplets, of="all")


class _Ratio(nn.Module):
    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance = distance

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        groups: torch.Tensor,  # noqa: ARG002  called as the library's losses
        tuples: Tuples,
        reference: torch.Tensor,
        reference_groups: torch.Tensor,  # noqa: ARG002  likewise
    ) -> dict[str, dict[str, torch.Tensor]]:
        anchor, positive, negative = tuples
        distances = self.distance(embeddings, reference)
        # The softmax of two is the logistic function of their difference.
        near: torch.Tensor = (distances[anchor, positive] - distances[anchor, negative]).sigmoid()
        return {"loss": {"losses": 4 * near.square()}}
