"""What every loss is: a module from embeddings and index tuples to one number. The formulas are pytorch-metric-learning's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rayjobs.metric.relations import Tuples


class Loss(nn.Module):
    """A formula of pytorch-metric-learning with its two gaps closed.

    The library takes a batch of a single pair for an empty one, and weighs a pair by the triplets that it is in; here a single pair counts,
    and each pair counts once. A batch without a valid tuple costs 0, with the graph kept, so that every rank still has gradients to share.
    """

    def __init__(self, formula: nn.Module, form: Callable[[Tuples], Tuples]) -> None:
        """Take the library's loss, and what brings tuples into the form it is defined on."""
        super().__init__()
        self.formula = formula
        self._form = form

    def forward(self, embeddings: torch.Tensor, groups: torch.Tensor, tuples: Tuples) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            embeddings: (n, dim) of any length; they are brought to length 1.
            groups: (n,) int64; what the tuples were made of.
            tuples: triplets or pairs; see `rayjobs.metric.relations`.

        Returns:
            A number of the embeddings' dtype, without dimensions.
        """
        formed = self._form(tuples)
        if not any(len(part) for part in formed):
            return embeddings.sum() * 0.0
        loss: torch.Tensor = self.formula(embeddings, groups, formed)
        return loss


class EveryPair:
    """Goes before one of the library's pair losses: a batch of one pair is a batch too."""

    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss_method: Callable[[torch.Tensor, Tuples], Any]

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,  # noqa: ARG002  the library's signature
        indices_tuple: Tuples,
        ref_emb: torch.Tensor,
        ref_labels: torch.Tensor,  # noqa: ARG002  the library's signature
    ) -> Any:
        """Return the library's record of a batch's losses."""
        return self.loss_method(self.distance(embeddings, ref_emb), indices_tuple)
