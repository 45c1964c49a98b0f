"""Triplets across classes: tiles of other classes that look alike are positives, by clusters of what a network saw before training."""

from __future__ import annotations

import numpy as np
import torch

from rayjobs.errors import TrainingError
from rayjobs.metric.clusters import IntArray, Vectors, kmeans
from rayjobs.metric.losses import Part, TripletLoss
from rayjobs.metric.miners import SemiHardMiner
from rayjobs.metric.relations import Reference
from rayjobs.metric.section import InterclassSection


def looks(features: Vectors, section: InterclassSection) -> IntArray:
    """Return (tiles,) the cluster of each tile: what it looks like, whatever its class.

    Args:
        features: (tiles, features) of the network before training.
        section: number of clusters, seed, and whether features are brought to mean 0 and deviation 1 first.

    Raises:
        TrainingError: a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise TrainingError("a feature is not finite, so there are no clusters across classes; see the weights of model.pretrained")
    values = features.astype(np.float64)
    if section.standardise:
        deviation = values.std(axis=0)
        values = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return kmeans(values.astype(np.float32), section.clusters, seed=section.seed).of_item


class InterclassTriplets:
    """Semi-hard triplets of clusters whose anchor is of another class than the two others, and what they cost.

    Those are dropped whose anchor is of the class of its positive, which the labels draw to it anyway, or of its negative, which they draw
    to it too.
    """

    def __init__(self, section: InterclassSection) -> None:
        """Take margin and distance from the section."""
        self._miner = SemiHardMiner(margin=section.margin, distance=section.distance)
        self._loss = TripletLoss(margin=section.margin, distance=section.distance)

    def part(
        self, embeddings: torch.Tensor, clusters: torch.Tensor, classes: torch.Tensor, *, others: torch.Tensor, reference: Reference
    ) -> Part:
        """Return what some anchors add to the loss of their batch.

        Args:
            embeddings: (n, dim) of the anchors.
            clusters: (n,) int64 of each.
            classes: (n,) int64 of each.
            others: (m,) int64 class of each tile that they are compared with.
            reference: these m tiles, whose groups are clusters.
        """
        anchor, positive, negative = self._miner(embeddings.detach(), clusters, reference=reference)
        across = (classes[anchor] != others[positive]) & (classes[anchor] != others[negative])
        chosen = anchor[across], positive[across], negative[across]
        return self._loss.part(embeddings, clusters, chosen, reference=reference)
