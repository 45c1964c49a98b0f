"""No mining: every tuple of the batch."""

from __future__ import annotations

import torch

from rayjobs.metric.relations import Tuples, pairs


class EveryTuple:
    """Returns all positive and negative pairs."""

    def __call__(self, embeddings: torch.Tensor, groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> Tuples:  # noqa: ARG002  as every miner
        """Return pairs; see `Miner`."""
        return pairs(groups, forbidden)
