"""Triplet loss (Schroff et al., FaceNet, 2015) on Euclidean distances of embeddings of length 1."""

from __future__ import annotations

from pytorch_metric_learning import losses

from rayjobs.metric.losses.protocol import Loss
from rayjobs.metric.relations import as_triplets


class TripletLoss(Loss):
    """Mean of max(0, d(anchor, positive) - d(anchor, negative) + margin) over the triplets where it is not 0."""

    def __init__(self, *, margin: float = 0.2) -> None:
        """Take the margin, a Euclidean distance."""
        super().__init__(losses.TripletMarginLoss(margin=margin), as_triplets)
