"""Distances by name, between embeddings brought to length 1. One sign convention: smaller is nearer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_metric_learning.distances import BaseDistance, LpDistance

from rayjobs.metric.section import Distance

__all__ = ["DISTANCES", "CosineDistance", "EuclideanDistance", "SquaredDistance"]

EuclideanDistance = LpDistance
"""||u - v||: from 0 to 2."""


class SquaredDistance(LpDistance):  # type: ignore[misc]  # the library has no types
    """||u - v||^2: from 0 to 4."""

    def __init__(self) -> None:
        """Take the square of the library's distance."""
        super().__init__(power=2)


class CosineDistance(BaseDistance):  # type: ignore[misc]  # the library has no types
    """1 - cos(u, v): from 0 to 2, half the squared distance. The library has the similarity alone, whose sign is the other."""

    def compute_mat(self, query_emb: torch.Tensor, ref_emb: torch.Tensor) -> torch.Tensor:
        """Return (n, m) of (n, dim) and (m, dim) of length 1."""
        return 1 - query_emb @ ref_emb.T


DISTANCES: dict[Distance, Callable[[], BaseDistance]] = {
    "euclidean": EuclideanDistance,
    "squared": SquaredDistance,
    "cosine": CosineDistance,
}
"""Each makes a module from (n, dim) and (m, dim), of any lengths, to (n, m)."""
