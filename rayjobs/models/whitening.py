"""The projection that a pretrained encoder should begin with: features centred, and their strongest directions damped.

Pooled activations of a network are positive and share a large mean, which makes all cosines alike, and a few directions hold most of their
variance. Both are properties of the imagery as a whole and need no labels (Jegou & Chum, Negative evidences and co-occurrences in image
retrieval: the benefit of PCA and whitening, 2012).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_MANY = 4096
"""Features above which their covariance is not worth its room: of 20,000 it takes 3 GB."""
_ROUNDS = 4
"""Of the randomised search; each takes it nearer to the directions of greatest variance."""
_MORE = 16
"""Directions that are looked for beyond those wanted, since the last ones are found badly."""


class Affine(NamedTuple):
    """A linear map and its offset."""

    weight: torch.Tensor
    """(dim, features)."""
    bias: torch.Tensor
    """(dim,)."""


def whitening(features: torch.Tensor, dim: int, shrinkage: float) -> Affine:
    """Return the shrunken whitening of some features, computed in float64; that of very many features by a randomised search.

    A direction of variance v is scaled by sqrt(s / (v / v_max + s)): much variance is damped, no variance left as it is, and with a large
    shrinkage s the map only centres. With as many numbers as features, these keep their axes (the symmetric, or ZCA, whitening); with
    fewer, the directions of greatest variance are kept.

    Args:
        features: (images, features).
        dim: numbers wanted, at most as many as features.
        shrinkage: s, above 0.
    """
    if features.shape[1] > _MANY and dim < min(features.shape):
        return _of_many(features, dim, shrinkage)
    values = features.double()
    mean = values.mean(dim=0)
    variance, directions = torch.linalg.eigh(torch.cov(values.T, correction=0))
    greatest = variance[-1].clamp(min=torch.finfo(variance.dtype).tiny)  # 0 where all features are alike
    scale = torch.sqrt(shrinkage / (variance.clamp(min=0) / greatest + shrinkage))
    scaled = scale[:, None] * directions.T
    weight = directions @ scaled if dim == len(mean) else scaled.flip(0)[:dim]
    return Affine(weight.float(), -(weight @ mean).float())


def _of_many(features: torch.Tensor, dim: int, shrinkage: float) -> Affine:
    """Find the directions of greatest variance alone (Halko et al., Finding structure with randomness, 2011); the same ones each time."""
    mean = features.mean(dim=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, singular, directions = torch.svd_lowrank(features - mean, q=min(dim + _MORE, *features.shape), niter=_ROUNDS)
    variance, directions = singular[:dim].square() / len(features), directions[:, :dim]
    greatest = variance[0].clamp(min=torch.finfo(variance.dtype).tiny)
    weight = torch.sqrt(shrinkage / (variance / greatest + shrinkage))[:, None] * directions.T
    return Affine(weight, -(weight @ mean))
