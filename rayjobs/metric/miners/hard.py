"""Hard mining within a batch (Hermans et al., In defense of the triplet loss, 2017)."""

from __future__ import annotations

import torch

from rayjobs.metric.miners.protocol import Compared, Miner, farthest_positives, nearest_negatives
from rayjobs.metric.relations import Tuples


class HardMiner(Miner):
    """One triplet per anchor that has a positive and a negative: the farthest positive, the nearest negative."""

    def choose(self, compared: Compared) -> Tuples:
        """Return triplets; see `Miner`."""
        (anchor,) = torch.where(compared.positive.any(1) & compared.negative.any(1))
        return anchor, farthest_positives(compared)[anchor], nearest_negatives(compared)[anchor]


class HardNegativeMiner(Miner):
    """One triplet per positive pair: its anchor's nearest negative."""

    def choose(self, compared: Compared) -> Tuples:
        """Return triplets; see `Miner`."""
        anchor, positive = torch.where(compared.positive & compared.negative.any(1, keepdim=True))
        return anchor, positive, nearest_negatives(compared)[anchor]


class HardPositiveMiner(Miner):
    """One triplet per negative pair: its anchor's own farthest positive, never that of another anchor."""

    def choose(self, compared: Compared) -> Tuples:
        """Return triplets; see `Miner`."""
        anchor, negative = torch.where(compared.negative & compared.positive.any(1, keepdim=True))
        return anchor, farthest_positives(compared)[anchor], negative
