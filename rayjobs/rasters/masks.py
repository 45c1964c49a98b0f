"""Which pixels are valid: nodata values, values that are no numbers, and quality layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.geo import BoolArray, Grid, IntArray, Window
from rayjobs.rasters.handles import Handle, grid_of

if TYPE_CHECKING:
    from rayjobs.rasters.scenes import QualityLayer

_SAME_GRID_PIXELS = 0.01
"""Grids whose corners differ by less than this share of a pixel are one grid, written with other rounding."""


def mark_missing(valid: BoolArray, values: np.ndarray[Any, Any], nodata: float | None) -> None:
    """Set `valid` to False where a band has no value; in place.

    A float that is not finite is never valid. Floats are compared with nodata as GDAL's masks do: to within two units in the last place.

    Args:
        valid: (h, w) True = valid.
        values: (h, w) raw values of one band.
        nodata: raw value of missing pixels.
    """
    if values.dtype.kind == "f":
        np.logical_and(valid, np.isfinite(values), out=valid)
        if nodata is not None and math.isfinite(nodata):
            valid &= ~_near(values, values.dtype.type(nodata))
    elif nodata is not None and float(nodata).is_integer():
        limits = np.iinfo(values.dtype)
        if limits.min <= nodata <= limits.max:
            np.logical_and(valid, values != values.dtype.type(int(nodata)), out=valid)


def _near(values: np.ndarray[Any, Any], nodata: Any) -> BoolArray:
    epsilon = np.finfo(values.dtype).eps
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.abs(values - nodata) < 2 * epsilon * np.abs(values + nodata)
    return np.asarray((values == nodata) | near, np.bool_)


def usable(layer: QualityLayer, handle: Handle, grid: Grid, window: Window) -> BoolArray:
    """Return which pixels of a window the quality layer lets pass.

    The layer may have another resolution and extent: the pixel of the layer that holds the centre of a pixel speaks for it. Pixels outside
    the layer do not pass.

    Args:
        layer: bits and classes of pixels that do not pass.
        handle: the layer, open.
        grid: the scene's.
        window: in the scene's pixels.

    Returns:
        (h, w) True = passes.
    """
    own = grid_of(handle.dataset)
    rows, cols = layer_pixels(grid, own, window)
    rows_in, cols_in = (rows >= 0) & (rows < own.height), (cols >= 0) & (cols < own.width)
    passes = np.zeros((window.height, window.width), np.bool_)
    if not rows_in.any() or not cols_in.any():
        return passes
    rows, cols = rows[rows_in], cols[cols_in]
    top, left = int(rows.min()), int(cols.min())
    part = Window(row=top, col=left, height=int(rows.max()) - top + 1, width=int(cols.max()) - left + 1)
    judged = _judged(handle.read([layer.band_index], part)[0], layer)
    passes[np.ix_(rows_in, cols_in)] = judged[np.ix_(rows - top, cols - left)]
    return passes


def _judged(codes: np.ndarray[Any, Any], layer: QualityLayer) -> BoolArray:
    unusable = np.isin(codes, np.asarray(layer.classes)) if layer.classes else np.zeros(codes.shape, np.bool_)
    for bit in layer.bits:
        unusable |= (codes.astype(np.int64, copy=False) >> bit) & 1 == 1
    return np.asarray(~unusable, np.bool_)


def layer_pixels(grid: Grid, own: Grid, window: Window) -> tuple[IntArray, IntArray]:
    """Return (h,) rows and (w,) columns of the layer that hold the centres of a window's pixels; the grids are `same_grid` or `aligned`."""
    if same_grid(grid, own):
        return np.arange(window.row, window.row + window.height), np.arange(window.col, window.col + window.width)
    a, _, c, _, e, f = grid.transform
    own_a, _, own_c, _, own_e, own_f = own.transform
    x = a * (window.col + np.arange(window.width) + 0.5) + c
    y = e * (window.row + np.arange(window.height) + 0.5) + f
    # a centre on the edge of two pixels of the layer must not fall to either by rounding
    cols, rows = (x - own_c) / own_a + 1e-6, (y - own_f) / own_e + 1e-6
    return np.floor(rows).astype(np.int64), np.floor(cols).astype(np.int64)


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two grids have the same pixels, but for rounding."""
    if (one.crs, one.height, one.width) != (other.crs, other.height, other.width):
        return False
    cols, rows = np.array([0.0, one.width, 0.0]), np.array([0.0, 0.0, one.height])
    far = np.abs(np.subtract(one.xy(cols, rows), other.xy(cols, rows))).max()
    side = min(max(abs(one.transform[0]), abs(one.transform[3])), max(abs(one.transform[1]), abs(one.transform[4])))
    return bool(far < _SAME_GRID_PIXELS * side)


def aligned(grid: Grid, own: Grid) -> bool:
    """Whether `layer_pixels` can relate the two grids."""
    turned = any((grid.transform[1], grid.transform[3], own.transform[1], own.transform[3]))
    return grid.crs == own.crs and not turned
