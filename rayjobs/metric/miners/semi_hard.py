"""Semi-hard triplets (Schroff et al., FaceNet, 2015)."""

from __future__ import annotations

import torch
from pytorch_metric_learning import miners
from pytorch_metric_learning.distances import LpDistance

from rayjobs.metric.miners.protocol import blind_to
from rayjobs.metric.relations import Tuples, allowed, relations


class SemiHardMiner:
    """Triplets with d(a, p) < d(a, n) <= d(a, p) + margin, Euclidean between embeddings of length 1."""

    def __init__(self, *, margin: float = 0.2) -> None:
        """Take the margin."""
        self.margin = margin

    def __call__(self, embeddings: torch.Tensor, groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> Tuples:
        """Return triplets; see `Miner`."""
        distance = blind_to(forbidden, groups, LpDistance)
        found: Tuples = miners.TripletMarginMiner(self.margin, type_of_triplets="semihard", distance=distance)(embeddings, groups)
        return allowed(found, ~relations(groups, forbidden)[1])
