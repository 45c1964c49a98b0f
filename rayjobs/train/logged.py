"""What a run has learned, as MLflow lays out models: the checkpoint's own files, with a signature and what loads them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayjobs import __version__
from rayjobs.models import pyfunc
from rayjobs.models.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


def mlflow_model(encoder: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of an MLflow model, by name, that `mlflow.pyfunc.load_model` loads without unpickling.

    Args:
        encoder: `model.json` and `model.safetensors`, by these names; (tiles, bands, tile_size, tile_size) pixels give (tiles, dim) float32
            embeddings.
    """
    import mlflow.pyfunc  # noqa: PLC0415  it takes seconds to import
    from mlflow.models import ModelSignature  # noqa: PLC0415  likewise
    from mlflow.types import Schema, TensorSpec  # noqa: PLC0415  likewise

    spec = ModelSpec.from_json(encoder["model.json"])
    pixels = TensorSpec(np.dtype(spec.dtype), (-1, len(spec.bands), spec.tile_size, spec.tile_size))
    vectors = TensorSpec(np.dtype(np.float32), (-1, spec.dim))
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, Path(pyfunc.FOLDER).name), Path(folder, "model")  # MLflow keeps the name, below `data`
        source.mkdir()
        for name, data in encoder.items():
            (source / name).write_bytes(data)
        mlflow.pyfunc.save_model(
            made,
            loader_module=pyfunc.__name__,
            data_path=str(source),
            signature=ModelSignature(inputs=Schema([pixels]), outputs=Schema([vectors])),
            pip_requirements=[f"rayjobs=={__version__}"],
        )
        return {path.relative_to(made).as_posix(): path.read_bytes() for path in sorted(made.rglob("*")) if path.is_file()}
