"""Cross-entropy of a linear classifier on the embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from rayjobs.metric.losses.protocol import ClassLoss


class CrossEntropyLoss(ClassLoss):
    """Cross-entropy of a learned linear layer with bias: no length is divided out, and no temperature sharpens.

    Classes may count differently: then it is the weighted mean, sum of w_c x -log p_c over sum of w_c.
    """

    def __init__(
        self, *, dim: int, classes: int, seed: int = 0, scale: float = 1.0, dropout: float = 0.0, weights: Sequence[float] | None = None
    ) -> None:
        """Take what decides the layer.

        Args:
            dim: of the embeddings.
            classes: how many.
            seed: of the first weights.
            scale: multiplies the embeddings.
            dropout: probability with which a number of an embedding is left out, in training.
            weights: (classes,) how much the items of each class count; None for all alike.
        """
        super().__init__(_Classifier(dim, classes, seed, scale, dropout, weights), classes=classes)


class _Classifier(nn.Module):
    class_weights: torch.Tensor | None

    def __init__(self, dim: int, classes: int, seed: int, scale: float, dropout: float, weights: Sequence[float] | None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(classes, dim)), nn.Parameter(torch.empty(classes))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():  # as torch begins a linear layer
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5, generator=generator)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        # Not in the state: the experiment file holds them.
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)

    def forward(self, embeddings: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        seen = self.dropout(self.scale * embeddings)
        scores = functional.linear(seen, self.weight.to(seen.dtype), self.bias.to(seen.dtype))
        if self.class_weights is None:
            return functional.cross_entropy(scores, groups)
        weights = self.class_weights.to(seen.dtype)
        each = functional.cross_entropy(scores, groups, weight=weights, reduction="none")
        return each.sum() / weights[groups].sum().clamp_min(torch.finfo(seen.dtype).tiny)  # 0 where no class of the batch counts
