"""Multi-similarity mining (Wang et al., 2019)."""

from __future__ import annotations

import torch

from rayjobs.metric.miners.protocol import Compared, Miner
from rayjobs.metric.relations import Tuples


class MultiSimilarityMiner(Miner):
    """Negatives with s > (least positive s) - epsilon, positives with s < (greatest negative s) + epsilon; s a cosine similarity."""

    distance = "cosine"

    def __init__(self, *, epsilon: float = 0.1) -> None:
        """Take the width of the band."""
        self.epsilon = epsilon

    def choose(self, compared: Compared) -> Tuples:
        """Return pairs of anchors that have a positive and a negative; see `Miner`."""
        distances = compared.distances
        # Without a positive, no negative is near enough; without a negative, no positive is far enough.
        reach = distances.masked_fill(~compared.positive, -torch.inf).amax(1, keepdim=True) + self.epsilon
        start = distances.masked_fill(~compared.negative, torch.inf).amin(1, keepdim=True) - self.epsilon
        return (*torch.where(compared.positive & (distances > start)), *torch.where(compared.negative & (distances < reach)))
