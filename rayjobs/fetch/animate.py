"""An animated picture of a layer: a frame for each date, small enough to be looked at."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import rasterio.enums

from rayjobs.rasters.gdal import environment, open_raster

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMS: dict[str, dict[str, Any]] = {"webp": {"quality": 80, "method": 2}, "gif": {"disposal": 2}}
"""How each form of `fetch.animation` is written, beside what all have in common."""

LONGEST = {"webp": 16_383, "gif": 65_535}
"""Pixels of the longest side that each form can have."""

MOST_BYTES = 2**31
"""Of all frames together: Pillow holds every one, four bytes a pixel, until the last is written."""


def animated(addresses: Sequence[str], *, form: str, height: int, frames_per_second: float) -> bytes:
    """Return the bytes of an animated picture that goes on and on.

    Args:
        addresses: of the rasters, grey or in colours, on one grid, in the order of their dates.
        form: of `FORMS`.
        height: greatest, pixels; larger rasters are averaged down, further where all frames would take more than `MOST_BYTES`,
            or a side is longer than `LONGEST`.
        frames_per_second: as it says.
    """
    with environment(), open_raster(addresses[0]) as file:
        shape = frame_shape(file.height, file.width, height=height, frames=len(addresses), longest=LONGEST[form])
    frames = _frames(addresses, shape)
    first = next(frames)
    sink = io.BytesIO()
    first.save(sink, form, save_all=True, append_images=frames, duration=round(1000 / frames_per_second), loop=0, **FORMS[form])
    return sink.getvalue()


def frame_shape(rows: int, cols: int, *, height: int, frames: int, longest: int) -> tuple[int, int]:
    """Return height and width, pixels, of each of so many frames of a raster of `rows` and `cols`; no side is longer than `longest`."""
    shrink = max(1.0, rows / height, max(rows, cols) / longest, math.sqrt(4 * frames * rows * cols / MOST_BYTES))
    return max(1, round(rows / shrink)), max(1, round(cols / shrink))


def _frames(addresses: Sequence[str], shape: tuple[int, int]) -> Iterator[PIL.Image.Image]:
    for address in addresses:
        with environment(), open_raster(address) as file:
            colours = [1, 1, 1] if file.count == 1 else [1, 2, 3]
            values = file.read(colours, out_shape=(3, *shape), resampling=rasterio.enums.Resampling.average)
        yield PIL.Image.fromarray(np.moveaxis(values, 0, -1))
