"""Which tiles a set will have and which shard each goes to: metadata only, no pixel is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from rayjobs.errors import ConfigError, TooManyFailuresError, first_few
from rayjobs.geo import FloatArray, IntArray
from rayjobs.rasters.blocks import ReadGroup, plan_reads, superblock_order
from rayjobs.rasters.gdal import BLOCK_CACHE_BYTES
from rayjobs.rasters.scenes import Scene
from rayjobs.rasters.sources import Discovery, discover
from rayjobs.sample.read import THREADS
from rayjobs.tiles.table import plan_tiles

if TYPE_CHECKING:
    from rayjobs.rasters.section import RastersSection
    from rayjobs.tiles.section import TilesSection

_SHARD_BYTES = 32 * 2**20
"""Of pixels in a shard, at most, unless a single tile has more."""
_MIN_SHARDS = 16
_MIN_SHARD_TILES = 32
"""Shards of a small set have so many tiles, though there were fewer than `_MIN_SHARDS` of them then."""
_SHARD_COPIES = 5
"""Of a shard's pixels while it is written: as rows, table, page, compressed page and file; the last three are one large tile's at worst."""
_SHOWN = 10
"""Files that cannot be opened that a plan names."""
_WINDOW = ("row", "col", "height", "width")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPlan:
    """A set before its pixels are read."""

    scenes: list[Scene]
    """Sorted by scene id."""
    unreadable: tuple[tuple[str, str], ...]
    """URI and reason of each file whose header could not be read."""
    files: Mapping[str, tuple[str, ...]]
    """By the URI of each raster of the scenes, all files that its pixels lie in."""
    tiles: pa.Table
    """Planned tiles sorted by tile id, with `shard` and `order` (of reading, within the whole set)."""
    shards: int
    dtype: str
    """numpy name of the chips' dtype."""
    physical: bool
    """Whether chips hold physical values (float32)."""
    cautions: tuple[str, ...]
    """What may not be as the person expects."""

    def cost(self) -> dict[str, Any]:
        """Return what reading will take: tiles, raster blocks, bytes before compression, bytes of chips and of memory.

        Beside it what is wrong: files that cannot be opened (of many the first ones) and cautions.
        """
        by_scene = {scene.scene_id: scene for scene in self.scenes}
        reads = [_reads_of(by_scene[scene_id], windows) for scene_id, windows in _windows_by_scene(self.tiles)]
        chip_bytes = _chip_bytes(_windows(self.tiles), self.scenes, self.dtype)
        block_bytes = sum(read.block_bytes for read in reads)
        shard = self.tiles["shard"].to_numpy()
        largest_shard = int(np.bincount(shard, chip_bytes).max())
        in_flight = min(THREADS, int(np.bincount(shard).max())) * max(read.group_bytes for read in reads)
        return {
            "scenes": len(self.scenes),
            "tiles": self.tiles.num_rows,
            "shards": self.shards,
            "blocks_to_read": sum(read.blocks for read in reads),
            "bytes_to_read_decoded": block_bytes,
            "chip_bytes": int(chip_bytes.sum()),
            "memory_per_worker_bytes": _SHARD_COPIES * largest_shard + in_flight + min(BLOCK_CACHE_BYTES, block_bytes),
            "unreadable_files": len(self.unreadable),
            "unreadable": [f"{uri}: {reason}" for uri, reason in self.unreadable[:_SHOWN]],
            "cautions": list(self.cautions),
        }


def plan_set(rasters: RastersSection, tiles: TilesSection) -> SetPlan:
    """Find the scenes and place the tiles.

    Raises:
        EmptySearchError: no scene fits.
        TooManyFailuresError: more scenes cannot be opened than `rasters.max_bad_fraction` allows.
        NoTilesError: no tile fits the scenes, or a split stays empty.
        ConfigError: scenes whose pixels mean different things would be mixed.
    """
    discovery = discover(rasters)
    _check_failures(discovery, rasters.max_bad_fraction)
    scenes = discovery.scenes
    physical = rasters.radiometry == "physical"
    if not physical:
        _check_radiometry(scenes)
    dtype = "float32" if physical else np.result_type(*(np.dtype(scene.dtype) for scene in scenes)).name
    sharded, shards = _shard(plan_tiles(scenes, tiles, discovery.area), scenes, dtype)
    return SetPlan(
        scenes=scenes,
        unreadable=tuple(discovery.unreadable),
        files=discovery.files,
        tiles=sharded,
        shards=shards,
        dtype=dtype,
        physical=physical,
        cautions=_cautions(scenes, tiles.size),
    )


def _cautions(scenes: list[Scene], size: int | None) -> tuple[str, ...]:
    """Say that pictures are cut up, which few people want."""
    cut = [scene for scene in scenes if size and scene.grid.crs is None and (scene.grid.height, scene.grid.width) != (size, size)]
    if not cut:
        return ()
    first = f"{cut[0].scene_id} of {cut[0].grid.height} x {cut[0].grid.width} pixels"
    told = (
        f"{len(cut):,} pictures without coordinates, such as {first}, are cut into windows of {size} x {size}; "
        "set tiles.size: null to take each picture whole"
    )
    return (told,)


def _check_failures(discovery: Discovery, limit: float) -> None:
    if discovery.left_out > limit * discovery.listed:
        named = first_few([f"{uri}: {reason}" for uri, reason in discovery.unreadable])
        raise TooManyFailuresError(
            f"{discovery.left_out} of {discovery.listed} scenes cannot be opened ({len(discovery.unreadable)} files), more than "
            f"rasters.max_bad_fraction {limit} allows: {named}; replace the files, leave them out, or raise rasters.max_bad_fraction"
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
    windows = _windows(planned)
    order: list[np.ndarray[Any, Any]] = []
    for scene_id in sorted(set(of_scene.tolist())):
        members = np.flatnonzero(of_scene == scene_id)
        order.append(members[superblock_order(windows[members], by_scene[scene_id].block)])
    reading = np.concatenate(order)
    place = np.empty(len(reading), np.int64)
    place[reading] = np.arange(len(reading))
    shard = _divided(_chip_bytes(windows, scenes, dtype)[reading])
    table = planned.append_column("shard", pa.array(shard[place], pa.int32())).append_column("order", pa.array(place))
    return table, int(shard[-1]) + 1


def _divided(chip_bytes: FloatArray) -> IntArray:
    """Return the shard of each tile (n,), in the order of reading; a shard is as full as memory and the wish for many shards allow."""
    most_tiles = max(_MIN_SHARD_TILES, -(-len(chip_bytes) // _MIN_SHARDS))
    shards = np.empty(len(chip_bytes), np.int64)
    shard, tiles, held = 0, 0, 0.0
    for place, size in enumerate(chip_bytes.tolist()):
        if tiles == most_tiles or (tiles and held + size > _SHARD_BYTES):
            shard, tiles, held = shard + 1, 0, 0.0
        shards[place], tiles, held = shard, tiles + 1, held + size
    return shards


def _windows(tiles: pa.Table) -> IntArray:
    return np.column_stack([tiles[name].to_numpy() for name in _WINDOW]).astype(np.int64)


def _chip_bytes(windows: IntArray, scenes: list[Scene], dtype: str) -> FloatArray:
    """Return the bytes of each tile's pixels (n,)."""
    return (windows[:, 2] * windows[:, 3] * len(scenes[0].assets) * np.dtype(dtype).itemsize).astype(np.float64)


def _windows_by_scene(tiles: pa.Table) -> Iterator[tuple[str, IntArray]]:
    of_scene, windows = np.asarray(tiles["scene_id"].to_pylist()), _windows(tiles)
    return ((scene_id, windows[of_scene == scene_id]) for scene_id in sorted(set(of_scene.tolist())))


class _Reads(NamedTuple):
    """What reading the tiles of one scene takes."""

    blocks: int
    """Raster blocks, of one band."""
    block_bytes: int
    """Decoded, of all bands."""
    group_bytes: int
    """Of the largest read, with its mask of valid pixels."""


def _reads_of(scene: Scene, windows: IntArray) -> _Reads:
    groups = plan_reads(windows, scene.block, (scene.grid.height, scene.grid.width))
    pixel_bytes = np.dtype(scene.dtype).itemsize * len(scene.assets)
    blocks = len(_blocks_touched(groups, scene.block))
    largest = max(group.window.height * group.window.width for group in groups)
    return _Reads(blocks, blocks * scene.block[0] * scene.block[1] * pixel_bytes, largest * (pixel_bytes + 1))


def _blocks_touched(groups: list[ReadGroup], block: tuple[int, int]) -> set[tuple[int, int]]:
    rows, cols = block
    touched: set[tuple[int, int]] = set()
    for group in groups:
        window = group.window
        for row in range(window.row // rows, (window.row + window.height - 1) // rows + 1):
            touched |= {(row, col) for col in range(window.col // cols, (window.col + window.width - 1) // cols + 1)}
    return touched
