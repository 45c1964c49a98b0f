"""Chips as pictures for people."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from rayjobs.tiles.chips import read_chips, shard_name
from rayjobs.tiles.table import read_tiles

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rayjobs.storage import Version
    from rayjobs.tiles.chips import Chip

_NATURAL = (("red", "green", "blue"), ("r", "g", "b"), ("B4", "B3", "B2"), ("B04", "B03", "B02"), ("b4", "b3", "b2"))
"""Names of the bands that make a picture in natural colours, in the conventions that we know."""
_SPREAD = 2.0
"""Standard deviations on either side of the mean that fill the range from black to white."""


def picture_bands(names: Sequence[str]) -> tuple[int, int, int]:
    """Return which bands to show as red, green and blue: the natural ones where the names tell, else the first three."""
    for wanted in _NATURAL:
        if set(wanted) <= set(names):
            red, green, blue = (names.index(name) for name in wanted)
            return red, green, blue
    last = len(names) - 1
    return 0, min(1, last), min(2, last)


def picture(chip: Chip, names: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a chip as (height, width, 3) uint8, stretched by the set's own statistics; pixels that are not valid are grey.

    Args:
        chip: pixels (bands, height, width).
        names: the bands' names.
        mean: of each band over the set.
        std: of each band over the set.
    """
    shown = list(picture_bands(names))
    middle, spread = np.asarray(mean)[shown, None, None], np.asarray(std)[shown, None, None]
    scaled = (chip.pixels[shown] - middle) / (2 * _SPREAD * np.maximum(spread, 1e-12)) + 0.5
    values: np.ndarray[Any, np.dtype[np.uint8]] = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    values[~chip.valid] = 128
    return values


def pictures_of(source: Version, wanted: Collection[str]) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return tiles of a set as `picture` shows them, by tile id.

    Args:
        source: the set.
        wanted: tile ids; the shards that hold them are read one after the other.
    """
    manifest, tiles = source.manifest, read_tiles(source.read("tiles.parquet"))
    shards = {shard for tile, shard in zip(tiles["tile_id"].to_pylist(), tiles["shard"].to_pylist(), strict=True) if tile in wanted}
    return {
        chip.tile_id: picture(chip, manifest["bands"], manifest["band_mean"], manifest["band_std"])
        for shard in sorted(shards)
        for chip in read_chips(source.read(shard_name(shard)), wanted)
    }


def png(
    pixels: np.ndarray[Any, np.dtype[np.uint8]], *, opacity: np.ndarray[Any, np.dtype[np.bool_]] | None = None, side: int | None = None
) -> bytes:
    """Return a picture as PNG.

    Args:
        pixels: (height, width, 3) uint8.
        opacity: (height, width), False where the picture is transparent.
        side: enlarge until the longer side has at least so many pixels (nearest neighbour: people are to see the pixels).
    """
    image = PIL.Image.fromarray(pixels)
    if opacity is not None:
        image.putalpha(PIL.Image.fromarray(opacity.astype(np.uint8) * 255))
    longer = max(image.size)
    if side is not None and longer < side:
        factor = -(-side // longer)
        image = image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
