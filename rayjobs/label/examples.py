"""The pictures that show what is sought, as embeddings: tiles of the set, or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from rayjobs.embed.stack import stack_arrays
from rayjobs.errors import ConfigError, StorageError
from rayjobs.models.checkpoint import from_files
from rayjobs.rasters.uploads import UploadLimits, read_upload
from rayjobs.storage import read_uri

if TYPE_CHECKING:
    from rayjobs.embed.job import Embeddings
    from rayjobs.labels.acquisition.diversity import Vectors
    from rayjobs.models.checkpoint import Checkpointed

_MOST_PIXELS, _MOST_BYTES = 100_000_000, 2**30


def examples_of(names: Sequence[str], embedded: Embeddings, encoder: Mapping[str, bytes]) -> Vectors:
    """Return (examples, dim) float32 embeddings.

    Args:
        names: ids of tiles, or paths of pictures.
        embedded: the tiles.
        encoder: `model_json` and `tensors`, of which pictures are embedded.

    Raises:
        ConfigError: a name is neither.
        QueryError: a picture has not the encoder's bands, or is too large.
    """
    places = {tile: place for place, tile in enumerate(embedded.table["tile_id"].to_pylist())}
    loaded = from_files(**encoder) if set(names) - set(places) else None
    found = [embedded.vectors[places[name]] if loaded is None or name in places else _embedded(name, loaded) for name in names]
    return np.stack(found) if found else np.empty((0, embedded.vectors.shape[1]), np.float32)


@torch.inference_mode()
def _embedded(path: str, encoder: Checkpointed) -> Vectors:
    spec = encoder.spec
    try:
        data = read_uri(path)
    except StorageError as error:
        raise ConfigError(f"label.examples: {path!r} is no tile of the set, and no picture ({error}); correct it") from error
    limits = UploadLimits(modalities=spec.modalities, dtype=spec.dtype, max_pixels=_MOST_PIXELS, max_bytes=_MOST_BYTES)
    read = read_upload(data, limits)
    pixels, whole = stack_arrays([(read.values, read.valid)], spec.tile_size, nearest=spec.maps_of(len(read.values)))
    vector: Vectors = encoder.module(pixels, whole)[0].float().numpy()
    return vector
