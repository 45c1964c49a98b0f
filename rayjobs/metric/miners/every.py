"""No mining: every tuple."""

from __future__ import annotations

import torch

from rayjobs.metric.miners.protocol import Compared, Miner
from rayjobs.metric.relations import Tuples


class EveryTuple(Miner):
    """Returns all positive and negative pairs."""

    def choose(self, compared: Compared) -> Tuples:
        """Return pairs; see `Miner`."""
        return (*torch.where(compared.positive), *torch.where(compared.negative))
