"""Domain whitening: features whitened group by group, with statistics of their own for the domain trained on and the one embedded."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Domain = Literal["both", "source", "target"]
"""Whose statistics a training batch is whitened with, and moves; `both` where there is no other domain."""

_SHRINKAGE, _MOMENTUM = 1e-3, 0.1


class DomainWhitening(nn.Module):
    """Whitening of groups of features by the Cholesky factor of their covariance, for two domains (Roy et al., 2019).

    Of a group of g features with covariance S over the batch, S' = (1 - eps) S + eps I with eps = 0.001, and L L^T = S', the whitened
    features are L^-1 (x - mean). Nothing is learned by gradient. In training mode the statistics are the batch's, and running ones of its
    domain move by a tenth towards them; in evaluation mode they are the running ones of the target, which stay as they are. On several
    ranks each takes the statistics of its own share, as batch norms do, and `agree_on_buffers` of training makes the running ones equal.
    """

    means: torch.Tensor
    """(2, features) running means of source and target."""
    covariances: torch.Tensor
    """(2, groups, group size, group size) running covariances of source and target."""

    def __init__(self, features: int, *, group_size: int) -> None:
        """Take the number of features, a multiple of the group size."""
        super().__init__()
        self.group_size = group_size
        self.register_buffer("means", torch.zeros(2, features))
        self.register_buffer("covariances", torch.eye(group_size).repeat(2, features // group_size, 1, 1))

    @property
    def is_sound(self) -> bool:
        """Whether the running covariances are such, so that their factors exist: those of a file may be anything."""
        _, faults = torch.linalg.cholesky_ex(self._shrunken(self.covariances.double()))
        return not bool(faults.any())

    def forward(self, features: torch.Tensor, domain: Domain = "both") -> torch.Tensor:
        """Return whitened features (batch, features) float32; in training mode with gradient through the statistics.

        Args:
            features: (batch, features) of any dtype.
            domain: of the batch, in training mode: whose running statistics move.
        """
        exact = features.double()  # float32 loses a factor of covariances that are nearly singular
        if self.training:
            mean, covariance = self._statistics(exact)
            self._follow(mean, covariance, domain)
        else:
            mean, covariance = self.means[1].double(), self.covariances[1].double()
        return self._whitened(exact - mean, covariance).float()

    def _grouped(self, features: torch.Tensor) -> torch.Tensor:
        """Return (groups, group size, batch)."""
        return features.view(len(features), -1, self.group_size).permute(1, 2, 0)

    def _statistics(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = features.mean(dim=0)
        apart = self._grouped(features - mean)
        return mean, apart @ apart.mT / len(features)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, covariance: torch.Tensor, domain: Domain) -> None:
        moved = {"both": slice(0, 2), "source": slice(0, 1), "target": slice(1, 2)}[domain]
        self.means[moved] += _MOMENTUM * (mean.to(self.means.dtype) - self.means[moved])
        self.covariances[moved] += _MOMENTUM * (covariance.to(self.covariances.dtype) - self.covariances[moved])

    def _shrunken(self, covariance: torch.Tensor) -> torch.Tensor:
        return (1 - _SHRINKAGE) * covariance + _SHRINKAGE * torch.eye(self.group_size, dtype=covariance.dtype, device=covariance.device)

    def _whitened(self, centred: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        factor = torch.linalg.cholesky(self._shrunken(covariance))
        whitened: torch.Tensor = torch.linalg.solve_triangular(factor, self._grouped(centred), upper=False)
        return whitened.permute(2, 0, 1).reshape(centred.shape)
