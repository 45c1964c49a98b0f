"""Multi-similarity mining (Wang et al., 2019)."""

from __future__ import annotations

import torch
from pytorch_metric_learning import miners
from pytorch_metric_learning.distances import CosineSimilarity

from rayjobs.metric.miners.protocol import blind_to
from rayjobs.metric.relations import Tuples, allowed, relations


class MultiSimilarityMiner:
    """Negatives with s > (least positive s) - epsilon, positives with s < (greatest negative s) + epsilon; s a cosine similarity."""

    def __init__(self, *, epsilon: float = 0.1) -> None:
        """Take the width of the band."""
        self.epsilon = epsilon

    def __call__(self, embeddings: torch.Tensor, groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> Tuples:
        """Return pairs; see `Miner`."""
        distance = blind_to(forbidden, groups, CosineSimilarity)
        found: Tuples = miners.MultiSimilarityMiner(self.epsilon, distance=distance)(embeddings, groups)
        return allowed(found, ~relations(groups, forbidden)[1])
