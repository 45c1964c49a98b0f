"""Tiles cut from a raster in a bucket: ours beside a script that opens and reads each tile with rasterio.

Both sides run under the same GDAL settings, with the same number of threads, over the same windows, each run in a fresh process, so that no
cache of an earlier run helps. Only reading is timed: neither the start of the process nor (ours) reading the header when a set is planned.
The script reads in the order in which the sampler gives the windows, and in that of the tile table.
Speed is measured against the server itself; bytes are counted, and requests held back, by a proxy in front of it.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.transform
import rasterio.windows
import scipy.ndimage

from benchmarks import command
from benchmarks.proxy import Counter, counting
from rayjobs.config import build
from rayjobs.errors import UnreadableTileError
from rayjobs.geo import Grid, IntArray
from rayjobs.rasters import gdal
from rayjobs.rasters.blocks import superblock_order
from rayjobs.rasters.reader import Pixels, RasterReader
from rayjobs.rasters.section import RastersSection
from rayjobs.rasters.sources import discover
from rayjobs.tiles.samplers import SAMPLERS, scene_rng
from rayjobs.tiles.table import tile_ids
from tests import seaweed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SIDE, BLOCK, TILE, BANDS = 8192, 512, 64, 3
THREADS = 4
"""As many as `rayjobs.sample` runs per worker; the script gets the same."""
LATENCY_S = 0.02
URI = "s3://sampling/raster.tif"
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cluster": ("cluster", {"clusters": 200, "tiles_per_cluster": 16, "radius": 4.0}),
    "sparse": ("cluster", {"clusters": 100, "tiles_per_cluster": 16, "radius": 4.0}),
    "random": ("random", {"count": 3200}),
    "grid": ("grid", {}),
}
"""Samplers and their settings. How much ours saves depends on how many tiles share a block: 100 clusters cover a tenth of the raster, 200 a
fifth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One side's reading of one set of windows."""

    tiles: int
    seconds: float
    cpu_s: float
    """Of the process that reads, all its threads."""
    checksum: int
    """Sum of all pixels, equal on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of one side's runs."""

    tiles_per_s: float
    cpu_ms_per_tile: float
    kilobytes_per_tile: float
    requests_per_tile: float


def make_raster(path: Path, side: int = SIDE) -> None:
    """Write smooth ground with a little noise, which deflates to about half like imagery does."""
    rng = np.random.default_rng(0)
    part = 1024
    transform = rasterio.transform.from_origin(5e5, 5e6, 10, 10)
    profile = {
        "driver": "GTiff",
        "width": side,
        "height": side,
        "count": BANDS,
        "dtype": "uint8",
        "crs": "EPSG:32631",
        "transform": transform,
    }
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "predictor": 2, "interleave": "pixel"}
    with rasterio.open(path, "w", **profile, **layout, num_threads="ALL_CPUS") as file:
        for row in range(0, side, part):
            for col in range(0, side, part):
                ground = np.stack([scipy.ndimage.zoom(rng.normal(120, 40, (32, 32)), part // 32, order=1) for _ in range(BANDS)])
                ground += rng.normal(0, 1.2, ground.shape)
                window = rasterio.windows.Window(col, row, part, part)
                file.write(ground.clip(0, 255).astype(np.uint8), window=window)


def windows_of(case: str) -> IntArray:
    """Return (n, 4) windows of a case, in the order in which its sampler gives them."""
    kind, settings = CASES[case]
    grid = Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=SIDE, width=SIDE)
    windows = SAMPLERS[kind](grid, scene_rng(0, "raster"), size=TILE, **settings).windows
    # of the grid, the first rows: whole rows of blocks, as a set of the whole raster would be read
    return windows[: (SIDE // TILE) * (BLOCK // TILE) * 2] if kind == "grid" else windows


def ours(windows: IntArray) -> Run:
    """Read as a worker of `rayjobs sample` does: in the order of super-blocks, in one run per thread."""
    scene = discover(build(RastersSection, {"sources": [{"kind": "files", "uris": [URI]}]})).scenes[0]

    def read(part: IntArray) -> int:
        with gdal.environment(), RasterReader() as reader:
            answers = reader.read_many(scene, part)
        return sum(_sum(pixels) for pixels in answers)

    return _timed(lambda: _in_threads(read, windows[superblock_order(windows, scene.block)]), len(windows))


def theirs(windows: IntArray) -> Run:
    """Open the file and read the window, tile by tile."""

    def read(part: IntArray) -> int:
        total = 0
        with gdal.environment(s3=True):
            for row, col, height, width in part.tolist():
                with rasterio.open(URI.replace("s3://", "/vsis3/")) as file:
                    total += int(file.read(window=rasterio.windows.Window(col, row, width, height)).sum(dtype=np.int64))
        return total

    return _timed(lambda: _in_threads(read, windows), len(windows))


def theirs_by_id(windows: IntArray) -> Run:
    """Do the same in the order of the tile table, which is sorted by an id that says nothing of place."""
    return theirs(windows[np.argsort(tile_ids("raster", windows))])


SIDES: Mapping[str, Callable[[IntArray], Run]] = {"ours": ours, "theirs": theirs, "theirs by id": theirs_by_id}


def _sum(pixels: Pixels | UnreadableTileError) -> int:
    if isinstance(pixels, UnreadableTileError):
        raise pixels
    return int(pixels.values.sum(dtype=np.int64))


def _in_threads(read: Callable[[IntArray], int], windows: IntArray) -> int:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(read, np.array_split(windows, THREADS)))


def _timed(work: Callable[[], int], tiles: int) -> Run:
    begun, cpu = time.perf_counter(), time.process_time()
    checksum = work()
    return Run(tiles=tiles, seconds=time.perf_counter() - begun, cpu_s=time.process_time() - cpu, checksum=checksum)


def _afresh(side: str, windows: IntArray, environment: Mapping[str, str]) -> Run:
    """Run one side in a process of its own, which starts with these variables."""
    os.environ.update(environment)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(SIDES[side], windows).result()


def measure(case: str, server: seaweed.S3Server, counter: Counter, *, latency_s: float, quick: bool) -> dict[str, Row]:
    """Measure both sides in turn on the windows of one case."""
    windows = windows_of(case)
    counted_at = {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{counter.port}"}
    timed_at = counted_at if latency_s else server.environment
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for _ in range(1 if quick else 3):
        for side, of_side in runs.items():
            counter.reset(delay_s=latency_s)
            of_side.append(_afresh(side, windows, timed_at))
    if len({run.checksum for of_side in runs.values() for run in of_side}) > 1:
        raise RuntimeError(f"the two sides read different pixels ({case})")
    rows = {}
    for side, of_side in runs.items():
        counter.reset(delay_s=0)
        _afresh(side, windows, counted_at)
        rows[side] = Row(
            tiles_per_s=len(windows) / statistics.median(run.seconds for run in of_side),
            cpu_ms_per_tile=1e3 * statistics.median(run.cpu_s for run in of_side) / len(windows),
            kilobytes_per_tile=counter.fetched / 1e3 / len(windows),
            requests_per_tile=counter.requests / len(windows),
        )
    return rows


def figures_of(rows: Mapping[str, Row], suffix: str) -> dict[str, float]:
    """Return the figures of one comparison, ours over theirs; `_by_id` stands for theirs in the order of the tile table."""
    mine, other, by_id = (rows[side] for side in SIDES)
    found = {
        "tiles_per_s_ratio": mine.tiles_per_s / other.tiles_per_s,
        "bytes_ratio": mine.kilobytes_per_tile / other.kilobytes_per_tile,
        "tiles_per_s_ratio_by_id": mine.tiles_per_s / by_id.tiles_per_s,
        "bytes_ratio_by_id": mine.kilobytes_per_tile / by_id.kilobytes_per_tile,
        "cpu_ms_per_tile": mine.cpu_ms_per_tile,
        "tiles_per_s": mine.tiles_per_s,
    }
    return {name + suffix: round(value, 4) for name, value in found.items()}


def line(row: Row) -> str:
    """Return a row of the table, without its names."""
    return f"{row.tiles_per_s:>10,.0f}{row.cpu_ms_per_tile:>13.2f}{row.kilobytes_per_tile:>10.1f}{row.requests_per_tile:>15.3f}"


def run(*, quick: bool) -> dict[str, float]:
    """Measure everything, print the table, and return the figures."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="sampling-") as folder, seaweed.serve() as server:
        path = Path(folder, "raster.tif")
        make_raster(path)
        server.bucket("sampling")
        server.upload(path, URI)
        say = functools.partial(print, flush=True)
        say(
            f"raster {SIDE} x {SIDE} x {BANDS} uint8, blocks of {BLOCK}, {path.stat().st_size / 1e6:.0f} MB; {THREADS} threads on each side"
        )
        say(f"{'case':<16}{'side':<14}{'tiles/s':>10}{'CPU ms/tile':>13}{'kB/tile':>10}{'requests/tile':>15}")
        with counting(int(server.endpoint.rpartition(":")[2])) as counter:
            for latency_s, ending in ((0.0, ""),) if quick else ((0.0, ""), (LATENCY_S, "_20ms")):
                for case in CASES:
                    rows = measure(case, server, counter, latency_s=latency_s, quick=quick)
                    for side, row in rows.items():
                        say(f"{case + ending:<16}{side:<14}{line(row)}")
                    figures |= figures_of(rows, ("" if case == "cluster" else f"_{case}") + ending)
    return figures


def main() -> None:
    """Run from the command line."""
    options = command.parser("sampling", __doc__, quick="one run of each instead of three, and none with 20 ms added").parse_args()
    figures = run(quick=options.quick)
    if options.json:
        command.end("sampling", figures, ("rayjobs", "rasterio", "numpy"), gdal=rasterio.__gdal_version__)


if __name__ == "__main__":
    main()
