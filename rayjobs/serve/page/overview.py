"""Pictures of the scenes for the map: the set's own chips laid side by side and warped to web Mercator.

The imagery itself may be out of the service's reach; the chips lie in the workspace. Of a large set a picture shows what its first
shards hold, so that the cost of one picture has a bound.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pyarrow.compute as pc
import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import Resampling, calculate_default_transform, reproject, transform_bounds

from rayjobs import geo
from rayjobs.rasters.scenes import Scene, read_scenes
from rayjobs.tiles.chips import read_chips, shard_name
from rayjobs.tiles.render import picture, png
from rayjobs.tiles.table import read_geoparquet, read_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from rayjobs.storage import Version
    from rayjobs.tiles.chips import Chip

Image = np.ndarray[Any, np.dtype[np.uint8]]

WEB_MERCATOR = "EPSG:3857"
MERCATOR_LATITUDE = 85.0
"""Degrees; web Mercator ends soon after."""

_HALF = 127
"""Of 255: pixels that are less opaque are left out."""
_SIDE = 1024
"""Pixels along a picture's longer side."""
_MOST_PICTURES = 32
_MOST_BYTES = 2**29
"""Of chips that are read for one picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Where a scene's picture lies."""

    scene: Scene
    bounds: tuple[float, float, float, float]
    """west, south, east, north in degrees."""


class Overviews:
    """The pictures of one set, each made when it is first asked for, and kept."""

    def __init__(self, source: Version) -> None:
        """Take the set; reads its tables only."""
        self._source = source
        self._tiles = read_tiles(source.read("tiles.parquet"))
        self._lock = threading.Lock()
        self._made: dict[int, bytes] = {}
        self.outlines = _outlines(read_scenes(read_geoparquet(source.read("scenes.parquet"))), self._tiles)
        """Of the scenes that have the most tiles, earliest first."""

    def png(self, number: int) -> bytes:
        """Return the picture of the scene `outlines[number]`."""
        with self._lock:  # two requests for one picture make it once
            if number not in self._made:
                self._made[number] = self._make(self.outlines[number])
            return self._made[number]

    def _make(self, outline: Outline) -> bytes:
        grid = outline.scene.grid
        mosaic = _Mosaic(grid.height, grid.width)
        own = self._tiles.filter(pc.equal(self._tiles["scene_id"], outline.scene.scene_id))
        windows = {row["tile_id"]: row for row in own.select(["tile_id", "row", "col", "height", "width"]).to_pylist()}
        names, mean, std = (self._source.manifest[key] for key in ("bands", "band_mean", "band_std"))
        for chip in self._chips(own, windows.keys()):
            if not mosaic.is_full(windows[chip.tile_id]):  # tiles may overlap
                row = windows[chip.tile_id]
                inside = slice(row["height"]), slice(row["width"])  # without what a tile at the edge was filled up with
                mosaic.lay(picture(chip, names, mean, std)[inside], chip.valid[inside], row)
        pixels, opacity = _warped(mosaic, grid)
        return png(pixels, opacity=opacity)

    def _chips(self, tiles: pa.Table, wanted: Any) -> Iterator[Chip]:
        """Yield chips shard by shard, until the bytes that one picture may take are read."""
        left = _MOST_BYTES
        for shard in sorted(set(tiles["shard"].to_pylist())):
            entry = self._source.entry(shard_name(shard))
            left -= entry.size
            if left < 0:
                return
            yield from read_chips(self._source.read(entry.name), wanted)


def _outlines(scenes: list[Scene], tiles: pa.Table) -> list[Outline]:
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(tiles["scene_id"]).to_pylist()}
    placed = [scene for scene in scenes if counts.get(scene.scene_id) and _fits_map(scene)]
    largest = sorted(placed, key=lambda scene: -counts[scene.scene_id])[:_MOST_PICTURES]
    shown = sorted(largest, key=lambda scene: (scene.datetime.isoformat() if scene.datetime else "", scene.scene_id))
    return [Outline(scene=scene, bounds=bounds) for scene in shown if (bounds := _bounds(scene.grid))]


def _fits_map(scene: Scene) -> bool:
    """Whether one rectangle of web Mercator can hold a scene: neither over the antimeridian nor at a pole."""
    if scene.grid.crs is None or scene.footprint is None:
        return False
    west, south, east, north = geo.bbox_of(scene.footprint)
    return west < east and max(-south, north) < MERCATOR_LATITUDE


def _bounds(grid: geo.Grid) -> tuple[float, float, float, float] | None:
    """Return the box of a scene's picture; None for other bodies than the Earth, whose coordinates do not become web Mercator."""
    try:
        transform, width, height = _target(grid)
    except RasterioError:
        return None
    corners = rasterio.transform.array_bounds(height, width, transform)
    west, south, east, north = transform_bounds(WEB_MERCATOR, "EPSG:4326", *corners)
    return west, south, east, north


def _target(grid: geo.Grid) -> tuple[rasterio.Affine, int, int]:
    """Return transform, width and height of a scene's picture."""
    corners = [grid.xy(np.array(col), np.array(row)) for col in (0, grid.width) for row in (0, grid.height)]
    xs, ys = [float(x) for x, _ in corners], [float(y) for _, y in corners]
    box = (min(xs), min(ys), max(xs), max(ys))
    transform, width, height = calculate_default_transform(grid.crs, WEB_MERCATOR, grid.width, grid.height, *box)
    size = _fitted(height, width)
    return transform * transform.scale(width / size[1], height / size[0]), size[1], size[0]


def _fitted(height: int, width: int) -> tuple[int, int]:
    """Return a shape shrunk so that its longer side keeps to `_SIDE`."""
    shrink = max(1.0, max(height, width) / _SIDE)
    return max(1, round(height / shrink)), max(1, round(width / shrink))


class _Mosaic:
    """A scene at a coarse resolution, filled chip by chip."""

    def __init__(self, height: int, width: int) -> None:
        """Begin empty."""
        shape = _fitted(height, width)
        self.scale = shape[0] / height, shape[1] / width
        self.pixels: Image = np.zeros((*shape, 3), np.uint8)
        self.opacity: Image = np.zeros(shape, np.uint8)

    def _place(self, window: dict[str, Any]) -> tuple[slice, slice]:
        """Return rows and columns of the mosaic that a window covers."""
        top, bottom = (round((window["row"] + extent) * self.scale[0]) for extent in (0, window["height"]))
        left, right = (round((window["col"] + extent) * self.scale[1]) for extent in (0, window["width"]))
        return slice(top, bottom), slice(left, right)

    def is_full(self, window: dict[str, Any]) -> bool:
        """Whether every pixel of a window is laid already; so it is of a window smaller than a pixel."""
        return bool(self.opacity[self._place(window)].all())

    def lay(self, pixels: Image, valid: np.ndarray[Any, np.dtype[np.bool_]], window: dict[str, Any]) -> None:
        """Lay a chip's picture where its window is."""
        place = self._place(window)
        height, width = self.opacity[place].shape
        small = np.asarray(PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BOX))
        cover = np.asarray(PIL.Image.fromarray(valid.astype(np.uint8) * 255).resize((width, height), PIL.Image.Resampling.BOX)) > _HALF
        self.pixels[place][cover] = small[cover]
        self.opacity[place][cover] = 255


def _warped(mosaic: _Mosaic, grid: geo.Grid) -> tuple[Image, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return a mosaic in web Mercator: (height, width, 3) and where it is opaque."""
    transform, width, height = _target(grid)
    source = rasterio.Affine(*grid.transform) * rasterio.Affine.scale(1 / mosaic.scale[1], 1 / mosaic.scale[0])
    layers = np.concatenate([mosaic.pixels.transpose(2, 0, 1), mosaic.opacity[None]])
    warped = np.zeros((len(layers), height, width), np.uint8)
    reproject(
        layers,
        warped,
        src_transform=source,
        src_crs=grid.crs,
        src_alpha=len(layers),
        dst_transform=transform,
        dst_crs=WEB_MERCATOR,
        dst_alpha=len(layers),
        resampling=Resampling.bilinear,
    )
    return warped[:3].transpose(1, 2, 0), warped[3] > _HALF
