"""An animated picture of a layer: a frame for each date, small enough to be looked at."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import rasterio.enums

from rayjobs.rasters.gdal import environment, open_raster

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMS: dict[str, dict[str, Any]] = {"webp": {"quality": 80, "method": 2}, "gif": {"disposal": 2}}
"""How each form of `fetch.animation` is written, beside what all have in common."""


def animated(addresses: Sequence[str], *, form: str, height: int, frames_per_second: float) -> bytes:
    """Return the bytes of an animated picture that goes on and on.

    Args:
        addresses: of the rasters, grey or in colours, on one grid, in the order of their dates.
        form: of `FORMS`.
        height: greatest, pixels; larger rasters are averaged down.
        frames_per_second: as it says.
    """
    frames = _frames(addresses, height)
    first = next(frames)
    sink = io.BytesIO()
    # the others are made one by one while the first is written
    first.save(sink, form, save_all=True, append_images=frames, duration=round(1000 / frames_per_second), loop=0, **FORMS[form])
    return sink.getvalue()


def _frames(addresses: Sequence[str], height: int) -> Iterator[PIL.Image.Image]:
    for address in addresses:
        with environment(), open_raster(address) as file:
            shrink = max(1.0, file.height / height)
            shape = max(1, round(file.height / shrink)), max(1, round(file.width / shrink))
            colours = [1, 1, 1] if file.count == 1 else [1, 2, 3]
            values = file.read(colours, out_shape=(3, *shape), resampling=rasterio.enums.Resampling.average)
        yield PIL.Image.fromarray(np.moveaxis(values, 0, -1))
