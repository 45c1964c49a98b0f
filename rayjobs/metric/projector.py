"""What stands between an encoder and a loss and is thrown away after training: the projector, and the predictor of SimSiam.

Their batch norms keep no running statistics: they see whole batches, gathered from all ranks, and nothing but training uses them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

BatchNorms = Literal["none", "hidden", "all"]


def projector(
    inputs: int, dim: int, *, seed: int, layers: int = 2, hidden: int | None = None, batch_norm: BatchNorms = "none"
) -> nn.Module:
    """Return the projector of SimCLR (Chen et al., 2020), or with 3 layers and all batch norms that of SimSiam (Chen & He, 2021).

    Args:
        inputs: numbers that the encoder gives.
        dim: numbers that the loss compares.
        seed: of the first weights, which are so the same on all ranks.
        layers: linear ones, without biases and with ReLUs between them.
        hidden: numbers between them; None for `inputs`.
        batch_norm: after which layers.

    Returns:
        From (n, inputs) to (n, dim).
    """
    return perceptron([inputs, *[hidden or inputs] * (layers - 1), dim], seed=seed, batch_norm=batch_norm)


def perceptron(sizes: Sequence[int], *, seed: int, batch_norm: BatchNorms) -> nn.Module:
    """Return linear layers without biases from size to size, with ReLUs between them."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        found: list[nn.Module] = []
        for taken, given in itertools.pairwise(sizes):
            found.append(nn.Linear(taken, given, bias=False))
            if batch_norm != "none":
                found.append(nn.BatchNorm1d(given, track_running_stats=False))
            found.append(nn.ReLU())
        kept = found[:-1]
        if batch_norm == "hidden":
            kept = kept[:-1]
        elif batch_norm == "all":
            kept[-1] = nn.BatchNorm1d(sizes[-1], affine=False, track_running_stats=False)
        return nn.Sequential(*kept)


def spread(embeddings: torch.Tensor) -> torch.Tensor:
    """Return how far embeddings (n, dim) differ: the mean over dimensions of the deviation of z / |z|, times the root of dim.

    1 where they point everywhere, 0 where all have become one, which is called collapse (Chen & He, 2021, who plot it over the root). A
    number without dimensions, not a number for fewer than two embeddings.
    """
    found: torch.Tensor = functional.normalize(embeddings, dim=1).std(dim=0).mean() * embeddings.shape[1] ** 0.5
    return found
