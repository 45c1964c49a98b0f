"""Cross-entropy of a linear classifier on the embeddings as they are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from rayjobs.metric.losses.protocol import ClassLoss


class CrossEntropyLoss(ClassLoss):
    """Mean cross-entropy of a learned linear layer with bias: no length is divided out, and no temperature sharpens."""

    def __init__(self, *, dim: int, classes: int, seed: int = 0) -> None:
        """Take the embeddings' dimension, the number of classes and the seed of the first weights."""
        super().__init__(_Classifier(dim, classes, seed), classes=classes)


class _Classifier(nn.Module):
    def __init__(self, dim: int, classes: int, seed: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(classes, dim)), nn.Parameter(torch.empty(classes))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():  # as torch begins a linear layer
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5, generator=generator)

    def forward(self, embeddings: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        scores = functional.linear(embeddings, self.weight.to(embeddings.dtype), self.bias.to(embeddings.dtype))
        return functional.cross_entropy(scores, groups)
