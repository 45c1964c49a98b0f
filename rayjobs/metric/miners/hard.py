"""Hardest triplets (Hermans et al., 2017)."""

from __future__ import annotations

import torch
from pytorch_metric_learning import miners
from pytorch_metric_learning.distances import LpDistance

from rayjobs.metric.miners.protocol import blind_to
from rayjobs.metric.relations import Tuples, allowed, relations


class HardMiner:
    """One triplet per anchor that has a positive and a negative: the farthest positive, the nearest negative that is not forbidden."""

    def __call__(self, embeddings: torch.Tensor, groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> Tuples:
        """Return triplets; see `Miner`."""
        found: Tuples = miners.BatchHardMiner(distance=blind_to(forbidden, groups, LpDistance))(embeddings, groups)
        return allowed(found, ~relations(groups, forbidden)[1])
