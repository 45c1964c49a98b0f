"""What runs on a worker: read the tiles of one shard, write the shard, tell what became of each tile.

A shard that an interrupted command left behind is not read again: only its outcome is. One with tiles that could not be read is read
again, since the file or the network may be whole by now. One whose reader died is read with care: a file may have killed it.
"""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayjobs.errors import UnreadableTileError
from rayjobs.rasters.gdal import environment
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.radiometry import physical
from rayjobs.rasters.reader import Pixels, RasterReader
from rayjobs.rasters.scenes import read_scenes
from rayjobs.sample.careful import CarefulReader
from rayjobs.storage import Store, deposit, digest_of
from rayjobs.tiles import chips

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rayjobs.geo import BoolArray
    from rayjobs.rasters.scenes import Scene

THREADS = 4
"""Readers per worker: enough to hide a bucket's latency, few enough for one core to decode what they fetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """What every shard of a set has in common."""

    store: Store
    prefix: str
    """Folder of the set's version in the workspace, ending in `/`."""
    dtype: str
    """numpy name of the chips' dtype."""
    physical: bool
    """Whether chips hold values times scale plus offset, as float32."""
    tile_size: int | None
    """Side of a tile; windows that the scene's edge has cut become chips of this size. None: chips are as their windows."""
    min_valid_fraction: float
    label_map: LabelMap | None


def read_shard(entry: Mapping[str, Any], *, plan: ReadPlan) -> dict[str, Any]:
    """Make sure that a shard lies in the workspace, and report on it.

    Args:
        entry: `shard` (its number), `tiles` (Arrow IPC bytes: tile_id, scene_id, window and split, in the order of reading) and `scenes`
            (likewise, as `scenes_table`): those that the tiles lie in.
        plan: what all shards share.

    Returns:
        `shard`, `digest` (of the file, as a dict), `outcome` (Arrow IPC bytes) and `sums`.
    """
    name = chips.shard_name(entry["shard"])
    left = plan.store.read_tagged(plan.prefix + name)
    if left and _is_whole(left.data):
        data, digest = left.data, digest_of(name, left.data)
    else:
        scenes = {scene.scene_id: scene for scene in read_scenes(from_ipc(entry["scenes"]))}
        begun = f"{plan.prefix}begun/{entry['shard']:05d}"
        careful = plan.store.size(begun) is not None  # who wrote that has died since
        plan.store.write(begun, b"1")
        data = _read(from_ipc(entry["tiles"]), scenes, plan, careful=careful)
        digest = deposit(plan.store, plan.prefix, name, data)  # a shard with holes may have the name
        plan.store.delete(begun)
    found = chips.outcome(data)
    return {"shard": entry["shard"], "digest": dataclasses.asdict(digest), "outcome": to_ipc(found.table), "sums": found.sums}


def to_ipc(table: pa.Table) -> bytes:
    """Return a table as Arrow IPC bytes, which travel in a row of Ray Data."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    """Read what `to_ipc` wrote."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def _is_whole(data: bytes) -> bool:
    return chips.UNREADABLE not in chips.outcome(data).table["status"].to_pylist()


def _read(tiles: pa.Table, scenes: Mapping[str, Scene], plan: ReadPlan, *, careful: bool) -> bytes:
    """Read tiles in runs, each run by one thread with its own handles, and return the shard; with care, one by one."""
    threads = 1 if careful else min(THREADS, tiles.num_rows)
    make: Callable[[], RasterReader | CarefulReader] = CarefulReader if careful else RasterReader
    bounds = np.linspace(0, tiles.num_rows, threads + 1).astype(int)
    runs = [tiles.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    with ThreadPoolExecutor(len(runs)) as pool:
        results = list(pool.map(lambda run: _read_run(run, scenes, plan, make()), runs))
    rows = [row for rows, _ in results for row in rows]
    sums = _add([entry for _, run_sums in results for entry in run_sums])
    return chips.shard_bytes(rows, plan.dtype, sums)


def _read_run(
    tiles: pa.Table, scenes: Mapping[str, Scene], plan: ReadPlan, opened: RasterReader | CarefulReader
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read tiles scene by scene; return their rows and the sums of those in the training split."""
    rows: list[dict[str, Any]] = []
    sums: list[dict[str, Any]] = []
    with environment(), opened as reader:
        for scene_id in dict.fromkeys(tiles["scene_id"].to_pylist()):
            of_scene = tiles.filter(pa.compute.equal(tiles["scene_id"], scene_id))
            scene = scenes[scene_id]
            windows = np.column_stack([of_scene[name].to_numpy() for name in ("row", "col", "height", "width")])
            pixels = reader.read_many(scene, windows)
            labels = _labels(scene, windows, plan.label_map)
            splits = of_scene["split"].to_pylist()
            for position, tile_id in enumerate(of_scene["tile_id"].to_pylist()):
                row, chip = _judge(tile_id, pixels[position], scene, plan)
                if chip is not None:
                    row |= labels[position]
                    if splits[position] == "train":
                        sums.append(_sums(chip))
                rows.append(row)
    return rows, sums


def _judge(tile_id: str, pixels: Pixels | UnreadableTileError, scene: Scene, plan: ReadPlan) -> tuple[dict[str, Any], chips.Chip | None]:
    if isinstance(pixels, UnreadableTileError):
        return chips.row_without_pixels(tile_id, chips.UNREADABLE, str(pixels)), None
    fraction = float(pixels.valid.mean())
    if fraction < plan.min_valid_fraction:
        reason = f"valid_fraction {fraction:.3f} is below {plan.min_valid_fraction}"
        return chips.row_without_pixels(tile_id, chips.SPARSE, reason, fraction), None
    values = physical(pixels.values, list(scene.assets.values())) if plan.physical else pixels.values
    values, valid = _padded(values.astype(plan.dtype, copy=False), pixels.valid, plan.tile_size)
    chip = chips.Chip(tile_id=tile_id, pixels=values, valid=valid)
    return chips.row(chip), chip


def _padded(values: np.ndarray[Any, Any], valid: BoolArray, size: int | None) -> tuple[np.ndarray[Any, Any], BoolArray]:
    """Fill pixels (bands, h, w) and what is valid (h, w) of a window that ends at the scene's edge up to a whole tile."""
    down, across = ((size or 0) - side for side in valid.shape)
    if max(down, across) <= 0:
        return values, valid
    return np.pad(values, ((0, 0), (0, down), (0, across))), np.pad(valid, ((0, down), (0, across)))


def _labels(scene: Scene, windows: np.ndarray[Any, Any], label_map: LabelMap | None) -> Sequence[dict[str, Any]]:
    if label_map is None:
        return [{}] * len(windows)
    found = label_map.fractions_many(scene.grid, windows)
    return [{"label_fractions": entry.fractions.tolist(), "label_coverage": float(entry.coverage)} for entry in found]


def _sums(chip: chips.Chip) -> dict[str, Any]:
    """Return count, sum and sum of squares of each band's valid pixels."""
    sums, squares = [], []
    for band in chip.pixels:  # one at a time, since each takes float64
        values = band[chip.valid].astype(np.float64)
        sums.append(float(values.sum()))
        squares.append(float((values**2).sum()))
    return {"count": int(chip.valid.sum()), "sum": sums, "squares": squares}


def _add(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not entries:
        return None
    return {
        "count": sum(entry["count"] for entry in entries),
        "sum": np.sum([entry["sum"] for entry in entries], axis=0).tolist(),
        "squares": np.sum([entry["squares"] for entry in entries], axis=0).tolist(),
    }
