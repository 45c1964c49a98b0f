"""Proxy-anchor loss (Kim et al., 2020) on cosine similarities to learned proxies."""

from __future__ import annotations

import torch
from pytorch_metric_learning import losses
from torch import nn

from rayjobs.metric.losses.protocol import ClassLoss


class ProxyAnchorLoss(ClassLoss):
    """Softplus of each class's proxy to its own and to all other items of the batch.

    Mean over the classes in the batch of log(1 + sum over their items of exp(-alpha (s - margin))), plus mean over all classes of
    log(1 + sum over the items of others of exp(alpha (s + margin))).
    """

    def __init__(self, *, dim: int, classes: int, margin: float = 0.1, alpha: float = 32.0, seed: int = 0) -> None:
        """Take the embeddings' dimension, the number of classes, the margin, the sharpness, and the seed of the first proxies."""
        formula = losses.ProxyAnchorLoss(classes, dim, margin=margin, alpha=alpha, weight_init_func=nn.init.zeros_)
        nn.init.kaiming_normal_(formula.proxies, mode="fan_out", generator=torch.Generator().manual_seed(seed))
        super().__init__(formula, classes=classes)
