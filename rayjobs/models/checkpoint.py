"""Checkpoints: an encoder as `model.safetensors` and `model.json`, known by its fingerprint. Files may be hostile; nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from rayjobs.errors import CheckpointError
from rayjobs.models.encoder import Encoder, build, skeleton
from rayjobs.models.spec import ModelSpec, check_bands

__all__ = [
    "Checkpointed",
    "ModelSpec",
    "check_bands",
    "fingerprint",
    "from_files",
    "read_training_state",
    "to_files",
    "training_state_bytes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """An encoder that was loaded."""

    module: nn.Module
    """On the CPU, in evaluation mode."""
    spec: ModelSpec
    fingerprint: str
    """Of what was loaded: see `fingerprint`."""


def fingerprint(spec: ModelSpec, state: Mapping[str, torch.Tensor]) -> str:
    """Return the encoder fingerprint: sha256, in hex, of the canonical `model.json` and the tensors' bytes in order of name."""
    digest = hashlib.sha256(spec.to_json())
    for name in sorted(state):
        digest.update(_plain(state[name]).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def to_files(module: nn.Module, spec: ModelSpec) -> dict[str, bytes]:
    """Return a checkpoint's files by name: `model.json` and `model.safetensors`."""
    state = {name: _plain(tensor).clone() for name, tensor in module.state_dict().items()}
    return {"model.json": spec.to_json(), "model.safetensors": safetensors.torch.save(state)}


def from_files(model_json: bytes, tensors: bytes) -> Checkpointed:
    """Load an encoder.

    Names and shapes are compared with the architecture's before anything of its size is allocated.

    Args:
        model_json: `model.json`.
        tensors: `model.safetensors`.

    Raises:
        CheckpointError: a file is not what it should be, a tensor is missing, superfluous, of another shape or type, or not finite.
    """
    spec = ModelSpec.from_json(model_json)
    state = _tensors(tensors)
    _check_state(spec, state)
    module = build(spec)
    module.load_state_dict(state)
    if isinstance(module, Encoder) and module.domain_whitening is not None and not module.domain_whitening.is_sound:
        raise CheckpointError("model.safetensors: domain_whitening.covariances are none; take another checkpoint")
    return Checkpointed(module=module.eval(), spec=spec, fingerprint=fingerprint(spec, module.state_dict()))


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"model.safetensors is cut off or altered ({error}); take another checkpoint") from error


def _check_state(spec: ModelSpec, state: Mapping[str, torch.Tensor]) -> None:
    expected = skeleton(spec).state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise CheckpointError(f"model.safetensors lacks {name}, which {spec.backbone or spec.kind} needs; take another checkpoint")
        if name not in expected:
            raise CheckpointError(
                f"model.safetensors holds {name[:80]!r}, which {spec.backbone or spec.kind} does not have; take another checkpoint"
            )
        found, wanted = state[name], expected[name]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise CheckpointError(
                f"model.safetensors: {name} is {found.dtype} {tuple(found.shape)}, and {spec.backbone or spec.kind} needs "
                f"{wanted.dtype} {tuple(wanted.shape)}; model.json and model.safetensors belong to different encoders"
            )
        if not torch.isfinite(found).all():
            raise CheckpointError(f"model.safetensors: {name} holds numbers that are not finite; take an earlier checkpoint")


def training_state_bytes(state: Mapping[str, Any]) -> bytes:
    """Return what training needs to go on (tensors, numbers, strings, lists and dicts of them) as `state.pt`."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def read_training_state(data: bytes) -> dict[str, Any]:
    """Read `state.pt`; only tensors and plain values are accepted.

    Raises:
        CheckpointError: it is cut off, or holds anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a hostile file is made of
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file makes the unpickler fail in any way it likes
        raise CheckpointError("state.pt is cut off, or holds more than tensors and plain values; resume from another checkpoint") from error
    if not isinstance(state, dict):
        raise CheckpointError("state.pt holds no mapping; resume from another checkpoint")
    return state
