"""The projector between what an encoder gives and a loss, thrown away after training (Chen et al., SimCLR, 2020)."""

from __future__ import annotations

import torch
from torch import nn


def projector(inputs: int, dim: int, *, seed: int) -> nn.Module:
    """Return linear, ReLU, linear without biases: from (n, inputs) to (n, dim); the seed's weights are the same on all ranks."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, inputs, bias=False), nn.ReLU(), nn.Linear(inputs, dim, bias=False))
