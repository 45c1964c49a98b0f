"""Images that strangers send: read only after their size and form are known, by decoders that open nothing else.

GDAL is told the one driver it may use: with its free choice, bytes that are a VRT would make it fetch what the sender names.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import PIL.Image
import rasterio
import rasterio.errors
import rasterio.io

from rayjobs.errors import UploadError, UploadTooLargeError
from rayjobs.rasters.reader import Pixels

_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_MODES = {"L": "L", "1": "L", "RGB": "RGB", "RGBA": "RGBA", "P": "RGBA", "LA": "RGBA"}
"""What each of Pillow's modes is read as."""
_MOST_BANDS = 512


def read_upload(data: bytes, *, max_pixels: int) -> Pixels:
    """Decode a PNG, a JPEG or a GeoTIFF.

    Args:
        data: the file's bytes.
        max_pixels: refuse larger images before decoding them.

    Returns:
        values (bands, height, width) in the image's dtype, valid (height, width); alpha and nodata become `valid`.

    Raises:
        UploadTooLargeError: more pixels than `max_pixels`.
        UploadError: not an image of these three forms, or a broken one.
    """
    if data[:4] in _TIFF:
        return _read_tiff(data, max_pixels)
    return _read_picture(data, max_pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UploadTooLargeError(
            f"the image has {width} x {height} pixels, more than the {max_pixels:,} that the service takes; send a smaller cut-out"
        )


def _read_tiff(data: bytes, max_pixels: int) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # pixels are all that is asked for
        try:
            with rasterio.io.MemoryFile(data) as file, file.open(driver="GTiff") as source:
                _check_size(source.width, source.height, max_pixels)
                if source.count > _MOST_BANDS:
                    raise UploadTooLargeError(f"the TIFF has {source.count} bands; at most {_MOST_BANDS} are taken")
                bands = [band for band in source.indexes if source.colorinterp[band - 1] != rasterio.enums.ColorInterp.alpha]
                return Pixels(source.read(bands), source.dataset_mask() > 0)
        except rasterio.errors.RasterioError as error:
            raise UploadError(f"the TIFF cannot be read: {error}") from error


def _read_picture(data: bytes, max_pixels: int) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # our own limit is checked below
            picture = PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        _check_size(picture.width, picture.height, max_pixels)
        mode = _MODES.get(picture.mode)
        if mode is None:
            raise UploadError(f"images of mode {picture.mode} are not taken; send 8-bit grey, RGB or RGBA, or a GeoTIFF")
        values: np.ndarray[Any, Any] = np.asarray(picture.convert(mode))
    except PIL.Image.DecompressionBombError as error:
        raise UploadTooLargeError(
            f"the image has far more than the {max_pixels:,} pixels that the service takes; send a smaller cut-out"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise UploadError("the upload is neither a PNG, a JPEG nor a TIFF") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three for broken files
        raise UploadError(f"the image is broken: {error}") from error
    values = np.atleast_3d(values).transpose(2, 0, 1)
    if mode == "RGBA":
        return Pixels(values[:3], values[3] > 0)
    return Pixels(values, np.ones(values.shape[1:], bool))
