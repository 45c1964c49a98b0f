"""Normalised softmax loss (Zhai & Wu, Classification is a strong baseline for deep metric learning, 2019)."""

from __future__ import annotations

import torch
from pytorch_metric_learning import losses
from torch import nn

from rayjobs.metric.losses.protocol import ClassLoss


class SoftmaxLoss(ClassLoss):
    """Mean cross-entropy of the cosines to a learned weight of each class, divided by the temperature."""

    def __init__(self, *, dim: int, classes: int, temperature: float = 0.05, seed: int = 0) -> None:
        """Take the embeddings' dimension, the number of classes, the temperature, and the seed of the first weights."""
        formula = losses.NormalizedSoftmaxLoss(classes, dim, temperature=temperature, weight_init_func=nn.init.zeros_)
        nn.init.normal_(formula.W, generator=torch.Generator().manual_seed(seed))
        super().__init__(formula, classes=classes)
