"""NT-Xent loss (Chen et al., SimCLR, 2020), the in-batch softmax."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from torch import nn

from rayjobs.metric.losses.protocol import TupleLoss
from rayjobs.metric.relations import Tuples, as_pairs


class NTXentLoss(TupleLoss):
    """Mean over positive pairs of -log(exp(s+ / T) / (exp(s+ / T) + sum exp(s- / T))), summed over its negatives; s is the cosine.

    Memory grows with the pairs of batch and reference set; the library's grows with positive pairs x negative pairs, which leaves no room
    for a memory.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        """Take the temperature T."""
        super().__init__(_NTXent(temperature), as_pairs, of="all")


class _NTXent(nn.Module):
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
        unlike = torch.zeros_like(scores, dtype=torch.bool)
        unlike[other, negative] = True
        # Not -inf: an anchor without negatives then costs 0 and has gradients that are numbers.
        crowd = scores.masked_fill(~unlike, torch.finfo(scores.dtype).min).logsumexp(1)
        wanted = scores[anchor, positive]
        return {"loss": {"losses": torch.logaddexp(wanted, crowd[anchor]) - wanted}}
