"""Open rasters of one thread: which bands have masks of their own, what their colour tables say, and how many stay open."""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.crs
import rasterio.enums
import rasterio.errors
import rasterio.windows
from rasterio._err import CPLE_BaseError  # no public module names it

from rayjobs.geo import BoolArray, Grid, Window
from rayjobs.rasters.gdal import open_raster

FAULTS = (rasterio.errors.RasterioError, CPLE_BaseError, OSError)
"""What rasterio raises for a file that cannot be opened or read; its properties raise GDAL's own errors as they are."""

_ADVICE = re.compile(r" *\((this error|note:|see) [^)]*\)", re.IGNORECASE)
_IN_OUR_WORDS = {
    "not recognized as": "it is empty, or no image in a form that GDAL knows",
    "No such file": "it is not there",
    "contains no image": "it is cut short",
    "Premature end": "it is cut short",
    "Can't read from offset": "it is cut short",
    "TIFFReadDirectory": "its header cannot be read: it is damaged, or cut short",
    "TIFFReadEncoded": "its pixels cannot be decoded: it is damaged, or cut short",
    "Decode": "its pixels cannot be decoded: it is damaged, or cut short",
}
"""By a piece of what GDAL says; the first that fits."""


def explained(error: BaseException) -> str:
    """Return in one line what a fault of `FAULTS` means, with GDAL's own words, but without its advice, which is for programs."""
    said = _ADVICE.sub("", " ".join(str(error.__cause__ or error).split()))
    meaning = next((ours for theirs, ours in _IN_OUR_WORDS.items() if theirs in said), None)
    return f"{meaning} (GDAL: {said})" if meaning else said


@dataclass(slots=True)
class Handle:
    """One open raster; for one thread only."""

    dataset: Any
    """rasterio's."""
    masked: tuple[int, ...]
    """Bands (from 1) whose mask is stored (alpha, internal, side file); one of them where the mask is that of the whole file."""
    palette: np.ndarray[Any, np.dtype[np.uint8]] | None
    """(codes, 4) red, green, blue, opacity of each code of the first band."""

    @classmethod
    def open(cls, uri: str, *, fresh: bool = False) -> Handle:
        """Open a raster inside `gdal.environment`; see `gdal.open_raster`."""
        dataset = open_raster(uri, fresh=fresh)
        return cls(dataset, _stored_masks(dataset), _palette(dataset))

    def read(self, bands: list[int], window: Window, dtype: str | None = None) -> np.ndarray[Any, Any]:
        """Return (len(bands), height, width) values as they are stored."""
        dtype = dtype or self.dataset.dtypes[bands[0] - 1]
        out = np.empty((len(bands), window.height, window.width), dtype)
        self.dataset.read(bands, window=_window(window), out=out)
        return out

    def read_mask(self, window: Window) -> BoolArray | None:
        """Return (height, width) True = valid, by stored masks alone; None where the file has none."""
        if not self.masked:
            return None
        stored = self.dataset.read_masks(list(self.masked), window=_window(window))
        return np.asarray((stored != 0).all(axis=0), np.bool_)


def _window(window: Window) -> Any:
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)


def _stored_masks(dataset: Any) -> tuple[int, ...]:
    flags = rasterio.enums.MaskFlags
    stored = []
    for band, kinds in enumerate(dataset.mask_flag_enums, start=1):
        if flags.per_dataset in kinds:
            return (band,)
        if flags.all_valid not in kinds and flags.nodata not in kinds:
            stored.append(band)
    return tuple(stored)


def _palette(dataset: Any) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    if dataset.colorinterp[0] is not rasterio.enums.ColorInterp.palette or not dataset.dtypes[0].startswith("uint"):
        return None
    table = np.zeros((2 ** (8 * np.dtype(dataset.dtypes[0]).itemsize), 4), np.uint8)
    for code, colour in dataset.colormap(1).items():
        table[code] = colour
    return table


class Handles:
    """The rasters that were used last, kept open; for one thread only."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` rasters open."""
        self._limit = limit
        self._open: OrderedDict[str, Handle] = OrderedDict()

    def get(self, uri: str, *, fresh: bool = False) -> Handle:
        """Return the open raster of an address, opening it if need be."""
        handle = self._open.pop(uri, None)
        if handle is None:
            handle = Handle.open(uri, fresh=fresh)
        self._open[uri] = handle
        while len(self._open) > self._limit:
            self._open.popitem(last=False)[1].dataset.close()
        return handle

    def drop(self, uri: str) -> None:
        """Close one raster if it is open."""
        handle = self._open.pop(uri, None)
        if handle is not None:
            handle.dataset.close()

    def close(self) -> None:
        """Close all."""
        for uri in list(self._open):
            self.drop(uri)


def grid_of(dataset: Any) -> Grid:
    """Return where a dataset's pixels lie; without CRS the transform is left out too, since nothing says what it means.

    Raises:
        ValueError: the transform does not map pixels to the ground one to one.
    """
    if not dataset.crs:
        return Grid(crs=None, transform=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), height=dataset.height, width=dataset.width)
    a, b, c, d, e, f = map(float, dataset.transform[:6])
    return Grid(crs=_crs_name(dataset.crs.to_wkt()), transform=(a, b, c, d, e, f), height=dataset.height, width=dataset.width)


@functools.lru_cache(maxsize=256)
def _crs_name(wkt: str) -> str:
    code = rasterio.crs.CRS.from_wkt(wkt).to_epsg(confidence_threshold=100)  # rasterio's own threshold takes like for same
    return f"EPSG:{code}" if code else wkt
