"""Miners by name: which tuples of a batch the loss looks at."""

from __future__ import annotations

from rayjobs.metric.miners.every import EveryTuple
from rayjobs.metric.miners.hard import HardMiner
from rayjobs.metric.miners.multi_similarity import MultiSimilarityMiner
from rayjobs.metric.miners.protocol import Miner
from rayjobs.metric.miners.semi_hard import SemiHardMiner
from rayjobs.metric.section import MinerSection

__all__ = ["MINERS", "EveryTuple", "HardMiner", "Miner", "MultiSimilarityMiner", "SemiHardMiner", "build_miner"]

MINERS: dict[str, type[Miner]] = {
    "none": EveryTuple,
    "semi_hard": SemiHardMiner,
    "hard": HardMiner,
    "multi_similarity": MultiSimilarityMiner,
}


def build_miner(section: MinerSection) -> Miner:
    """Make the miner that a section describes."""
    parameters = {name: value for name, value in vars(section).items() if name != "kind"}
    return MINERS[section.kind](**parameters)
