"""timm's networks by name: what they are, what they take, and of what stages they are made."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import PretrainedCfg, group_parameters
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # timm marks no exports

from rayjobs.errors import CheckpointError, ConfigError

_STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32)
"""Networks that halve, patch or window their images want sides that are multiples of one of these."""
_TOKENS, _MAP = 3, 4
"""Dimensions of (batch, tokens, features) and of a map of features."""
_WIDEST_STEP, _MORE_STEPS = 32, 8
"""Beyond the next multiples, so many further steps are tried: some networks have a least size."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep timm's and its hub's chatter from the user's terminal; their exceptions come through."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def require(backbone: str) -> None:
    """Make sure that timm has a network.

    Raises:
        ConfigError: it has none of that name; says the nearest.
    """
    if not _known(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        raise ConfigError(
            f"timm has no model {backbone!r}" + (f"; near it are {', '.join(near)}" if near else "; timm.list_models() lists them")
        )


def _known(backbone: str) -> bool:
    # A name such as `hf-hub:...` or `local-dir:...` would make timm fetch and run what it names.
    return bool(re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", backbone)) and timm.is_model(backbone)


def pretraining(backbone: str) -> PretrainedCfg:
    """Return what timm says of a network's pretraining."""
    return timm.get_pretrained_cfg(backbone) or PretrainedCfg()


def create(backbone: str, *, bands: int, input_size: int) -> torch.nn.Module:
    """Return a network without a classifier, randomly initialised; it maps (batch, bands, side, side) to (batch, features).

    Raises:
        CheckpointError: timm has no such network, or it cannot take images of this size.
    """
    if not _known(backbone):
        raise CheckpointError(
            f"the encoder needs the backbone {backbone!r}, which timm {timm.__version__} does not have; install a newer timm"
        )
    options: dict[str, Any] = {"img_size": input_size} if pretraining(backbone).fixed_input_size else {}
    try:
        with quiet():
            network: torch.nn.Module = timm.create_model(backbone, pretrained=False, num_classes=0, in_chans=bands, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise CheckpointError(
            f"{backbone} cannot be made for {bands} bands of {input_size} pixels: {error}; choose another model.input_size"
        ) from error
    return network


def memory_format(network: torch.nn.Module) -> torch.memory_format:
    """Return the order in memory in which a network's convolutions are fastest.

    Channels last on a GPU, whose matrix units want it, and on a CPU where the network has grouped convolutions: a training step of
    tf_efficientnet_lite0 then takes 0.60 of the time; one of resnet18, which has none, does not gain (docs/experiments.md).
    """
    grouped = any(isinstance(module, torch.nn.Conv2d) and module.groups > 1 for module in network.modules())
    return torch.channels_last if grouped or torch.cuda.is_available() else torch.contiguous_format


def feature_count(backbone: str, bands: int) -> int:
    """Return how many pooled features a network gives."""
    with torch.device("meta"):
        network = create(backbone, bands=bands, input_size=224)
    return features_of(network)


def features_of(network: torch.nn.Module) -> int:
    """Return how many pooled features a network of `create` gives."""
    return int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]  # timm's own attributes


def feature_map(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the last feature map (batch, features, h, w) of a network of `create`, before pooling.

    Tokens of a transformer become the grid of their patches; class and register tokens are left out.

    Args:
        network: any of timm's.
        images: (batch, bands, side, side), square.

    Raises:
        ConfigError: the network has no such map.
    """
    found = network.forward_features(images)  # type: ignore[operator]  # a method, not a submodule
    channels = int(network.num_features)  # type: ignore[arg-type]  # timm's own attribute
    if isinstance(found, torch.Tensor) and found.ndim == _TOKENS and found.shape[2] == channels:
        found = _grid_of(found, network)
    if isinstance(found, torch.Tensor) and found.ndim == _MAP and channels in {found.shape[1], found.shape[3]}:
        return found if found.shape[1] == channels else found.permute(0, 3, 1, 2)
    raise ConfigError(
        f"{type(network).__name__} has no feature map; do without model.pool_cells and evaluate.segmentation, or choose another "
        "model.backbone"
    )


def shape_of_map(backbone: str, *, bands: int, side: int) -> tuple[int, int]:
    """Return the features of a network's last feature map and its side in cells, for square images of a size; only shapes are computed.

    Raises:
        ConfigError: the network has no such map.
    """
    with torch.device("meta"), torch.no_grad(), quiet():
        found = feature_map(create(backbone, bands=bands, input_size=side).eval(), torch.empty(1, bands, side, side))
    return found.shape[1], found.shape[2]


def _grid_of(tokens: torch.Tensor, network: torch.nn.Module) -> torch.Tensor | None:
    """Return the tokens of patches, of a square image, as (batch, side, side, features); None where they are no square."""
    extra = tokens.shape[1] - math.isqrt(tokens.shape[1]) ** 2
    first = int(getattr(network, "num_prefix_tokens", extra))
    patches = tokens[:, first:]
    side = math.isqrt(patches.shape[1])
    return patches.reshape(len(patches), side, side, -1) if side**2 == patches.shape[1] else None


def pretraining_normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation (of pixels from 0 to 1) with which timm's weights of a network were trained."""
    require(backbone)
    settings = pretraining(backbone)
    return tuple(settings.mean), tuple(settings.std)


def fitting_side(backbone: str, *, bands: int, at_least: int) -> int:
    """Return the smallest side, from `at_least` pixels on, of images that a network takes whole.

    Networks of patches or windows refuse some sides, or leave out pixels at the edge; others need a least size.

    Raises:
        ConfigError: none is near.
    """
    further = range(_WIDEST_STEP, _WIDEST_STEP * _MORE_STEPS, _WIDEST_STEP)
    nearest = {-(-at_least // step) * step for step in _STEPS}
    theirs = {side for side in (pretraining(backbone).input_size or ())[1:] if side >= at_least}
    sides = sorted(nearest | {max(nearest) + more for more in further} | theirs)
    side = next((side for side in sides if misfit(backbone, bands=bands, side=side) is None), None)
    if side is None:
        raise ConfigError(f"{backbone} takes no images of {at_least} to {sides[-1]} pixels; set model.input_size or another backbone")
    return side


def misfit(backbone: str, *, bands: int, side: int) -> str | None:
    """Say why a network cannot take square images of a size, or None where it can; only shapes are computed."""
    try:
        with torch.device("meta"), torch.no_grad(), quiet():
            network = create(backbone, bands=bands, input_size=side).eval()
            left_out = _left_out(network, side)
            if not left_out:
                network(torch.empty(2, bands, side, side))
    except Exception as error:  # noqa: BLE001  each network fails in its own way, all of one meaning here
        return " ".join(str(error).split())[:200]
    return f"its patches would leave out {left_out} pixels at the edge" if left_out else None


def _left_out(network: torch.nn.Module, side: int) -> int:
    patches = (layer for layer in network.modules() if isinstance(layer, PatchEmbed) and not layer.dynamic_img_pad)
    return max((side % layer.patch_size[0] for layer in patches), default=0)


def stages(network: torch.nn.Module) -> list[list[str]]:
    """Return the names of a network's parameters by stage, in the order of computation.

    The first stage is the stem (in a vision transformer the patch embedding with its position and class tokens), the others are the
    network's own (in a vision transformer its blocks), as timm groups the layers of each network.

    Raises:
        ConfigError: timm does not tell the stages of this network.
    """
    if not hasattr(network, "group_matcher"):
        raise ConfigError(f"timm does not tell the stages of {type(network).__name__}; set model.freeze to 0 or all")
    grouped = group_parameters(network, network.group_matcher(coarse=True))  # type: ignore[operator]  # a method, not a submodule
    return [grouped[number] for number in sorted(grouped)]


def decay_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters that learn as groups of an optimiser: `params` and `weight_decay`.

    Norms, biases and what the network itself exempts (position and class tokens) do not decay.
    """
    exempt = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()  # type: ignore[operator]  # a method, not a submodule
    groups: list[dict[str, Any]] = param_groups_weight_decay(module, weight_decay, no_weight_decay_list=exempt)
    return groups
