"""The pictures that show what is sought, as embeddings: tiles of the set, or files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from rayjobs.embed.stack import stack_arrays
from rayjobs.errors import ConfigError, QueryError, StorageError, UploadError
from rayjobs.models.checkpoint import from_files
from rayjobs.rasters.uploads import UploadLimits, read_upload
from rayjobs.storage import read_uri

if TYPE_CHECKING:
    from rayjobs.embed.job import Embeddings
    from rayjobs.labels.acquisition.diversity import Vectors
    from rayjobs.models.checkpoint import Checkpointed

_MOST_PIXELS, _MOST_BYTES = 100_000_000, 2**30


def pictures_of(names: Sequence[str], tiles: Collection[str], encoder: Mapping[str, bytes]) -> dict[str, Vectors]:
    """Return (dim,) float32 embeddings of those names that are paths of pictures, by name.

    Args:
        names: ids of tiles, or paths of pictures.
        tiles: ids of the tiles there are.
        encoder: `model_json` and `tensors`, of which pictures are embedded.

    Raises:
        ConfigError: a name is neither, or a picture has not the encoder's bands, or is too large.
    """
    known = set(tiles)
    paths = [name for name in dict.fromkeys(names) if name not in known]
    loaded = from_files(**encoder) if paths else None
    return {} if loaded is None else {path: _embedded(path, loaded) for path in paths}


def examples_of(names: Sequence[str], embedded: Embeddings, pictures: Mapping[str, Vectors]) -> Vectors:
    """Return (examples, dim) float32 embeddings of names, of which `pictures` has those that are no tiles."""
    places = {tile: place for place, tile in enumerate(embedded.table["tile_id"].to_pylist())}
    found = [pictures[name] if name in pictures else embedded.vectors[places[name]] for name in names]
    return np.stack(found) if found else np.empty((0, embedded.vectors.shape[1]), np.float32)


@torch.inference_mode()
def _embedded(path: str, encoder: Checkpointed) -> Vectors:
    spec = encoder.spec
    try:
        data = read_uri(path)
    except StorageError as error:
        raise ConfigError(f"label.examples: {path!r} is no tile of the set, and no picture ({error}); correct it") from error
    limits = UploadLimits(modalities=spec.modalities, dtype=spec.dtype, max_pixels=_MOST_PIXELS, max_bytes=_MOST_BYTES)
    try:
        read = read_upload(data, limits)
    except UploadError as error:
        raise ConfigError(f"label.examples: {path!r} is no PNG, JPEG or GeoTIFF that can be read ({error}); correct it") from error
    except QueryError as error:
        raise ConfigError(f"label.examples: {path!r} cannot be an example: {error}") from error
    pixels, whole = stack_arrays([(read.values, read.valid)], spec.tile_size, nearest=spec.maps_of(len(read.values)))
    vector: Vectors = encoder.module(pixels, whole)[0].float().numpy()
    return vector
