"""Encoders: networks, and the image statistics they must beat. Raw pixels in, embeddings out; nothing here reads or writes files."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]  # timm marks no exports
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from rayjobs.errors import CheckpointError, ConfigError
from rayjobs.models import backbones
from rayjobs.models.domains import Domain, DomainWhitening
from rayjobs.models.fusion import Fusion
from rayjobs.models.pretrained import load_pretrained
from rayjobs.models.spec import ModelSpec, check_bands, standardised, statistics_spec
from rayjobs.models.whitening import whitening

__all__ = [
    "Encoder",
    "Features",
    "ImageStatistics",
    "ModelSpec",
    "bare",
    "build",
    "check_bands",
    "codes",
    "parameter_count",
    "parameter_groups",
    "standardised",
    "statistics_spec",
]

_HASH_SLOPE, _HASH_BIAS = 0.2, 0.01
"""Of the hash net: slope of its leaky ReLUs below 0, and what its biases begin with."""


class _Standardiser(nn.Module):
    """Raw pixels to numbers of mean 0 and deviation 1; invalid pixels to 0, which is the band's mean."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self._spec = spec
        # Not in the state: `model.json` holds them.
        self.register_buffer("mean", torch.tensor(spec.mean, device="cpu").view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, device="cpu").view(-1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        given = self._spec.modality_of(pixels.shape[-3] if pixels.ndim > 2 else 0)  # noqa: PLR2004  bands, height, width
        if pixels.ndim != 4:  # noqa: PLR2004  a batch of them
            raise CheckpointError(f"the encoder takes pixels (batch, bands, height, width), not {tuple(pixels.shape)}")
        mean, std = self.mean, self.std
        if len(given) < len(self._spec.bands):
            of_given = [self._spec.bands.index(band) for band in given]
            mean, std = mean[of_given], std[of_given]
        values = (pixels.to(torch.float32) - mean) / std
        return values if valid is None else torch.where(valid[:, None], values, 0.0)


class Encoder(nn.Module):
    """A backbone with a projection; embeddings have length 1.

    One that hashes gives in training mode the numbers z (batch, bits) before the sigmoid, and in evaluation mode codes: see `codes`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Make the network, randomly initialised; see `build`."""
        super().__init__()
        self.spec = spec
        self.standardise = _Standardiser(spec)
        self.fusion = Fusion(spec) if spec.maps else None
        self.backbone = backbones.create(spec.backbone, bands=len(spec.imagery), input_size=spec.input_size)
        features = backbones.features_of(self.backbone) * spec.pool_cells**2
        if spec.projection == "none" and features != spec.dim:
            raise CheckpointError(
                f"{spec.backbone} gives {features} features, and without a projection dim cannot be {spec.dim}; set it to {features}"
            )
        self.domain_whitening: DomainWhitening | None = None
        if spec.domain_whitening is not None:
            if features % spec.domain_whitening:
                raise CheckpointError(f"{spec.backbone} gives {features} features, which are no groups of {spec.domain_whitening}")
            self.domain_whitening = DomainWhitening(features, group_size=spec.domain_whitening)
        self.projection = _PROJECTIONS[spec.projection](features, spec.dim)
        self._keeps_statistics = False

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None, *, domain: Domain = "both") -> torch.Tensor:
        """Embed images.

        Args:
            pixels: (batch, bands, height, width), raw values of any numeric dtype; all bands, or those of one of `ModelSpec.modalities`.
            valid: (batch, height, width) bool, True means valid; None where all pixels are. Invalid pixels count as their band's mean.
            domain: of which these images are, for an encoder that whitens by domain, in training mode; see `DomainWhitening`.

        Returns:
            (batch, dim) float32 of length 1; of an encoder that hashes, in training mode, of any length.

        Raises:
            CheckpointError: another number of bands than the encoder takes.
        """
        return self.projected(self.features(pixels, valid), domain=domain)

    def activations(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return what codes are made from, h = sigmoid(z) brought to length 1: (batch, bits) float32; see `forward`."""
        return functional.normalize(self._projection_of(self.features(pixels, valid)).sigmoid(), dim=1)

    def features(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return the backbone's pooled features (batch, features), before the projection; see `forward`.

        With `pool_cells` they are the averages of cells of its last feature map, features first, then rows and columns of cells.
        """
        images, cells = self._images(pixels, valid), self.spec.pool_cells
        found: torch.Tensor = self.backbone(images) if cells == 1 else _in_cells(backbones.feature_map(self.backbone, images), cells)
        return found

    def projected(self, features: torch.Tensor, *, domain: Domain = "both") -> torch.Tensor:
        """Return the embeddings (batch, dim) of the backbone's pooled features; see `forward`."""
        found = self._projection_of(features, domain)
        if not self.spec.hashes:
            return functional.normalize(found, dim=1)
        if self.training:
            return found
        return codes(found) if self.spec.projection == "hash" else functional.normalize(found.sigmoid(), dim=1)

    def _projection_of(self, features: torch.Tensor, domain: Domain = "both") -> torch.Tensor:
        whitened = features if self.domain_whitening is None else self.domain_whitening(features, domain)
        projected: torch.Tensor = self.projection(whitened)
        return projected.float()

    @torch.no_grad()
    def whiten(self, features: torch.Tensor, shrinkage: float) -> None:
        """Put a whitening of the backbone's features (images, features) over the training images in place of the linear projection."""
        found = whitening(features, self.spec.dim, shrinkage)
        self.projection.load_state_dict({"weight": found.weight, "bias": found.bias})

    def feature_map(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return the backbone's last feature map (batch, features, h, w) float32, before pooling and projection.

        Its cells divide the image evenly. Args as in `forward`.

        Raises:
            ConfigError: the backbone has none.
        """
        found: torch.Tensor = backbones.feature_map(self.backbone, self._images(pixels, valid))
        return found.float()

    def _images(self, pixels: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return what the backbone sees: standardised pixels at its input size."""
        images: torch.Tensor = self.standardise(pixels, valid)
        if self.fusion is not None:
            images = self.fusion(images, pixels, valid)
        side = self.spec.input_size
        if images.shape[-2:] == (side, side):
            return images
        return functional.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)

    def freeze(self, stages: int | Literal["all"], *, batch_norms: bool = False) -> None:
        """Keep leading stages of the backbone as they are: they get no gradient, and their batch-norm statistics do not move.

        Args:
            stages: how many, as `rayjobs.models.backbones.stages` counts them; 0 none, -1 or `all` the whole backbone.
            batch_norms: whether the statistics of all others stay, too, while their weights learn.

        Raises:
            ConfigError: more than the backbone has, or timm does not tell its stages.
        """
        kept = self._leading(stages)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name not in kept)
        self._keeps_statistics = batch_norms
        self.train(self.training)

    def checkpoint_activations(self) -> None:
        """Keep few of the backbone's activations, and compute the others again on the way back (Chen et al., Sublinear memory cost, 2016).

        Raises:
            ConfigError: timm cannot do it with this backbone.
        """
        try:
            self.backbone.set_grad_checkpointing(enable=True)  # type: ignore[operator]  # timm's own method
        except (AssertionError, AttributeError) as error:
            raise ConfigError(
                f"{self.spec.backbone} cannot compute its activations again; set train.activation_checkpointing: false"
            ) from error

    def synchronise_batch_norms(self) -> None:
        """Have batch norms take their statistics over all ranks; on GPUs alone."""
        for name in ("backbone", "projection"):
            setattr(self, name, convert_sync_batchnorm(getattr(self, name)))  # type: ignore[no-untyped-call]  # timm's own

    def _leading(self, stages: int | Literal["all"]) -> set[str]:
        if stages in {-1, "all"}:
            return {name for name, _ in self.backbone.named_parameters()}
        count = int(stages)
        found = backbones.stages(self.backbone) if count else []
        if count > len(found):
            raise ConfigError(
                f"model.freeze is {count}, and {self.spec.backbone} has {len(found)} stages; set it to at most that, or to all"
            )
        return {name for stage in found[:count] for name in stage}

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  torch's own signature
        """Set the mode, in which frozen stages and batch norms take no part: they stay in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            parameters = list(module.parameters())
            learns = not parameters or any(parameter.requires_grad for parameter in parameters)
            if not learns or (self._keeps_statistics and isinstance(module, _BatchNorm)):
                module.eval()
        return self


def _in_cells(found: torch.Tensor, cells: int) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(found, cells).flatten(1)


class Features(nn.Module):
    """What an encoder gives before its projection."""

    def __init__(self, encoder: Encoder) -> None:
        """Look into an encoder."""
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return (batch, features); see `Encoder.features`."""
        return self.encoder.features(pixels, valid)


def codes(logits: torch.Tensor) -> torch.Tensor:
    """Return the codes of an encoder that hashes as vectors (batch, bits) of length 1.

    Bit k is set where h_k = sigmoid(z_k) > 0.5, which exactly 0.5 is not. A set bit is +1 / sqrt(bits), another -1 / sqrt(bits), so that
    the cosine of two codes is 1 - 2 x Hamming distance / bits.

    Args:
        logits: (batch, bits) z, float32.
    """
    size = logits.shape[1] ** -0.5
    return torch.where(logits > 0, size, -size)


def _hash(features: int, dim: int) -> nn.Module:
    """The hash net of the earlier system: features, half, a quarter, bits."""
    sizes = [features, max(1, features // 2), max(1, features // 4), dim]
    layers: list[nn.Module] = []
    for taken, given in itertools.pairwise(sizes):
        linear = nn.Linear(taken, given)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.constant_(linear.bias, _HASH_BIAS)
        layers += [linear, nn.LeakyReLU(_HASH_SLOPE)]
    return nn.Sequential(*layers[:-1])


def _linear(features: int, dim: int) -> nn.Module:
    return nn.Linear(features, dim)


def _mlp(features: int, dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))


def _identity(features: int, dim: int) -> nn.Module:  # noqa: ARG001  called like the other two
    return nn.Identity()


_PROJECTIONS = {"linear": _linear, "mlp": _mlp, "none": _identity, "hash": _hash, "activations": _hash}


class ImageStatistics(nn.Module):
    """Mean, deviation, least and greatest value of each band over its valid pixels: what an encoder must beat. No weights."""

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, spec: ModelSpec) -> None:
        """Take the numbers that standardise the statistics from the spec."""
        super().__init__()
        self.spec = spec
        self.standardise = _Standardiser(spec)
        self.register_buffer("feature_mean", torch.tensor(spec.feature_mean or [0.0] * spec.dim, device="cpu"), persistent=False)
        self.register_buffer("feature_std", torch.tensor(spec.feature_std or [1.0] * spec.dim, device="cpu"), persistent=False)

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return (batch, 4 x bands) float32: all means, all deviations, all least, all greatest values; see `Encoder.forward`.

        An image without a valid pixel has the statistics of an even image at the bands' means.
        """
        images = self.standardise(pixels, valid).flatten(2)
        batch, _, size = images.shape
        mask = torch.ones(batch, 1, size, dtype=torch.bool, device=images.device) if valid is None else valid.flatten(1)[:, None]
        mask = mask | ~mask.any(dim=2, keepdim=True)
        count = mask.sum(dim=2)
        mean = torch.where(mask, images, 0.0).sum(dim=2) / count
        variance = torch.where(mask, (images - mean[:, :, None]).square(), 0.0).sum(dim=2) / count
        least = torch.where(mask, images, torch.inf).amin(dim=2)
        greatest = torch.where(mask, images, -torch.inf).amax(dim=2)
        return (torch.cat([mean, variance.sqrt(), least, greatest], dim=1) - self.feature_mean) / self.feature_std

    def feature_map(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return (batch, bands, height, width) float32: the standardised pixels themselves; see `Encoder.feature_map`."""
        found: torch.Tensor = self.standardise(pixels, valid)
        return found


_KINDS: dict[str, type[Encoder | ImageStatistics]] = {"encoder": Encoder, "statistics": ImageStatistics}


def build(spec: ModelSpec, seed: int = 0, *, pretrained: str = "none", rgb: Sequence[str] | None = None) -> nn.Module:
    """Make an encoder on the CPU, in evaluation mode left to the caller.

    Args:
        spec: what to make.
        seed: of the random initialisation. The process's own random state stays as it was.
        pretrained: as `model.pretrained`: what then overwrites the backbone. From a
            checkpoint of ours, the projection too, if it is the same.
        rgb: as `model.rgb`: which bands are red, green and blue in the eyes of pretrained weights.

    Raises:
        CheckpointError: the backbone does not exist, or the weights cannot be had or do not fit.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        module = _KINDS[spec.kind](spec)
    if pretrained != "none" and isinstance(module, Encoder):
        seen = spec.imagery
        colours = None if rgb is None else (seen.index(rgb[0]), seen.index(rgb[1]), seen.index(rgb[2]))
        rest = load_pretrained(module.backbone, spec.backbone, pretrained, bands=len(seen), rgb=colours)
        expected = {name: tensor.shape for name, tensor in module.projection.state_dict().items()}
        if expected and expected == {name: tensor.shape for name, tensor in rest.items()}:
            module.projection.load_state_dict(rest)
    if isinstance(module, Encoder):
        module.backbone.to(memory_format=backbones.memory_format(module.backbone))
    return module


def bare(spec: ModelSpec) -> ModelSpec:
    """Return the same encoder without its projection: embeddings are the backbone's pooled features."""
    features = backbones.feature_count(spec.backbone, len(spec.imagery)) * spec.pool_cells**2
    return dataclasses.replace(spec, projection="none", dim=features, domain_whitening=None)


def skeleton(spec: ModelSpec) -> nn.Module:
    """Make an encoder without memory for its weights: their names and shapes alone.

    Raises:
        CheckpointError: the backbone does not exist.
    """
    with torch.device("meta"):
        return _KINDS[spec.kind](spec)


def parameter_count(spec: ModelSpec) -> int:
    """Return how many weights an encoder learns, without making them."""
    return sum(parameter.numel() for parameter in skeleton(spec).parameters())


def parameter_groups(encoder: nn.Module, *, backbone_rate: float, head_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return what an encoder learns as groups of a torch optimiser, each parameter in one; frozen ones are left out.

    Args:
        encoder: of `build`.
        backbone_rate: learning rate of the backbone.
        head_rate: of the projection.
        weight_decay: of all but norms, biases and what the backbone itself exempts.

    Returns:
        Groups with `params`, `weight_decay`, `lr`, and `initial_lr`, as torch's schedulers call the rate that they scale.
    """
    parts = [(part, backbone_rate if name == "backbone" else head_rate) for name, part in encoder.named_children()]
    return [group | {"lr": rate, "initial_lr": rate} for part, rate in parts for group in backbones.decay_groups(part, weight_decay)]
