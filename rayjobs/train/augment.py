"""Random changes of a batch that do not change what it shows: other positions, other light, a missing band.

Draws come from a generator that may stay on the CPU, one set per image; pixels are changed where they lie. So a seed gives the same changes
on every device, and a batch that is shared among workers the same as on one. All geometry beyond flips and right angles is one bilinear
resampling, since each further one would blur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from rayjobs.train.section import AugmentSection

PerBand = torch.Tensor | Sequence[float]
"""(bands,) in the pixels' unit."""

_COLOURS = 3
_LEAST_WEIGHT = 0.5
"""Share of a resampled pixel that must come from valid ones for it to be valid: as the nearest pixel would have it."""
_MOVED_AS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Types of equal width for those that torch can hold but hardly move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Random numbers for some images of a batch: drawn for all of it, so that they do not depend on how it is shared out."""

    generator: torch.Generator
    """On any device."""
    batch: int
    """Images of the whole batch."""
    share: slice
    """Those for which numbers are wanted."""

    def uniform(self, *shape: int) -> torch.Tensor:
        """Draw (images, *shape) from 0 to 1."""
        return torch.rand((self.batch, *shape), generator=self.generator, device=self.generator.device)[self.share]

    def symmetric(self, *shape: int) -> torch.Tensor:
        """Draw (images, *shape) from -1 to 1."""
        return 2 * self.uniform(*shape) - 1

    def normal(self, *shape: int) -> torch.Tensor:
        """Draw (images, *shape) of mean 0 and deviation 1, each image's with a seed of its own: those of other ranks are not made."""
        seeds = torch.randint(2**31, (self.batch,), generator=self.generator, device=self.generator.device)[self.share].tolist()
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def integers(self, end: int) -> torch.Tensor:
        """Draw (images,) from 0 to below `end`."""
        return torch.randint(end, (self.batch,), generator=self.generator, device=self.generator.device)[self.share]


def augment(
    pixels: torch.Tensor,
    valid: torch.Tensor,
    section: AugmentSection,
    mean: PerBand,
    std: PerBand,
    draws: Draws,
    *,
    still: Sequence[int] = (),
    colours: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change each image of a batch at random, in the ways that the section switches on.

    Args:
        pixels: (images, bands, height, width), raw values of any numeric dtype; left as they are.
        valid: (images, height, width) bool, True means valid.
        section: `train.augment`.
        mean: (bands,) about which contrast changes, and the value of a band that is dropped.
        std: (bands,) the unit of brightness, jitter and noise.
        draws: of as many images.
        still: bands whose values stay what they are (maps), though they move with the others: each pixel takes the nearest one's.
        colours: the red, the green and the blue band; needed by `saturation`, `hue_degrees` and `greyscale` alone.

    Returns:
        pixels and valid of the same shapes. Pixels keep their dtype under flips and right-angle rotations, and become float32 with any
        other change. Invalid pixels hold arbitrary values.
    """
    bands, at = pixels.shape[1], list(still)
    if section.symmetries:
        square = pixels.shape[-1] == pixels.shape[-2]
        pixels, valid = turned(pixels, valid, draws.integers(8 if square else 4))
    if section.rotate_degrees or section.crop_scale:
        degrees = section.rotate_degrees * draws.symmetric()
        least, greatest = section.crop_scale or (1.0, 1.0)
        scale = least + (greatest - least) * draws.uniform()
        pixels, valid = resampled(pixels, valid, degrees, scale, draws.symmetric(2), nearest=at)
    maps = pixels[:, at].float() if at else pixels
    if section.recolours:
        hue = section.hue_degrees * draws.symmetric()
        saturation = (1 + section.saturation * draws.symmetric()).clamp_min(0)
        pixels = tinted(pixels, hue, torch.where(draws.uniform() < section.greyscale, 0.0, saturation), colours)
    if section.brightness or section.jitter or section.band_dropout or section.contrast:
        shift = section.brightness * draws.symmetric(1) + section.jitter * draws.symmetric(bands)
        gain = 1 + section.jitter * draws.symmetric(bands)
        if section.contrast:
            gain = gain * (1 + section.contrast * draws.symmetric(1)).clamp_min(0)
        pixels = recoloured(pixels, shift, gain, _dropped(draws.uniform(bands), section.band_dropout), mean, std)
    if section.noise:
        deviation = section.noise * draws.uniform(1, 1, 1).to(pixels.device)
        unit = torch.as_tensor(std, dtype=torch.float32, device=pixels.device)[:, None, None]
        pixels = pixels.to(torch.float32) + deviation * unit * draws.normal(*pixels.shape[1:]).to(pixels.device)
    if at and pixels.is_floating_point():
        pixels[:, at] = maps
    return pixels, valid


def _dropped(drawn: torch.Tensor, share: float) -> torch.Tensor:
    """Return which bands are dropped; the one with the greatest draw stays, so that an image never loses all."""
    return (drawn < share) & (drawn < drawn.amax(dim=1, keepdim=True))


def turned(pixels: torch.Tensor, valid: torch.Tensor, symmetries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip and turn images by right angles; no value changes.

    Args:
        pixels: (batch, bands, height, width) of any dtype.
        valid: (batch, height, width).
        symmetries: (batch,) int: 1 mirrors left and right, 2 top and bottom, 4 then exchanges rows and columns (square images only),
            and sums of these do each.
    """
    moved = pixels.view(_MOVED_AS.get(pixels.dtype, pixels.dtype)).clone()
    valid = valid.clone()
    for symmetry in range(1, 8):
        chosen = (symmetries == symmetry).nonzero().flatten().to(pixels.device)
        if len(chosen):
            moved[chosen] = _turned(moved[chosen], symmetry)
            valid[chosen] = _turned(valid[chosen], symmetry)
    return moved.view(pixels.dtype), valid


def _turned(images: torch.Tensor, symmetry: int) -> torch.Tensor:
    flipped = images.flip([axis for bit, axis in ((1, -1), (2, -2)) if symmetry & bit])
    return flipped.transpose(-1, -2) if symmetry & 4 else flipped


def resampled(
    pixels: torch.Tensor,
    valid: torch.Tensor,
    degrees: torch.Tensor,
    scale: torch.Tensor,
    place: torch.Tensor,
    *,
    nearest: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate images about their centres, then cut a window of the images' own proportions and bring it to their size, in one resampling.

    Interpolation is bilinear over the valid pixels alone: what is invalid never leaks into its neighbours, whatever it holds.

    Args:
        pixels: (batch, bands, height, width).
        valid: (batch, height, width).
        degrees: (batch,) counter-clockwise.
        scale: (batch,) share of the image's area that the window has, above 0 and at most 1.
        place: (batch, 2) from -1 to 1: where the window lies between left and right, and between top and bottom.
        nearest: bands that take the nearest pixel's value instead.

    Returns:
        pixels float32, and valid: False too for what lies outside the image.
    """
    theta = _window_in_image(degrees, scale, place, height_by_width=pixels.shape[-2] / pixels.shape[-1]).to(pixels.device)
    grid = functional.affine_grid(theta, [len(pixels), 1, *pixels.shape[-2:]], align_corners=False)
    layers = torch.cat([torch.where(valid[:, None], pixels.to(torch.float32), 0.0), valid[:, None].to(torch.float32)], dim=1)
    found = functional.grid_sample(layers, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    values, weight = found[:, :-1], found[:, -1]
    still = weight >= _LEAST_WEIGHT
    values = values / torch.where(still, weight, 1.0)[:, None]
    if nearest:
        at = list(nearest)
        values[:, at] = functional.grid_sample(pixels[:, at].to(torch.float32), grid, mode="nearest", align_corners=False)
    return values, still


def _window_in_image(degrees: torch.Tensor, scale: torch.Tensor, place: torch.Tensor, *, height_by_width: float) -> torch.Tensor:
    """Return (batch, 2, 3) float32: from window to image, both measured from -1 to 1, x before y."""
    angle, side = degrees.double() * (math.pi / 180), scale.double().sqrt()
    cos, sin = torch.cos(angle), torch.sin(angle)
    # both axes run from -1 to 1, so that in an oblong image a rotation must be told how long they are
    rotation = torch.stack([cos, -sin * height_by_width, sin / height_by_width, cos], dim=-1).view(-1, 2, 2)
    centre = rotation @ (place.double() * (1 - side)[:, None])[..., None]
    return torch.cat([rotation * side[:, None, None], centre], dim=-1).float()


def tinted(pixels: torch.Tensor, degrees: torch.Tensor, saturation: torch.Tensor, colours: Sequence[int]) -> torch.Tensor:
    """Turn the colours of images about grey, and move them towards grey or away from it; the mean of the three bands stays.

    Args:
        pixels: (batch, bands, height, width).
        degrees: (batch,) of the turn; 120 makes red green, green blue and blue red.
        saturation: (batch,) by which the distance from grey is multiplied; 0 makes grey.
        colours: the red, the green and the blue band.

    Returns:
        float32.
    """
    angle, eye = degrees * (math.pi / 180), torch.eye(_COLOURS)
    grey = torch.full((_COLOURS, _COLOURS), 1 / _COLOURS)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(_COLOURS)
    turn = torch.cos(angle)[:, None, None] * (eye - grey) + torch.sin(angle)[:, None, None] * across  # Rodrigues, about (1, 1, 1)
    matrix = (grey + saturation[:, None, None] * turn).to(pixels.device)
    changed = pixels.to(torch.float32, copy=True)
    changed[:, list(colours)] = torch.einsum("nij,njhw->nihw", matrix, changed[:, list(colours)])
    return changed


def recoloured(
    pixels: torch.Tensor, shift: torch.Tensor, gain: torch.Tensor, dropped: torch.Tensor, mean: PerBand, std: PerBand
) -> torch.Tensor:
    """Change the light of each band of each image, and put the band's mean in place of those that are dropped.

    Args:
        pixels: (batch, bands, height, width).
        shift: (batch, bands) in deviations of the band.
        gain: (batch, bands) of the contrast about the band's mean.
        dropped: (batch, bands) bool.
        mean: (bands,) in the pixels' unit.
        std: (bands,) likewise.

    Returns:
        float32.
    """
    shift, gain, dropped = (numbers.to(pixels.device) for numbers in (shift, gain, dropped))
    centre, unit = (torch.as_tensor(numbers, dtype=torch.float32, device=pixels.device) for numbers in (mean, std))
    gain = torch.where(dropped, 0.0, gain)
    offset = centre * (1 - gain) + torch.where(dropped, 0.0, shift) * unit
    return torch.addcmul(offset[..., None, None], pixels.to(torch.float32), gain[..., None, None])
