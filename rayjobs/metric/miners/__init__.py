"""Miners by name: which tuples of a batch the loss looks at."""

from __future__ import annotations

from rayjobs.metric.miners.distance_weighted import DistanceWeightedMiner
from rayjobs.metric.miners.every import EveryTuple
from rayjobs.metric.miners.hard import HardMiner, HardNegativeMiner, HardPositiveMiner
from rayjobs.metric.miners.multi_similarity import MultiSimilarityMiner
from rayjobs.metric.miners.protocol import Miner
from rayjobs.metric.miners.semi_hard import SemiHardMiner
from rayjobs.metric.section import MinerSection

__all__ = [
    "MINERS",
    "DistanceWeightedMiner",
    "EveryTuple",
    "HardMiner",
    "HardNegativeMiner",
    "HardPositiveMiner",
    "Miner",
    "MultiSimilarityMiner",
    "SemiHardMiner",
    "build_miner",
]

MINERS: dict[str, type[Miner]] = {
    "none": EveryTuple,
    "hard_negative": HardNegativeMiner,
    "hard_positive": HardPositiveMiner,
    "hard": HardMiner,
    "semi_hard": SemiHardMiner,
    "multi_similarity": MultiSimilarityMiner,
    "distance_weighted": DistanceWeightedMiner,
}


def build_miner(section: MinerSection) -> Miner:
    """Make the miner that a section describes."""
    parameters = {name: value for name, value in vars(section).items() if name != "kind"}
    return MINERS[section.kind](**parameters)
