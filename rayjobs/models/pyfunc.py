"""An encoder as MLflow loads models (`mlflow.pyfunc`): from `model.json` and `model.safetensors` in a folder; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayjobs.models.checkpoint import from_files

if TYPE_CHECKING:
    from rayjobs.models.checkpoint import Checkpointed


FILES = ("model.json", "model.safetensors")
FOLDER = "data/encoder"
"""Where they are in an MLflow model."""


class Embedder:
    """Embeds chips."""

    def __init__(self, encoder: Checkpointed) -> None:
        """Take the encoder."""
        self._module = encoder.module

    @torch.inference_mode()
    def predict(self, chips: np.ndarray[Any, Any], params: dict[str, Any] | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the (chips, dim) float32 embeddings of (chips, bands, tile_size, tile_size) pixels in their own unit, all valid."""
        del params
        pixels = torch.from_numpy(np.asarray(chips, np.float32))
        valid = torch.ones((len(pixels), *pixels.shape[2:]), dtype=torch.bool)
        vectors: np.ndarray[Any, np.dtype[np.float32]] = self._module(pixels, valid).float().numpy()
        return vectors


def _load_pyfunc(path: str) -> Embedder:
    """Load the encoder of a folder: MLflow's entry. Raises `CheckpointError` where a file is not what it should be."""
    return Embedder(from_files(*(Path(path, name).read_bytes() for name in FILES)))
