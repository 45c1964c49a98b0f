"""What runs on a worker: embed the tiles of one shard and write them as one part of an embedding table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from rayjobs.embed.stack import stack
from rayjobs.models.checkpoint import from_files
from rayjobs.storage import Store, Version, digest_of, keep_first
from rayjobs.tiles import chips
from rayjobs.tiles.chips import shard_name
from rayjobs.tiles.table import geoparquet_bytes, read_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CANONICAL_BATCH = 128
"""Tiles embedded together. Fixed, so that the numbers do not depend on how many workers share the work."""

METADATA_KEY = b"rayjobs"
"""Key of the Parquet metadata that names the encoder."""


def part_name(shard: int) -> str:
    """Return the name of an embedding table's part."""
    return f"part-{shard:05d}.parquet"


class Encode:
    """An actor that holds the encoder and the tile table."""

    def __init__(self, *, files: Any, source: Version, store: Store, prefix: str, splits: Sequence[str] | None, only: Any = None) -> None:
        """Load the encoder once.

        Args:
            files: reference to the encoder's `model.json` and `model.safetensors`.
            source: the set.
            store: the workspace.
            prefix: folder of the embedding table's version, ending in `/`.
            splits: parts of the set to embed; None for all tiles.
            only: reference to the ids of the tiles to embed; None for all.
        """
        self._encoder = from_files(**ray.get(files))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder.module.eval().to(self._device)
        tiles = read_tiles(source.read("tiles.parquet"))
        self._tiles = tiles if splits is None else tiles.filter(pc.is_in(tiles["split"], pa.array(list(splits))))
        self._tiles = self._tiles if only is None else self._tiles.filter(pc.is_in(self._tiles["tile_id"], ray.get(only)))
        self._source, self._store, self._prefix = source, store, prefix

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Make sure that a shard's part lies in the workspace, and return its `digest` and number of `rows`."""
        tiles = self._tiles.filter(pc.equal(self._tiles["shard"], int(row["shard"])))
        name = part_name(int(row["shard"]))
        key = self._prefix + name
        left = self._store.read_tagged(key)
        data = (left or keep_first(self._store, key, self._part(tiles, shard_name(int(row["shard"]))))).data
        return {"digest": dataclasses.asdict(digest_of(name, data)), "rows": tiles.num_rows}

    def _part(self, tiles: pa.Table, chips_name: str) -> bytes:
        vectors = self._embed(tiles, chips_name)
        dim = vectors.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
        table = tiles.append_column("embedding", column)
        marked = {**(table.schema.metadata or {}), METADATA_KEY: self._encoder.fingerprint.encode()}
        return geoparquet_bytes(table.replace_schema_metadata(marked))

    def _embed(self, tiles: pa.Table, chips_name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        spec = self._encoder.spec
        if tiles.num_rows == 0:
            return np.empty((0, spec.dim), np.float32)
        found = chips.read_chips(self._source.read(chips_name), set(tiles["tile_id"].to_pylist()))
        batches = [found[start : start + CANONICAL_BATCH] for start in range(0, len(found), CANONICAL_BATCH)]
        return np.concatenate([self._batch(batch) for batch in batches])

    @torch.inference_mode()
    def _batch(self, batch: list[chips.Chip]) -> np.ndarray[Any, np.dtype[np.float32]]:
        spec = self._encoder.spec
        pixels, valid = stack(batch, spec.tile_size, nearest=spec.maps_of(len(batch[0].pixels)))
        vectors: np.ndarray[Any, np.dtype[np.float32]] = self._encoder.module(pixels.to(self._device), valid.to(self._device)).cpu().numpy()
        return vectors
