"""Random changes of a batch that do not change what it shows."""

from __future__ import annotations

import torch


def augmented(pixels: torch.Tensor, valid: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn and flip each chip at random: one of the eight symmetries of the square, four of a rectangle.

    Args:
        pixels: (batch, bands, height, width).
        valid: (batch, height, width).
        generator: on the CPU.
    """
    symmetries = torch.randint(8 if pixels.shape[-1] == pixels.shape[-2] else 4, (len(pixels),), generator=generator)
    pixels, valid = pixels.clone(), valid.clone()
    for symmetry in range(1, 8):
        chosen = (symmetries == symmetry).nonzero().flatten().to(pixels.device)
        if len(chosen):
            pixels[chosen] = _turned(pixels[chosen], symmetry)
            valid[chosen] = _turned(valid[chosen], symmetry)
    return pixels, valid


def _turned(images: torch.Tensor, symmetry: int) -> torch.Tensor:
    flips = [axis for bit, axis in ((1, -1), (2, -2)) if symmetry & bit]
    flipped = images.flip(flips)
    return flipped.transpose(-1, -2) if symmetry & 4 else flipped
