"""Classes of pixels, and class fractions of tiles, from a raster of codes or colours on any grid and in any CRS; looked up exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyproj
import shapely

from rayjobs.errors import ImageryError, LabelMapError
from rayjobs.geo import FloatArray, Grid, IntArray, Window, window_array
from rayjobs.rasters.blocks import plan_reads
from rayjobs.rasters.gdal import environment
from rayjobs.rasters.handles import FAULTS, Handle
from rayjobs.rasters.headers import Header, read_header
from rayjobs.rasters.palettes import Colour, class_names, nearest_classes
from rayjobs.rasters.scenes import Scene

_NODES = 5
"""Points per side of a tile that are transformed exactly; those between are interpolated by the polynomial through them."""
_TOLERANCE_PIXELS = 1e-3
"""Of the label raster: a tile whose interpolation is off by more, at points between the nodes, is transformed point by point."""
_EDGE_PIXELS = 1e-6
"""A centre on the edge of two label pixels, where grids are related, belongs to the later one, whichever way the rounding went."""
_CHUNK_PIXELS = 2**20
"""Tile pixels whose coordinates are held at once."""

T = TypeVar("T")
Transform = tuple[float, float, float, float, float, float]


class LabelFractions(NamedTuple):
    """What the label raster says of one tile."""

    fractions: np.ndarray[Any, np.dtype[np.float32]]
    """(n_classes,) share of each class among the pixels that have one; sums to 1, or all 0 where none has."""
    coverage: float
    """Share of the tile's pixels that have a listed class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMap:
    """A raster of classes. Its file is opened for each call, so that a value may be shared between threads and processes."""

    uri: str
    """Local path, `s3://` or `http(s)://`."""
    classes: Mapping[int, str] | None = None
    """Name of each code that counts; codes of one name are one class. None for a raster drawn in colours."""
    palette: Mapping[str, Colour] | None = None
    """Colour of each class of a raster drawn in colours; see `rayjobs.rasters.palettes`. None for a raster of codes."""
    tolerance: int = 15
    """Colours as far as this from all of the palette, as the sum of the differences in red, green and blue, have no class."""
    nodata: int | None = None
    """Code of missing pixels, or what their three colours all are; None: as the file says."""

    def __post_init__(self) -> None:
        """Refuse a raster that is both, or neither."""
        if (self.classes is None) == (self.palette is None):
            raise ValueError("a label map has either `classes` (names of codes) or a `palette` (colours of classes)")

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in the order of `LabelFractions.fractions`."""
        return class_names(self.palette) if self.palette is not None else tuple(dict.fromkeys((self.classes or {}).values()))

    def fractions(self, grid: Grid, window: Window) -> LabelFractions:
        """Return the class fractions of one tile; see `fractions_many`."""
        return self.fractions_many(grid, window_array([window]))[0]

    def fractions_many(self, grid: Grid, windows: IntArray) -> list[LabelFractions]:
        """Return the class fractions of tiles: each tile pixel takes the class of the label pixel that holds its centre.

        Pixels outside the label raster, nodata, codes that are not listed and colours that are like none of the palette have no class; nor
        have pixels that an alpha band or a mask of a raster drawn in colours hides.

        Args:
            grid: the scene's, with a CRS.
            windows: (n, 4) int: row, col, height, width in the scene's pixels.

        Raises:
            LabelMapError: the raster cannot be read, or tiles and labels cannot be related.
        """
        classes = len(self.names)
        return self._many(grid, windows, lambda found: _fractions(found, classes))

    def classes_many(self, grid: Grid, windows: IntArray) -> list[IntArray]:
        """Return the class of each pixel of tiles, (height, width) int64 each: a position in `names`, -1 where there is none.

        Args and errors as in `fractions_many`.
        """
        return self._many(grid, windows, lambda found: found)

    def _many(self, grid: Grid, windows: IntArray, answer: Callable[[IntArray], T]) -> list[T]:
        """Return what `answer` makes of the classes (height, width) of each tile."""
        windows = np.asarray(windows, np.int64).reshape(-1, 4)
        if grid.crs is None:
            raise LabelMapError(f"the label map {self.uri} cannot label images without coordinates; drop rasters.label_map")
        try:
            return self._looked_up(grid, windows, answer, fresh=False)
        except FAULTS:  # a remote answer may have been cut short
            try:
                return self._looked_up(grid, windows, answer, fresh=True)
            except FAULTS as error:
                raise LabelMapError(f"the label map {self.uri} cannot be read: {error}; replace the file") from error

    def _looked_up(self, grid: Grid, windows: IntArray, answer: Callable[[IntArray], T], *, fresh: bool) -> list[T]:
        answers: dict[int, T] = {}
        with environment():
            handle, header = self._opened(fresh=fresh)
            with handle.dataset:
                for positions, rows, cols in _label_pixels(grid, windows, header.grid):
                    for tile, found in self._classes(handle, header, rows, cols):
                        answers[int(positions[tile])] = answer(found)
        return [answers[position] for position in range(len(windows))]

    def files(self) -> tuple[str, ...]:
        """Return the addresses of the files that the raster lies in, its own first.

        Raises:
            LabelMapError: it cannot be opened.
        """
        with environment():
            handle, header = self._opened()
            handle.dataset.close()
        return header.files

    def check_overlap(self, scenes: Sequence[Scene]) -> None:
        """Make sure that the raster can be read and lies on the ground of at least one scene.

        Raises:
            LabelMapError: it does not.
        """
        with environment():
            handle, header = self._opened()
            handle.dataset.close()
        located = [scene.footprint for scene in scenes if scene.footprint is not None]
        if header.footprint is None:
            raise LabelMapError(f"the label map {self.uri} has no usable coordinate reference system; assign it one")
        if not located:
            raise LabelMapError(f"the label map {self.uri} cannot label images without coordinates; drop rasters.label_map")
        if not shapely.intersects(np.array(located, object), header.footprint).any():
            where, there = (tuple(round(float(edge), 3) for edge in shapely.total_bounds(shapes)) for shapes in (header.footprint, located))
            raise LabelMapError(
                f"the label map {self.uri} lies at {where} and overlaps none of the {len(scenes)} scenes, which lie at {there} "
                "(west, south, east, north); choose another map, or drop rasters.label_map"
            )

    def _opened(self, *, fresh: bool = False) -> tuple[Handle, Header]:
        try:
            handle = Handle.open(self.uri, fresh=fresh)
            header = read_header(self.uri, handle.dataset)
        except (*FAULTS, ImageryError, ValueError) as error:
            raise LabelMapError(f"the label map {self.uri} cannot be opened: {error}; check rasters.label_map.uri") from error
        if np.dtype(header.dtypes[0]).kind not in "ui" or header.grid.crs is None:
            raise LabelMapError(f"the label map {self.uri} must hold whole-number codes and have a CRS; it has {header.dtypes[0]}")
        if self.palette is not None and handle.palette is None and header.dtypes[:3] != ("uint8",) * 3:
            raise LabelMapError(
                f"the label map {self.uri} is no picture: it has {len(header.dtypes)} bands of {header.dtypes[0]}, and a palette needs "
                "red, green and blue as uint8, or a colour table; give rasters.label_map.classes instead of palette"
            )
        return handle, header

    def _classes(self, handle: Handle, header: Header, rows: IntArray, cols: IntArray) -> Iterator[tuple[int, IntArray]]:
        """Yield each of k tiles with the classes (h, w) of its pixels, whose label pixels are at `rows` and `cols` (k, h, w)."""
        legend = _Codes.of(self, header) if self.palette is None else _Colours.of(self, handle, header)
        shape = (header.grid.height, header.grid.width)
        inside = (rows >= 0) & (rows < shape[0]) & (cols >= 0) & (cols < shape[1])
        touching = inside.any(axis=(1, 2))
        for tile in np.flatnonzero(~touching).tolist():
            yield tile, np.full(inside.shape[1:], -1, np.int64)
        touched = np.flatnonzero(touching)
        boxes = [_box(rows[tile][inside[tile]], cols[tile][inside[tile]]) for tile in touched]
        for group in plan_reads(np.array(boxes, np.int64), header.block, shape):
            labels = legend.read(handle, group.window)
            for tile in touched[group.members].tolist():
                at, classes = inside[tile], np.full(inside.shape[1:], -1, np.int64)
                found = labels[:, rows[tile][at] - group.window.row, cols[tile][at] - group.window.col]
                classes[at] = legend.classes_of(found)
                yield tile, classes


class _Codes(NamedTuple):
    """Reads classes from a raster of codes."""

    codes: IntArray
    """The listed codes, sorted."""
    slots: IntArray
    """The class of each."""

    @classmethod
    def of(cls, label_map: LabelMap, header: Header) -> _Codes:
        """Take the codes of a label map but for nodata."""
        nodata = label_map.nodata if label_map.nodata is not None else header.nodata[0]
        classes, names = label_map.classes or {}, label_map.names
        codes = np.array(sorted(code for code in classes if code != nodata), np.int64)
        return cls(codes, np.array([names.index(classes[code]) for code in codes.tolist()], np.int64))

    def read(self, handle: Handle, window: Window) -> np.ndarray[Any, Any]:
        """Return (1, height, width) codes."""
        return handle.read([1], window)

    def classes_of(self, pixels: np.ndarray[Any, Any]) -> IntArray:
        """Return (n,) the class of each of (1, n) codes, -1 where it has none."""
        if not len(self.codes):
            return np.full(pixels.shape[1], -1, np.int64)
        at = np.searchsorted(self.codes, pixels[0]).clip(max=len(self.codes) - 1)
        return np.where(self.codes[at] == pixels[0], self.slots[at], -1)


class _Colours(NamedTuple):
    """Reads classes from a raster drawn in colours: three bands, or codes with a colour table."""

    palette: Mapping[str, Colour]
    tolerance: int
    nodata: float | None
    bands: tuple[int, ...]
    """Of red, green and blue, counted from 1; empty where there is a colour table."""

    @classmethod
    def of(cls, label_map: LabelMap, handle: Handle, header: Header) -> _Colours:
        """Find the bands of red, green and blue by what the file says of them, else take the first three."""
        named = tuple(header.names.index(colour) + 1 for colour in ("red", "green", "blue") if colour in header.names)
        nodata = label_map.nodata if label_map.nodata is not None else header.nodata[0]
        bands = () if handle.palette is not None else named if len(named) == len(_FIRST) else _FIRST
        return cls(label_map.palette or {}, label_map.tolerance, nodata, bands)

    def read(self, handle: Handle, window: Window) -> np.ndarray[Any, Any]:
        """Return (4, height, width) uint8: red, green, blue, and 0 where there is no class."""
        if handle.palette is not None:
            codes = handle.read([1], window)[0]
            pixels: np.ndarray[Any, Any] = handle.palette[codes].transpose(2, 0, 1).copy()
            pixels[3] = (pixels[3] > 0) & (codes != self.nodata)
            return pixels
        colours = handle.read(list(self.bands), window)
        hidden = (colours == self.nodata).all(axis=0)
        mask = handle.read_mask(window)
        there = ~hidden if mask is None else ~hidden & mask
        return np.concatenate([colours, there[None].astype(np.uint8)])

    def classes_of(self, pixels: np.ndarray[Any, Any]) -> IntArray:
        """Return (n,) the class of each of (4, n) pixels, -1 where it has none."""
        return np.where(pixels[3] > 0, nearest_classes(pixels[:3], self.palette, self.tolerance), -1)


_FIRST = (1, 2, 3)


def _box(rows: IntArray, cols: IntArray) -> tuple[int, int, int, int]:
    top, left = int(rows.min()), int(cols.min())
    return top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1


def _fractions(found: IntArray, classes: int) -> LabelFractions:
    counts = np.bincount(found[found >= 0], minlength=classes)
    total = int(counts.sum())
    return LabelFractions((counts / max(total, 1)).astype(np.float32), total / found.size)


def _label_pixels(grid: Grid, windows: IntArray, labels: Grid) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Yield positions (k,) of windows of one size with the label rows and columns (k, h, w) that hold their pixels' centres."""
    if grid.crs is None or labels.crs is None:
        raise ValueError("both grids need a CRS")
    transformer = pyproj.Transformer.from_crs(grid.crs, labels.crs, always_xy=True)
    for size in np.unique(windows[:, 2:], axis=0):
        alike = np.flatnonzero((windows[:, 2:] == size).all(axis=1))
        for start in range(0, len(alike), max(1, _CHUNK_PIXELS // int(size.prod()))):
            positions = alike[start : start + max(1, _CHUNK_PIXELS // int(size.prod()))]
            rows, cols = _transformed(grid, windows[positions], labels, transformer)
            yield positions, _floor(rows), _floor(cols)


def _floor(pixels: FloatArray) -> IntArray:
    return np.floor(np.where(np.isfinite(pixels), pixels + _EDGE_PIXELS, -1.0)).astype(np.int64)


def _transformed(grid: Grid, windows: IntArray, labels: Grid, transformer: pyproj.Transformer) -> tuple[FloatArray, FloatArray]:
    """Return label rows and columns (k, h, w), fractional, of the pixel centres of windows of one size.

    Projections are smooth over a tile: a polynomial through a few exact points agrees with the projection to a small part of a pixel,
    which is checked at points between them, and costs a hundredth.
    """
    height, width = windows[0, 2:].tolist()
    exact = _Exact(grid, labels, transformer)
    if min(height, width) <= 2 * _NODES:
        return exact(windows, np.arange(height), np.arange(width))
    down, across = np.linspace(0, height - 1, _NODES), np.linspace(0, width - 1, _NODES)
    nodes = exact(windows, down, across)
    between = ((down[1:] + down[:-1]) / 2, (across[1:] + across[:-1]) / 2)
    truth = exact(windows, *between)
    guess = [_interpolated(values, _weights(down, between[0]), _weights(across, between[1])) for values in nodes]
    error = np.max([np.abs(a - b).max(axis=(1, 2)) for a, b in zip(truth, guess, strict=True)], axis=0)
    rows, cols = (_interpolated(values, _weights(down, np.arange(height)), _weights(across, np.arange(width))) for values in nodes)
    rough = np.flatnonzero(~(error < _TOLERANCE_PIXELS))  # not a number counts as rough
    if len(rough):
        rows[rough], cols[rough] = exact(windows[rough], np.arange(height), np.arange(width))
    return rows, cols


class _Exact(NamedTuple):
    """Transforms pixel centres of a scene to fractional pixels of the label raster."""

    grid: Grid
    labels: Grid
    transformer: pyproj.Transformer

    def __call__(self, windows: IntArray, down: FloatArray | IntArray, across: FloatArray | IntArray) -> tuple[FloatArray, FloatArray]:
        """Return rows and columns (k, len(down), len(across)) at offsets of pixels within each window."""
        row = windows[:, 0, None, None] + np.asarray(down, np.float64)[None, :, None] + 0.5
        col = windows[:, 1, None, None] + np.asarray(across, np.float64)[None, None, :] + 0.5
        col, row = np.broadcast_arrays(col, row)
        x, y = self.transformer.transform(*self.grid.xy(col, row))
        a, b, c, d, e, f = self.labels.transform
        det = a * e - b * d
        dx, dy = np.asarray(x, np.float64) - c, np.asarray(y, np.float64) - f
        with np.errstate(invalid="ignore"):
            return (a * dy - d * dx) / det, (e * dx - b * dy) / det


def _weights(nodes: FloatArray, at: FloatArray | IntArray) -> FloatArray:
    """Return (len(at), len(nodes)) weights of Lagrange's polynomial."""
    at = np.asarray(at, np.float64)
    weights = np.ones((len(at), len(nodes)))
    for i, node in enumerate(nodes):
        for j, other in enumerate(nodes):
            if i != j:
                weights[:, i] *= (at - other) / (node - other)
    return weights


def _interpolated(values: FloatArray, down: FloatArray, across: FloatArray) -> FloatArray:
    """Interpolate (k, nodes, nodes) to (k, len(down), len(across))."""
    with np.errstate(invalid="ignore"):
        found: FloatArray = down @ values @ across.T
    return found
