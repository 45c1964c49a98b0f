"""Supervised contrastive loss (Khosla et al., 2020)."""

from __future__ import annotations

from pytorch_metric_learning import losses

from rayjobs.metric.losses.protocol import EveryPair, TupleLoss
from rayjobs.metric.relations import as_pairs


class _SupCon(EveryPair, losses.SupConLoss):  # type: ignore[misc]  # the library has no types
    pass


class SupConLoss(TupleLoss):
    """Mean over anchors, those not 0, of the mean over their positives of -log(exp(s+ / T) / sum exp(s / T)); s is the cosine.

    The sum runs over all positives and negatives of the anchor (L_out of the paper). Tuples without any negative cost 0.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        """Take the temperature T."""
        super().__init__(_SupCon(temperature=temperature), as_pairs)
