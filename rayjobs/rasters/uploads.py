"""Images that strangers send: read only after their size and form are known, by decoders that open nothing else.

GDAL is told the one driver it may use: with its free choice, bytes that are a VRT would make it fetch what the sender names.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import rasterio
import rasterio.errors
import rasterio.io
import rasterio.windows
from rasterio.enums import Resampling

from rayjobs.errors import QueryError, UploadError, UploadTooLargeError
from rayjobs.geo import Grid, locatable, pixel_sides_m
from rayjobs.rasters.handles import FAULTS
from rayjobs.rasters.reader import Pixels

_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_PNG_DEPTH = 24
"""Where a PNG file says how many bits a value has."""
_MODES = {"L": "L", "1": "L", "RGB": "RGB", "RGBA": "RGBA", "P": "RGBA", "LA": "RGBA"}
"""What each of Pillow's modes is read as."""
_BANDS = {"L": 1, "RGB": 3, "RGBA": 3}
"""Bands of what a picture is read as; alpha is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What an image's header must say, so that the image is decoded."""

    modalities: tuple[tuple[str, ...], ...]
    """The encoder's bands, in order, and those of each part of them that will do; the image must have as many as one of these."""
    dtype: str
    """Of the tiles' values."""
    max_pixels: int
    """Width times height."""
    max_bytes: int
    """Of the decoded pixels, alpha included."""

    def check_area(self, width: int, height: int) -> None:
        """Refuse too many pixels. Raises `UploadTooLargeError`."""
        if width * height > self.max_pixels:
            raise UploadTooLargeError(
                f"the image has {width} x {height} pixels, more than the {self.max_pixels:,} that the service takes; send a smaller cut-out"
            )

    def check_bands(self, count: int) -> None:
        """Refuse another number of bands than the encoder's. Raises `QueryError`."""
        if count not in map(len, self.modalities):
            taken = " or ".join(f"{len(bands)} ({', '.join(bands)})" for bands in self.modalities)
            raise QueryError(f"the image has {count} bands, the encoder takes {taken}; send these bands, in this order")

    def check_kind(self, dtype: Any) -> None:
        """Refuse values of another kind than the tiles', which the encoder would take for dark or bright ones. Raises `QueryError`."""
        if _kind(dtype) != _kind(self.dtype):
            raise QueryError(
                f"the image holds values of type {np.dtype(dtype)}, the tiles {self.dtype}: the encoder cannot compare them; "
                "send a GeoTIFF with values as the imagery has them"
            )

    def check_bytes(self, size: int) -> None:
        """Refuse an image that would take too much memory. Raises `UploadTooLargeError`."""
        if size > self.max_bytes:
            raise UploadTooLargeError(
                f"the image takes {size:,} bytes once decoded, more than the {self.max_bytes:,} that the service takes; "
                "send a smaller cut-out, or the encoder's bands alone, in blocks no larger than the image"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGround:
    """The ground that a tile shows."""

    resolution_m: float
    """Side of a pixel, metres."""
    side: int
    """Pixels on either side."""


def _kind(dtype: Any) -> tuple[str, bool]:
    """Return what values of a type have in common: fractions or not, and whether 8 bits hold them."""
    known = np.dtype(dtype)
    return ("fractions" if known.kind == "f" else "whole"), known.itemsize == 1


def read_upload(data: bytes, limits: UploadLimits, *, like: TileGround | None = None) -> Pixels:
    """Decode a PNG, a JPEG or a GeoTIFF, once its header keeps to the limits.

    Args:
        data: the file's bytes.
        limits: checked before any pixel is decoded.
        like: of a GeoTIFF that lies on the ground, as much as this in its middle is read, at this resolution; what the image does not reach
            is not valid. Other images, and all where it is None, are read whole, pixel by pixel.

    Returns:
        values (bands, height, width) in the image's dtype, valid (height, width); alpha and nodata become `valid`.

    Raises:
        UploadTooLargeError: more pixels or bytes than the limits.
        UploadError: not an image of these three forms, or a broken one.
        QueryError: other bands or another kind of values than the tiles', or nothing to see.
    """
    if not data:
        raise UploadError("the upload is empty")
    pixels = _read_tiff(data, limits, like) if data[:4] in _TIFF else _read_picture(data, limits)
    if not pixels.valid.any():
        raise QueryError("no pixel of the image can be seen: all are transparent or nodata")
    if not np.isfinite(pixels.values[:, pixels.valid]).all():
        raise QueryError("the image holds values that are not finite; declare them as nodata, or leave them out")
    return pixels


def _read_tiff(data: bytes, limits: UploadLimits, like: TileGround | None) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # pixels are all that is asked for
        try:
            with rasterio.io.MemoryFile(data) as file, file.open(driver="GTiff") as source:
                limits.check_area(source.width, source.height)
                bands = [band for band in source.indexes if source.colorinterp[band - 1] != rasterio.enums.ColorInterp.alpha]
                limits.check_bands(len(bands))
                limits.check_bytes(_decoded_bytes(source))
                limits.check_kind(source.dtypes[0])
                sides_m = None if like is None else _pixel_sides_m(source)
                if like is None or sides_m is None:
                    return Pixels(source.read(bands), source.dataset_mask() > 0)
                return _read_middle(source, bands, like, sides_m)
        except FAULTS as error:
            raise UploadError(f"the TIFF cannot be read: {error}") from error


def _pixel_sides_m(source: Any) -> tuple[float, float] | None:
    """Return width and height of the middle pixel on the ground, metres; None where the image lies nowhere."""
    if source.crs is None or not locatable(source.crs.to_wkt()):
        return None
    try:
        grid = Grid(crs=source.crs.to_wkt(), transform=tuple(source.transform)[:6], height=source.height, width=source.width)
    except ValueError:
        return None
    return pixel_sides_m(grid)


def _read_middle(source: Any, bands: list[int], like: TileGround, sides_m: tuple[float, float]) -> Pixels:
    """Read the ground of one tile in the middle of an image, resampled, with what it lacks filled up as not valid."""
    (left, width, wide), (top, height, high) = (
        _span(length, like.side, side_m / like.resolution_m) for length, side_m in zip((source.width, source.height), sides_m, strict=True)
    )
    window = rasterio.windows.Window(left, top, width, height)
    how = Resampling.average if wide < width or high < height else Resampling.bilinear
    values = source.read(bands, window=window, out_shape=(len(bands), high, wide), resampling=how)
    valid = source.dataset_mask(window=window, out_shape=(high, wide)) > 0
    above, before = (like.side - high) // 2, (like.side - wide) // 2
    edges = ((above, like.side - high - above), (before, like.side - wide - before))
    return Pixels(np.pad(values, ((0, 0), *edges)), np.pad(valid, edges))


def _span(length: int, side: int, scale: float) -> tuple[float, float, int]:
    """Return where to begin along one side of an image, how many of its pixels to read, and into how many of the tile's.

    Args:
        length: pixels of the image.
        side: pixels of the tile.
        scale: pixels of the tile per pixel of the image.
    """
    read = min(float(length), side / scale)
    return (length - read) / 2, read, min(side, max(1, round(read * scale)))


def _decoded_bytes(source: Any) -> int:
    """Return what a TIFF takes in memory: GDAL decodes whole blocks, which a file may declare far larger than its image."""
    kind = source.dtypes[0]
    if kind.startswith("complex"):
        raise UploadError(f"the TIFF holds pixels of type {kind}; send integers or floats")
    height = max(source.height, *(block[0] for block in source.block_shapes))
    width = max(source.width, *(block[1] for block in source.block_shapes))
    return int(height * width * source.count * np.dtype(kind).itemsize)


def _read_picture(data: bytes, limits: UploadLimits) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # our own limit is checked below
            picture = PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        limits.check_area(picture.width, picture.height)
        mode = _MODES.get(picture.mode)
        if mode is None:
            raise UploadError(f"images of mode {picture.mode} are not taken; send 8-bit grey, RGB or RGBA, or a GeoTIFF")
        limits.check_bands(_BANDS[mode])
        if data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10" and picture.format == "PNG":  # of which Pillow drops half the bits
            raise UploadError("PNG files of 16 bits are not taken; send 8-bit grey, RGB or RGBA, or a GeoTIFF")
        limits.check_kind(np.uint8)
        limits.check_bytes(picture.width * picture.height * len(mode))
        values: np.ndarray[Any, Any] = np.asarray(picture.convert(mode))
    except PIL.Image.DecompressionBombError as error:
        raise UploadTooLargeError(
            f"the image has far more than the {limits.max_pixels:,} pixels that the service takes; send a smaller cut-out"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise UploadError("the upload is neither a PNG, a JPEG nor a TIFF") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three for broken files
        raise UploadError(f"the image is broken: {error}") from error
    values = np.atleast_3d(values).transpose(2, 0, 1)
    if mode == "RGBA":
        return Pixels(values[:3], values[3] > 0)
    return Pixels(values, np.ones(values.shape[1:], bool))
