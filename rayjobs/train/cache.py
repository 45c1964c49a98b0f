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
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow.compute as pc
import ray.data

from rayjobs.embed.stack import stack
from rayjobs.tiles import chips
from rayjobs.tiles.chips import shard_name
from rayjobs.train.shown import ChipCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from rayjobs.storage import Version

_DECODERS = 4
"""Most shards decoded at a time."""
_SHARDS_PER_DECODER = 8
"""Shards below which another process costs more to start than it saves."""
_KEPT_S = 3 * 24 * 3600
"""How long folders stay on a node after their last use."""


def chip_dataset(source: Version, tiles: pa.Table, size: int, nearest: Sequence[int] = ()) -> ray.data.Dataset:
    """Return the decoded chips of `tiles` as a dataset of rows `index`, `pixels`, `valid`.

    Args:
        source: the set.
        tiles: rows of its tile table, sorted by tile id; a row's number becomes the chip's `index`.
        size: side that chips of differing sizes are brought to.
        nearest: bands that are maps; see `stack`.
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
        pixels, valid = stack(found, size, nearest=nearest)
        return [
            {"index": wanted[chip.tile_id], "pixels": values, "valid": mask}
            for chip, values, mask in zip(found, pixels.numpy(), valid.numpy(), strict=True)
        ]

    decoders = max(1, min(_DECODERS, len(names) // _SHARDS_PER_DECODER))
    # no CPU of their own: the training workers hold all of them, and wait for these tasks
    shards = ray.data.from_items(names, override_num_blocks=len(names))
    return shards.flat_map(decode, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=decoders))


def cache_folder(source: Version, tiles: pa.Table, size: int, nearest: Sequence[int] = ()) -> Path:
    """Return where this node keeps the chips of `tiles`, rows of a set's tile table, named by what they are made of."""
    made_of = sorted(entry.sha256 for entry in source.files if entry.name == "tiles.parquet" or entry.name.startswith("chips/"))
    key = hashlib.sha256(" ".join([*made_of, str(size), str(list(nearest)), *tiles["tile_id"].to_pylist()]).encode()).hexdigest()[:24]
    return Path(tempfile.gettempdir(), "rayjobs-chips", key)


def drop_old(folder: Path) -> None:
    """Remove what is kept beside `folder`, and what killed workers left there, that nobody has opened for days."""
    limit = time.time() - _KEPT_S
    for other in folder.parent.iterdir() if folder.parent.exists() else ():
        if other != folder and other.stat().st_mtime < limit:
            shutil.rmtree(other, ignore_errors=True)


def fill(folder: Path, batches: Iterable[Mapping[str, Any]], count: int) -> None:
    """Write the columns of batches into `folder`, unless it holds them already; the folder appears whole or not at all.

    Args:
        folder: which gets one file for each column.
        batches: of arrays (rows, ...) by name, with the row of each tile as `index`.
        count: of all tiles.
    """
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
    files: dict[str, np.memmap[Any, Any]] = {}
    for batch in batches:
        for name in batch.keys() - {"index"}:
            if name not in files:
                shape = (count, *batch[name].shape[1:])
                files[name] = np.lib.format.open_memmap(_file(folder, name), "w+", batch[name].dtype, shape)
            files[name][batch["index"]] = batch[name]


def _file(folder: Path, column: str) -> Path:
    return folder / f"{column}.npy"


def opened(folder: Path) -> ChipCache:
    """Map the chips of a filled folder into memory."""
    return ChipCache(pixels=mapped(folder, "pixels"), valid=mapped(folder, "valid"))


def mapped(folder: Path, column: str) -> np.ndarray[Any, Any]:
    """Map a column of a filled folder into memory."""
    os.utime(folder)  # says that it is in use
    return cast("np.ndarray[Any, Any]", np.load(_file(folder, column), mmap_mode="r"))
