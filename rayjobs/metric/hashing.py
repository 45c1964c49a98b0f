"""What makes numbers between 0 and 1 good to round to bits: pushed from one half, and half of them on (Roy et al., MHCLN, 2019)."""

from __future__ import annotations

import torch

from rayjobs.metric.section import HashingSection


def push(activations: torch.Tensor) -> torch.Tensor:
    """Return the mean over tiles and bits of (h - 0.5)^2, which is to be great: rounding then changes little.

    Args:
        activations: (n, bits) h, from 0 to 1.
    """
    return (activations - 0.5).square().mean()


def balance(activations: torch.Tensor) -> torch.Tensor:
    """Return the mean over tiles of (mean over bits of h - 0.5)^2, which is to be small: half of a tile's bits are then on."""
    return (activations.mean(dim=1) - 0.5).square().mean()


def hashing_terms(activations: torch.Tensor, section: HashingSection) -> torch.Tensor:
    """Return -push + balance, weighed as the section says; with `scaling: mirs` the push is divided by the number of bits once more."""
    weight = section.push / (activations.shape[1] if section.scaling == "mirs" else 1)
    return section.balance * balance(activations) - weight * push(activations)
