"""Chips as tensors. The only place where pixels become input of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from rayjobs.tiles.chips import Chip

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]


def stack(chips: Sequence[Chip], size: int, *, nearest: Sequence[int] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Return chips as tensors, those of another size resized, each by itself: what a chip becomes does not depend on its batch.

    Args:
        chips: at least one; equal numbers of bands.
        size: side in pixels that chips are brought to (bilinear, antialiased).
        nearest: bands that take the nearest pixel's value instead: between two codes of a map there is none.

    Returns:
        pixels (batch, bands, height, width) in the chips' dtype, valid (batch, height, width) bool, True means valid.
    """
    if all(chip.valid.shape == (size, size) for chip in chips):
        pixels = torch.from_numpy(_for_torch(np.stack([chip.pixels for chip in chips])))
        return pixels, torch.from_numpy(np.stack([chip.valid for chip in chips]))
    resized = [_resized(chip, size, list(nearest)) for chip in chips]
    return torch.stack([pixels for pixels, _ in resized]), torch.stack([valid for _, valid in resized])


def stack_arrays(images: Sequence[tuple[Array, Array]], size: int, *, nearest: Sequence[int] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images that are not tiles of a set; see `stack`.

    Args:
        images: pixels (bands, height, width) and valid (height, width) of each.
        size: as in `stack`, like what follows.
        nearest: bands that are maps.
    """
    return stack([Chip(tile_id="", pixels=pixels, valid=valid) for pixels, valid in images], size, nearest=nearest)


def _resized(chip: Chip, size: int, nearest: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.from_numpy(_for_torch(chip.pixels))
    if chip.valid.shape == (size, size):
        return source, torch.from_numpy(np.array(chip.valid))
    values = functional.interpolate(source[None].float(), (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    if nearest:
        values[nearest] = functional.interpolate(source[nearest][None].float(), (size, size), mode="nearest-exact")[0]
    valid = functional.interpolate(torch.from_numpy(chip.valid)[None, None].float(), (size, size), mode="nearest")[0, 0] > 0
    return (values if source.is_floating_point() else values.round()).to(source.dtype), valid


def _for_torch(values: Array) -> Array:
    """Widen the integer types that torch computes little with; floats and uint8 stay."""
    wider = {"uint16": np.int32, "uint32": np.int64, "int8": np.int16}.get(values.dtype.name)
    return np.array(values if wider is None else values.astype(wider))
