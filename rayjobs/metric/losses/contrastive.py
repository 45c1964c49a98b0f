"""Contrastive loss (Hadsell et al., 2006), without the squares, on distances of embeddings of length 1."""

from __future__ import annotations

from pytorch_metric_learning import losses

from rayjobs.metric.distances import DISTANCES
from rayjobs.metric.losses.protocol import EveryPair, TupleLoss
from rayjobs.metric.relations import as_pairs
from rayjobs.metric.section import Distance


class _Contrastive(EveryPair, losses.ContrastiveLoss):  # type: ignore[misc]  # the library has no types
    pass


class ContrastiveLoss(TupleLoss):
    """Mean of max(0, d - pos_margin) over positive pairs plus mean of max(0, neg_margin - d) over negative pairs, each over those not 0."""

    def __init__(self, *, pos_margin: float = 0.0, neg_margin: float = 1.0, distance: Distance = "euclidean") -> None:
        """Take the two margins and the distance that they are measured in."""
        formula = _Contrastive(pos_margin=pos_margin, neg_margin=neg_margin, distance=DISTANCES[distance]())
        super().__init__(formula, as_pairs, of="positive")
