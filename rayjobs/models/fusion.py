"""Early fusion: imagery and maps of the same ground (labels, elevation) joined by a 1x1 convolution in front of the backbone.

After Khokhlova et al., Cross-year multi-modal image retrieval using Siamese networks (ICIP 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from rayjobs.models.spec import ModelSpec


class Fusion(nn.Module):
    """As many channels as there are bands of imagery, each at first half that band and half the mean of the maps.

    A map of codes becomes one channel for each code, 1 where it holds and 0 elsewhere; at first the codes count as evenly spaced greys of
    mean 0 and deviation 1. What is not known, be it a modality, a pixel or a code, is 0 in all its channels.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Make the convolution for an encoder that has maps."""
        super().__init__()
        self.dropout = 0.0
        """Probability with which an image in training lacks its maps, and likewise its imagery; at most one half."""
        self._spec = spec
        self._codes = [((), band) for band in spec.imagery] + list(zip(spec.codes, spec.maps, strict=True))
        width = len(spec.imagery)
        self.mix = nn.Conv2d(sum(max(1, len(codes)) for codes, _ in self._codes), width, kernel_size=1)
        with torch.no_grad():
            self.mix.weight.copy_(_half_and_half(width, [len(codes) for codes in spec.codes])[:, :, None, None])
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, images: torch.Tensor, pixels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Join the modalities that are there.

        Args:
            images: (batch, bands, height, width) float32, standardised; invalid pixels 0. All bands, or those of one modality.
            pixels: (batch, bands, height, width), raw values of the same bands.
            valid: (batch, height, width) bool, True means valid; None where all pixels are.

        Returns:
            (batch, bands of imagery, height, width) float32.
        """
        given = self._spec.modality_of(images.shape[1])
        found = []
        for codes, band in self._codes:
            if band not in given:
                found.append(images.new_zeros(len(images), max(1, len(codes)), *images.shape[2:]))
            elif codes:
                found.append(_one_hot(pixels[:, given.index(band)], valid, codes).to(images.dtype))
            else:
                found.append(images[:, [given.index(band)]])
        fused: torch.Tensor = self.mix(self._some(torch.cat(found, dim=1)))
        return fused.float()  # what follows resizes, which torch cannot in reduced precision

    @torch.no_grad()
    def look_past(self, modality: Literal["imagery", "maps"]) -> None:
        """Take no more notice of a modality, as where it is absent."""
        self.mix.weight[:, slice(self.mix.out_channels) if modality == "imagery" else slice(self.mix.out_channels, None)] = 0

    @torch.no_grad()
    def leave_imagery(self) -> None:
        """Give the backbone the bands of imagery as they are, as though nothing were joined with them."""
        self.mix.weight.zero_()
        self.mix.weight[:, : self.mix.out_channels, 0, 0] = torch.eye(self.mix.out_channels)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]  # it has one

    def _some(self, channels: torch.Tensor) -> torch.Tensor:
        """Return channels (batch, channels, height, width) of which, in training, images lack one modality or the other at random."""
        if not (self.training and self.dropout):
            return channels
        lot, place = torch.rand(len(channels), 1, device=channels.device), torch.arange(channels.shape[1], device=channels.device)
        of_map = place >= self.mix.out_channels
        lost = torch.where(of_map, lot < self.dropout, lot > 1 - self.dropout)
        return channels.masked_fill(lost[:, :, None, None], 0.0)


def _one_hot(values: torch.Tensor, valid: torch.Tensor | None, codes: tuple[float, ...]) -> torch.Tensor:
    """Return (batch, codes, height, width) bool: where a map's valid values (batch, height, width) are each of its codes."""
    held = values[:, None].float() == torch.tensor(codes, device=values.device)[:, None, None]
    return held if valid is None else held & valid[:, None]


def _half_and_half(width: int, codes: list[int]) -> torch.Tensor:
    """Return (width, channels): half of each band of imagery and half the mean of the maps, whose numbers of codes are given."""
    greys = [torch.ones(1) if not count else _greys(count) for count in codes]
    return torch.cat([torch.eye(width) / 2, (torch.cat(greys) / (2 * len(codes))).expand(width, -1)], dim=1)


def _greys(count: int) -> torch.Tensor:
    """Return evenly spaced numbers of mean 0 and deviation 1; a single one is 1."""
    spaced = torch.linspace(-1, 1, count)
    return spaced / spaced.std(correction=0) if count > 1 else torch.ones(1)
