"""Siamese verification (Khokhlova et al., Cross-year multi-modal image retrieval, 2020): are two images of one group, or of two?"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from rayjobs.metric.losses.protocol import TupleLoss
from rayjobs.metric.relations import Tuples, as_pairs


class SiameseLoss(TupleLoss):
    """Cross-entropy of p = sigmoid(w . |u - v| + b), which says of a pair whether it is alike; w and b are learned.

    alpha x mean over positive pairs of -(1 - p)^gamma log p, plus (1 - alpha) x mean over negative pairs of -p^gamma log(1 - p): the binary
    cross-entropy of as many alike as unlike pairs with alpha 0.5 and gamma 0, a focal loss (Lin et al., Focal loss for dense object
    detection, 2017) with gamma above 0.

    At first w is -1 throughout, and b such that p is one half at three quarters of the mean distance of unrelated directions. The published
    system drew w at random and compared vectors of any length; embeddings here have length 1.
    """

    def __init__(self, *, dim: int, alpha: float = 0.5, gamma: float = 0.0) -> None:
        """Take the embeddings' dimension, the weight of positive pairs, and how little pairs count that are told well already."""
        super().__init__(_Verification(dim, alpha=alpha, gamma=gamma), as_pairs, of="all")

    def pair_bytes(self, dim: int) -> int:
        """See `Loss`. On a GPU the way back through a distance by sums of differences lists these."""
        return super().pair_bytes(dim) + 8 * dim


class _Verification(nn.Module):
    def __init__(self, dim: int, *, alpha: float, gamma: float) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma
        self.weight = nn.Parameter(-torch.ones(dim))
        self.bias = nn.Parameter(torch.tensor(0.75 * 2 * math.sqrt(dim / math.pi)))

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        groups: torch.Tensor,  # noqa: ARG002  called as the library's losses
        tuples: Tuples,
        reference: torch.Tensor,
        reference_groups: torch.Tensor,  # noqa: ARG002  likewise
    ) -> dict[str, dict[str, torch.Tensor]]:
        anchor, positive, other, negative = tuples
        scores = self._scores(functional.normalize(embeddings), functional.normalize(reference))
        return {
            "alike": {"losses": self.alpha * self._losses(scores[anchor, positive])},
            "unlike": {"losses": (1 - self.alpha) * self._losses(-scores[other, negative])},
        }

    def _scores(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return w . |u - v| + b of each with each, as two distances, which list no differences on the way there."""
        nearer, farther = (part.to(left.dtype) for part in (self.weight.relu(), (-self.weight).relu()))
        apart = torch.cdist(left * farther, right * farther, p=1) - torch.cdist(left * nearer, right * nearer, p=1)
        return self.bias.to(left.dtype) - apart

    def _losses(self, scores: torch.Tensor) -> torch.Tensor:
        """Return -(1 - p)^gamma log p of pairs, where p = sigmoid(scores) is how sure the right answer is."""
        return (self.gamma * functional.logsigmoid(-scores)).exp() * -functional.logsigmoid(scores)
