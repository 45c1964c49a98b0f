"""Which tiles a set will have and which shard each goes to: metadata only, no pixel is touched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayjobs.config import to_dict
from rayjobs.errors import ConfigError
from rayjobs.rasters.blocks import plan_reads, superblock_order
from rayjobs.rasters.scenes import Scene, scenes_table
from rayjobs.rasters.sources import discover
from rayjobs.tiles.table import geoparquet_bytes, plan_tiles

if TYPE_CHECKING:
    from rayjobs.rasters.section import RastersSection
    from rayjobs.tiles.section import TilesSection

_FORMAT = 1
"""Raised when the same plan would give other bytes."""
_SHARD_BYTES = 32 * 2**20
_MIN_SHARDS = 16
_MIN_SHARD_TILES = 32
_WINDOW = ("row", "col", "height", "width")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPlan:
    """A set before its pixels are read."""

    scenes: list[Scene]
    """Sorted by scene id."""
    unreadable: tuple[tuple[str, str], ...]
    """URI and reason of each file whose header could not be read."""
    tiles: pa.Table
    """Planned tiles sorted by tile id, with `shard` and `order` (of reading, within the whole set)."""
    shards: int
    dtype: str
    """numpy name of the chips' dtype."""
    physical: bool
    """Whether chips hold physical values (float32)."""
    version: str
    """Digest of all that decides the set's bytes."""

    def cost(self) -> dict[str, Any]:
        """Return what reading will take: tiles, raster blocks, bytes before compression, bytes of chips."""
        blocks = block_bytes = chip_bytes = 0
        by_scene = {scene.scene_id: scene for scene in self.scenes}
        for scene_id, windows in _windows_by_scene(self.tiles).items():
            scene = by_scene[scene_id]
            touched = _blocks_touched(scene, windows)
            itemsize = np.dtype(scene.dtype).itemsize * len(scene.assets)
            blocks += touched
            block_bytes += touched * scene.block[0] * scene.block[1] * itemsize
            chip_bytes += int((windows[:, 2] * windows[:, 3]).sum()) * np.dtype(self.dtype).itemsize * len(scene.assets)
        return {
            "scenes": len(self.scenes),
            "tiles": self.tiles.num_rows,
            "shards": self.shards,
            "blocks_to_read": blocks,
            "bytes_to_read_decoded": block_bytes,
            "chip_bytes": chip_bytes,
            "memory_per_worker_bytes": 3 * _SHARD_BYTES,
        }


def plan_set(rasters: RastersSection, tiles: TilesSection) -> SetPlan:
    """Find the scenes and place the tiles.

    Raises:
        EmptySearchError: no scene fits.
        NoTilesError: no tile fits the scenes, or a split stays empty.
        ConfigError: scenes whose pixels mean different things would be mixed.
    """
    discovery = discover(rasters)
    scenes = discovery.scenes
    physical = rasters.radiometry == "physical"
    if not physical:
        _check_radiometry(scenes)
    dtype = "float32" if physical else np.result_type(*(np.dtype(scene.dtype) for scene in scenes)).name
    planned = plan_tiles(scenes, tiles)
    sharded, shards = _shard(planned, scenes, dtype)
    return SetPlan(
        scenes=scenes,
        unreadable=tuple(discovery.unreadable),
        tiles=sharded,
        shards=shards,
        dtype=dtype,
        physical=physical,
        version=_version(scenes, sharded, rasters, tiles),
    )


def _check_radiometry(scenes: list[Scene]) -> None:
    found = {tuple((asset.scale, asset.offset) for asset in scene.assets.values()): scene.scene_id for scene in scenes}
    if len(found) > 1:
        first, second, *_ = found.values()
        raise ConfigError(
            f"scenes {first} and {second} declare different scales or offsets, so their raw values cannot be mixed; "
            "set rasters.radiometry: physical"
        )


def _shard(planned: pa.Table, scenes: list[Scene], dtype: str) -> tuple[pa.Table, int]:
    """Give each tile its place in the order of reading, in which neighbours on the ground follow each other, and its shard."""
    by_scene = {scene.scene_id: scene for scene in scenes}
    of_scene = np.asarray(planned["scene_id"].to_pylist())
    windows = np.column_stack([planned[name].to_numpy() for name in _WINDOW])
    order: list[np.ndarray[Any, Any]] = []
    for scene_id in sorted(set(of_scene.tolist())):
        members = np.flatnonzero(of_scene == scene_id)
        order.append(members[superblock_order(windows[members], by_scene[scene_id].block)])
    reading = np.concatenate(order)
    per_shard = _tiles_per_shard(windows, len(scenes[0].assets), np.dtype(dtype).itemsize)
    place = np.empty(len(reading), np.int64)
    place[reading] = np.arange(len(reading))
    table = planned.append_column("shard", pa.array(place // per_shard, pa.int32())).append_column("order", pa.array(place))
    return table, int(place.max() // per_shard) + 1


def _tiles_per_shard(windows: np.ndarray[Any, Any], bands: int, itemsize: int) -> int:
    chip_bytes = float((windows[:, 2] * windows[:, 3]).mean()) * bands * itemsize
    for_memory = int(_SHARD_BYTES / chip_bytes)
    for_parallelism = -(-len(windows) // _MIN_SHARDS)
    return max(_MIN_SHARD_TILES, min(for_memory, for_parallelism))


def _version(scenes: list[Scene], tiles: pa.Table, rasters: RastersSection, section: TilesSection) -> str:
    label_map = to_dict(rasters.label_map) if rasters.label_map else None
    digest = hashlib.sha256(f"{_FORMAT} {rasters.radiometry} {section.min_valid_fraction} {section.min_label_purity} {label_map}".encode())
    digest.update(geoparquet_bytes(scenes_table(scenes)))
    digest.update(geoparquet_bytes(tiles))
    return digest.hexdigest()[:16]


def _windows_by_scene(tiles: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    of_scene = np.asarray(tiles["scene_id"].to_pylist())
    windows = np.column_stack([tiles[name].to_numpy() for name in _WINDOW])
    return {scene_id: windows[of_scene == scene_id] for scene_id in sorted(set(of_scene.tolist()))}


def _blocks_touched(scene: Scene, windows: np.ndarray[Any, Any]) -> int:
    groups = plan_reads(windows, scene.block, (scene.grid.height, scene.grid.width))
    rows, cols = scene.block
    touched: set[tuple[int, int]] = set()
    for group in groups:
        window = group.window
        for row in range(window.row // rows, (window.row + window.height - 1) // rows + 1):
            touched |= {(row, col) for col in range(window.col // cols, (window.col + window.width - 1) // cols + 1)}
    return len(touched)
