"""Magnet loss (Rippel et al., Metric learning with adaptive density discrimination, 2015), as published and as in the earlier system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from rayjobs.metric.clusters import kmeans
from rayjobs.metric.losses.protocol import Loss, refuse_reference
from rayjobs.metric.relations import Reference, Tuples

_IMPOSTORS = 5
"""Nearest clusters of other classes that the earlier system looks at."""
_FEWEST_IMPOSTORS = 3
_SOFT = 1e-8


class MagnetLoss(Loss):
    """Items are drawn to their own cluster and driven from clusters of other classes, in units of the variance about clusters.

    Means and variances are those of the batch, and gradients flow through them. Embeddings are taken at the length they have.
    It takes no tuples and no reference set. Batches of the published form are planned by `rayjobs.metric.clusters`.
    """

    takes_tuples = False

    def __init__(self, *, form: Literal["published", "spatial"] = "published", alpha: float = 0.5, batch_clusters: int = 12) -> None:
        """Take the form, the margin and, for `spatial`, into how many clusters a batch is divided."""
        super().__init__()
        self.form, self.alpha, self.batch_clusters = form, alpha, batch_clusters

    def forward(
        self,
        embeddings: torch.Tensor,
        groups: torch.Tensor,
        tuples: Tuples | None = None,  # noqa: ARG002  called like the others
        *,
        reference: Reference | None = None,
        clusters: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            embeddings: (n, dim).
            groups: (n,) int64 class of each item; for `spatial`, the places they were sampled about.
            tuples: not looked at.
            reference: must be None.
            clusters: (n,) int64 cluster of each item within its class. None: for `published`, each class is one cluster; for `spatial`, the
                batch is clustered afresh.

        Raises:
            ConfigError: there is a reference set.
        """
        refuse_reference(reference)
        if self.form == "published":
            return self.per_item(embeddings, groups, clusters).mean()
        return _spatial(embeddings, groups, _batch_clusters(embeddings, self.batch_clusters) if clusters is None else clusters, self.alpha)

    def per_item(self, embeddings: torch.Tensor, groups: torch.Tensor, clusters: torch.Tensor | None = None) -> torch.Tensor:
        """Return (n,) the published loss of each item; its mean is the loss, and it says which clusters to draw as seeds.

        max(0, |r - own|^2 / (2 s^2) + alpha + log sum over clusters of other classes of exp(-|r - mean|^2 / (2 s^2))), where
        s^2 = sum |r - own|^2 / (n - 1). An item of the only class in a batch costs 0.
        """
        cells = _cells(embeddings, groups, groups if clusters is None else clusters)
        squared = (embeddings[:, None] - cells.means).square().sum(2)
        own = squared.gather(1, cells.own[:, None]).squeeze(1)
        variance = _clear_of_0(own.sum() / max(1, len(own) - 1))
        impostors = cells.groups != groups[:, None]
        crowd = (-squared / (2 * variance)).masked_fill(~impostors, torch.finfo(squared.dtype).min).logsumexp(1)
        return (own / (2 * variance) + self.alpha + crowd).relu()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """What items of one group and one cluster make up."""

    own: torch.Tensor
    """(n,) cell of each item."""
    groups: torch.Tensor
    """(cells,) group of each cell."""
    members: torch.Tensor
    """(cells,) items in each cell."""
    means: torch.Tensor
    """(cells, dim) of the embeddings."""


def _cells(embeddings: torch.Tensor, groups: torch.Tensor, clusters: torch.Tensor) -> _Cells:
    found, own, members = torch.unique(torch.stack([groups, clusters], 1), dim=0, return_inverse=True, return_counts=True)
    membership = functional.one_hot(own, len(found)).to(embeddings.dtype)
    return _Cells(own=own, groups=found[:, 0], members=members, means=membership.T @ embeddings / members[:, None])


def _spatial(embeddings: torch.Tensor, groups: torch.Tensor, clusters: torch.Tensor, alpha: float) -> torch.Tensor:
    """The earlier system's form: a variance per dimension about the batch's mean, distances averaged over dimensions, few impostors.

    Per item and dimension max(0, -log((exp(-q(own) / 2v - alpha) + 1e-8) / (sum exp(-q / 2v) + 1e-8))), summed over the five nearest
    impostors, averaged over dimensions and items. Cells of one item count for nothing; items with fewer than three impostors are left out.
    """
    cells = _cells(embeddings, groups, clusters)
    variance = _clear_of_0((embeddings - embeddings.mean(0)).square().sum(0) / max(1, len(embeddings) - 1))
    apart = (embeddings[:, None] - cells.means).square().mean(2)
    impostors = (cells.groups != groups[:, None]) & (cells.members > 1)
    nearest = apart.masked_fill(~impostors, torch.inf).topk(min(_IMPOSTORS, apart.shape[1]), dim=1, largest=False)
    there = impostors.gather(1, nearest.indices)
    distances = apart.gather(1, nearest.indices)
    inter = ((-distances[:, :, None] / (2 * variance)).exp() * there[:, :, None]).sum(1)
    intra = (-apart.gather(1, cells.own[:, None]) / (2 * variance) - alpha).exp()
    losses = ((inter + _SOFT).log() - (intra + _SOFT).log()).relu().mean(1)
    counted = (cells.members[cells.own] > 1) & (impostors.sum(1) >= _FEWEST_IMPOSTORS)
    return (losses * counted).sum() / counted.sum().clamp_min(1)


def _batch_clusters(embeddings: torch.Tensor, count: int) -> torch.Tensor:
    """Return (n,) int64 clusters of a batch, whatever the order of its items."""
    # Where an embedding is no number, neither is the loss: the trainer reports that, not FAISS.
    vectors = embeddings.detach().nan_to_num().cpu().numpy()
    order = np.lexsort(vectors.T)
    clusters = np.empty(len(vectors), np.int64)
    clusters[order] = kmeans(vectors[order], count, seed=0).of_item
    return torch.from_numpy(clusters).to(embeddings.device)


def _clear_of_0(variance: torch.Tensor) -> torch.Tensor:
    return variance.clamp_min(torch.finfo(variance.dtype).eps)
