"""Supervised contrastive loss (Khosla et al., 2020)."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import nn

from rayjobs.metric.losses.protocol import TupleLoss
from rayjobs.metric.relations import Tuples, as_pairs


class SupConLoss(TupleLoss):
    """Mean over anchors, those not 0, of the mean over their positives of -log(exp(s+ / T) / sum exp(s / T)); s is the cosine.

    The sum runs over all positives and negatives of the anchor (L_out of the paper). The library's differs where a batch has no negative
    at all: it costs 0 there, so that an anchor's loss would depend on whether others have negatives.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        """Take the temperature T."""
        super().__init__(_SupCon(temperature), as_pairs, of="positive")


class _SupCon(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.similarity = CosineSimilarity()

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        groups: torch.Tensor,  # noqa: ARG002  called as the library's losses
        tuples: Tuples,
        reference: torch.Tensor,
        reference_groups: torch.Tensor,  # noqa: ARG002  likewise
    ) -> dict[str, dict[str, torch.Tensor]]:
        anchor, positive, other, negative = tuples
        scores: torch.Tensor = self.similarity(embeddings, reference) / self.temperature
        alike, compared = (torch.zeros_like(scores, dtype=torch.bool) for _ in range(2))
        alike[anchor, positive] = True
        compared[torch.cat([anchor, other]), torch.cat([positive, negative])] = True
        # Not -inf: an anchor without any pair then costs 0 and has gradients that are numbers.
        crowd = scores.masked_fill(~compared, torch.finfo(scores.dtype).min).logsumexp(1, keepdim=True)
        surprise = (crowd - scores).masked_fill(~alike, 0.0)
        return {"loss": {"losses": surprise.sum(1) / alike.sum(1).clamp_min(1)}}
