"""The decoded chips of the training split in files that all workers of a node map into memory.

Filled once per node, from the workspace's shards through Ray Data; batches then read any tile at the cost of memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import ray.data

from rayjobs.embed.stack import stack
from rayjobs.tiles import chips
from rayjobs.tiles.chips import shard_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from rayjobs.storage import Version

_DECODERS = 4
"""Most shards decoded at a time."""
_SHARDS_PER_DECODER = 8
"""Shards below which another process costs more to start than it saves."""
_KEPT_S = 3 * 24 * 3600
"""How long chips stay on a node after their last use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipCache:
    """Chips by index among the training tiles, sorted by tile id."""

    pixels: np.ndarray[Any, Any]
    """(tiles, bands, height, width), mapped."""
    valid: np.ndarray[Any, np.dtype[np.bool_]]
    """(tiles, height, width), mapped; True means valid."""


def chip_dataset(source: Version, tiles: pa.Table, size: int) -> ray.data.Dataset:
    """Return the decoded chips of `tiles` as a dataset of rows `index`, `pixels`, `valid`.

    Args:
        source: the set.
        tiles: rows of its tile table, sorted by tile id; a row's number becomes the chip's `index`.
        size: side that chips of differing sizes are brought to.
    """
    index = {tile_id: number for number, tile_id in enumerate(tiles["tile_id"].to_pylist())}
    shards = pc.unique(tiles["shard"]).to_pylist()
    names = [{"name": shard_name(shard)} for shard in sorted(shards)]
    reference = ray.put(index)

    def decode(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        wanted = ray.get(reference)
        found = chips.read_chips(source.read(row["name"]), wanted)
        if not found:
            return []
        pixels, valid = stack(found, size)
        return [
            {"index": wanted[chip.tile_id], "pixels": values, "valid": mask}
            for chip, values, mask in zip(found, pixels.numpy(), valid.numpy(), strict=True)
        ]

    decoders = max(1, min(_DECODERS, len(names) // _SHARDS_PER_DECODER))
    # no CPU of their own: the training workers hold all of them, and wait for these tasks
    shards = ray.data.from_items(names, override_num_blocks=len(names))
    return shards.flat_map(decode, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=decoders))


def cache_folder(source: Version, tiles: pa.Table, size: int) -> Path:
    """Return where this node keeps the chips of `tiles`, rows of a set's tile table, named by what they are made of."""
    made_of = sorted(entry.sha256 for entry in source.files if entry.name == "tiles.parquet" or entry.name.startswith("chips/"))
    key = hashlib.sha256(" ".join([*made_of, str(size), *tiles["tile_id"].to_pylist()]).encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir(), "rayjobs-chips", key)


def drop_old(folder: Path) -> None:
    """Remove the chips of other sets, and what killed workers left, that nobody has opened for days."""
    limit = time.time() - _KEPT_S
    for other in folder.parent.iterdir() if folder.parent.exists() else ():
        if other != folder and other.stat().st_mtime < limit:
            shutil.rmtree(other, ignore_errors=True)


def fill(folder: Path, batches: Iterable[Mapping[str, Any]], count: int) -> None:
    """Write a dataset's chips into `folder`, unless it holds them already; the folder appears whole or not at all."""
    if folder.exists():
        return
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        _write(aside, batches, count)
        aside.rename(folder)
    except OSError:
        if not folder.exists():  # else another run filled it meanwhile
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, batches: Iterable[Mapping[str, Any]], count: int) -> None:
    pixels = valid = None
    for batch in batches:
        if pixels is None or valid is None:
            shape = batch["pixels"].shape[1:]
            pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", batch["pixels"].dtype, (count, *shape))
            valid = np.lib.format.open_memmap(folder / "valid.npy", "w+", bool, (count, *shape[1:]))
        pixels[batch["index"]] = batch["pixels"]
        valid[batch["index"]] = batch["valid"]


def opened(folder: Path) -> ChipCache:
    """Map the chips of a filled folder into memory."""
    os.utime(folder)  # says that it is in use
    return ChipCache(pixels=np.load(folder / "pixels.npy", mmap_mode="r"), valid=np.load(folder / "valid.npy", mmap_mode="r"))
