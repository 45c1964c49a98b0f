"""The fingerprint of an encoder out of its files alone, for processes that compare it and need no network. Loads no torch."""

from __future__ import annotations

import hashlib

import safetensors
from safetensors import SafetensorError

from rayjobs.errors import CheckpointError
from rayjobs.models.spec import ModelSpec


def fingerprint_of(spec: ModelSpec, tensors: bytes) -> str:
    """Return the encoder fingerprint, as `rayjobs.models.checkpoint.fingerprint` does of a network.

    Args:
        spec: of `model.json`.
        tensors: `model.safetensors`; whether its tensors are those of the architecture is not asked.

    Raises:
        CheckpointError: the file is cut off or altered.
    """
    try:
        found = dict(safetensors.deserialize(tensors))  # type: ignore[no-untyped-call]  # it is written in Rust
    except SafetensorError as error:
        raise CheckpointError(f"model.safetensors is cut off or altered ({error}); take another checkpoint") from error
    digest = hashlib.sha256(spec.to_json())
    for name in sorted(found):
        digest.update(found[name]["data"])
    return digest.hexdigest()
