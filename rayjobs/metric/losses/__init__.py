"""Losses by name. Each maps embeddings and index tuples to one number that can be differentiated."""

from __future__ import annotations

from rayjobs.metric.losses.contrastive import ContrastiveLoss
from rayjobs.metric.losses.multi_similarity import MultiSimilarityLoss
from rayjobs.metric.losses.ntxent import NTXentLoss
from rayjobs.metric.losses.protocol import Loss
from rayjobs.metric.losses.triplet import TripletLoss
from rayjobs.metric.section import LossSection

__all__ = ["LOSSES", "ContrastiveLoss", "Loss", "MultiSimilarityLoss", "NTXentLoss", "TripletLoss", "build_loss"]

LOSSES: dict[str, type[Loss]] = {
    "triplet": TripletLoss,
    "ntxent": NTXentLoss,
    "contrastive": ContrastiveLoss,
    "multi_similarity": MultiSimilarityLoss,
}


def build_loss(section: LossSection) -> Loss:
    """Make the loss that a section describes."""
    parameters = {name: value for name, value in vars(section).items() if name != "kind"}
    return LOSSES[section.kind](**parameters)
