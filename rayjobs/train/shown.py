"""What networks are shown of tiles: their chips, or the features that a frozen backbone made of them; steps and mining read either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from rayjobs.models.encoder import Encoder, Features
from rayjobs.train.augment import augment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rayjobs.models.domains import Domain
    from rayjobs.models.spec import ModelSpec
    from rayjobs.train.augment import Draws
    from rayjobs.train.section import AugmentSection

IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]
Inputs = tuple[torch.Tensor, ...]
"""What a network is called with: (batch, ...) each."""


class Shown(Protocol):
    """What networks are shown of some tiles, by index among them, sorted by tile id."""

    def __len__(self) -> int:
        """Return how many tiles there are."""

    def read(self, rows: IntArray, device: torch.device, draws: Draws | None = None) -> Inputs:
        """Return what is shown of the tiles `rows`, on the device: as they are, or where `draws` are given of versions that they choose."""

    def augmented(self, inputs: Inputs, section: AugmentSection, spec: ModelSpec, draws: Draws) -> Inputs:
        """Return what was read for training with the random changes of `train.augment`, as far as they are made now."""

    def network_of(self, encoder: torch.nn.Module) -> torch.nn.Module:
        """Return the part of an encoder that maps what is read to embeddings."""

    def features_of(self, encoder: Encoder) -> torch.nn.Module:
        """Return the part of an encoder that maps what is read to the backbone's features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipCache:
    """Chips: what whole encoders are shown. See `Shown`."""

    pixels: np.ndarray[Any, Any]
    """(tiles, bands, height, width), mapped."""
    valid: np.ndarray[Any, np.dtype[np.bool_]]
    """(tiles, height, width), mapped; True means valid."""

    def __len__(self) -> int:
        """Return how many tiles there are."""
        return len(self.pixels)

    def read(self, rows: IntArray, device: torch.device, draws: Draws | None = None) -> Inputs:  # noqa: ARG002  there is one version
        """Return pixels (batch, bands, height, width) and valid (batch, height, width)."""
        return _on_device((self.pixels[rows], self.valid[rows]), device)

    def augmented(self, inputs: Inputs, section: AugmentSection, spec: ModelSpec, draws: Draws) -> Inputs:
        """Change each image; see `rayjobs.train.augment`."""
        pixels, valid = inputs
        maps = [spec.bands.index(band) for band in spec.maps]
        colours = [spec.bands.index(spec.imagery[place]) for place in section.colour_bands(spec.imagery)]
        return augment(pixels, valid, section, spec.mean, spec.std, draws, still=maps, colours=colours)

    def network_of(self, encoder: torch.nn.Module) -> torch.nn.Module:
        """Return the whole encoder."""
        return encoder

    def features_of(self, encoder: Encoder) -> torch.nn.Module:
        """Return the encoder without its projection."""
        return Features(encoder)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """Features of a frozen backbone: what its heads are shown. See `Shown`."""

    values: FloatArray
    """(tiles, versions, features), mapped. Version 0 is of the tile as it is, the others are of the tile as augmented."""

    def __len__(self) -> int:
        """Return how many tiles there are."""
        return len(self.values)

    def read(self, rows: IntArray, device: torch.device, draws: Draws | None = None) -> Inputs:
        """Return features (batch, features): of the tiles as they are, or of a version that is drawn for each place of the batch."""
        versions = 0 if draws is None else draws.integers(self.values.shape[1]).numpy()
        return _on_device((self.values[rows, versions],), device)

    def augmented(self, inputs: Inputs, section: AugmentSection, spec: ModelSpec, draws: Draws) -> Inputs:  # noqa: ARG002  as with chips
        """Return them as they are: tiles were changed before their features were computed."""
        return inputs

    def network_of(self, encoder: nn.Module) -> nn.Module:
        """Return the encoder without its backbone."""
        return Projected(encoder)  # type: ignore[arg-type]  # what has a frozen backbone is an encoder

    def features_of(self, encoder: Encoder) -> nn.Module:  # noqa: ARG002  as with chips
        """Return what leaves them as they are."""
        return nn.Identity()


class Projected(nn.Module):
    """An encoder from the backbone's features on: what is trained where the backbone is frozen. Shares the encoder's weights."""

    def __init__(self, encoder: Encoder) -> None:
        """Hold the encoder's parts but its backbone, of which DDP need not know."""
        super().__init__()
        self.parts = nn.ModuleDict({name: part for name, part in encoder.named_children() if name != "backbone"})
        self.training, self._set_mode, self._projected = encoder.training, encoder.train, encoder.projected

    def forward(self, features: torch.Tensor, *, domain: Domain = "both") -> torch.Tensor:
        """Return (batch, dim); see `Encoder.projected`."""
        return self._projected(features, domain=domain)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  torch's own signature
        """Set the mode of the encoder, too."""
        self._set_mode(mode)
        return super().train(mode)


def _on_device(arrays: Iterable[np.ndarray[Any, Any]], device: torch.device) -> Inputs:
    """Return arrays as tensors on a device."""
    tensors = map(torch.from_numpy, arrays)
    if device.type == "cuda":  # only from pinned memory does a copy not make the step wait
        return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
    return tuple(tensor.to(device) for tensor in tensors)
