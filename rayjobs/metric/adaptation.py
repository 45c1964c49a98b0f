"""What tiles without labels, of a domain that is adapted to, are asked: to be sure of their outputs, or to agree in two views."""

from __future__ import annotations

import torch


def entropy(outputs: torch.Tensor) -> torch.Tensor:
    """Return the mean over tiles of the entropy, in nats, of the softmax of their outputs (n, K).

    Of numbers from 0 to 1 it lies near log K, whatever they are: 3.35 of 3.47 where half of 32 are on. It then teaches little.
    """
    logs = outputs.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def consensus(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the min-entropy consensus of two views of the same tiles, (n, K) each (Roy et al., 2019).

    The mean over tiles of the least, over classes, of half the sum of the two views' -log p.
    """
    return (-(first.log_softmax(dim=1) + second.log_softmax(dim=1)) / 2).amin(dim=1).mean()
