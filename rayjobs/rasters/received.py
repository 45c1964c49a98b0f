"""Pixels of one tile as a service sends it, whatever its format; what is cut short or of another size is refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import PIL.Image
import rasterio
import rasterio.enums
import rasterio.errors
import rasterio.io
import rasterio.session

from rayjobs.rasters.gdal import environment
from rayjobs.rasters.handles import FAULTS, explained

_DRIVERS = ["PNG", "JPEG", "WEBP", "GTiff"]
_PNG = b"\x89PNG\r\n\x1a\n"
_OPAQUE = 255
_GREY, _GREY_AND_OPACITY, _COLOURS, _COLOURS_AND_OPACITY = 1, 2, 3, 4


def pixels_of(data: bytes, *, bands: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a tile's pixels, the same that GDAL's driver WMS gives.

    Args:
        data: the body of the answer.
        bands: wanted: 1, 3 (grey serves for each colour) or 4 (what has no opacity is opaque).
        height: that the tile must have.
        width: likewise.

    Returns:
        (bands, height, width) uint8.

    Raises:
        ValueError: it is no such picture, or damaged; fit to be shown.
    """
    try:
        # by default a JPEG that is cut short is filled up with grey
        with (
            environment(),
            rasterio.Env(rasterio.session.DummySession(), GDAL_ERROR_ON_LIBJPEG_WARNING=True),
            rasterio.io.MemoryFile(data) as file,
            file.open(driver=_DRIVERS) as dataset,
        ):
            if dataset.count > _COLOURS_AND_OPACITY:  # a few kilobytes can hold thousands of bands
                raise ValueError(f"the tile has {dataset.count} bands, not 1 to {_COLOURS_AND_OPACITY}")
            if dataset.shape != (height, width) or set(dataset.dtypes) != {"uint8"}:
                kind = f"{dataset.height} x {dataset.width} pixels of {dataset.dtypes[0]}"
                raise ValueError(f"the tile has {kind}, not {height} x {width} of uint8")
            _check_png(data)
            return _as_bands(_colours(dataset) if bands > 1 else dataset.read([1]), bands)
    except FAULTS as error:
        raise ValueError(f"the tile of {len(data)} bytes cannot be decoded: {explained(error)}") from error


def _check_png(data: bytes) -> None:
    """Refuse a PNG that is cut short or altered, which GDAL fills up with zeros, by the sums that its parts carry.

    Raises:
        ValueError: it is; fit to be shown.
    """
    if not data.startswith(_PNG):
        return
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"the tile of {len(data)} bytes cannot be decoded: {error}") from error


def _colours(dataset: Any) -> np.ndarray[Any, Any]:
    """Return all bands, with colours looked up where the file has a table of them."""
    values = dataset.read()
    if dataset.colorinterp[0] is not rasterio.enums.ColorInterp.palette:
        return np.asarray(values)
    table = np.zeros((256, 4), np.uint8)
    for code, colour in dataset.colormap(1).items():
        table[code] = colour
    return np.moveaxis(table[values[0]], -1, 0)


def _as_bands(values: np.ndarray[Any, Any], bands: int) -> np.ndarray[Any, Any]:
    """Return as many bands as are wanted of grey or colours, with or without opacity."""
    has = len(values)
    if bands == _GREY:
        return values[:1]
    opacity = values[-1:] if has in {_GREY_AND_OPACITY, _COLOURS_AND_OPACITY} else np.full_like(values[:1], _OPAQUE)
    colours = np.repeat(values[:1], _COLOURS, axis=0) if has <= _GREY_AND_OPACITY else values[:_COLOURS]
    return colours if bands == _COLOURS else np.concatenate([colours, opacity])
