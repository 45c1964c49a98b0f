"""Tiles of one place on several dates: which they are, and which tiles show the same ground on another date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from rayjobs.tiles.neighbours import positive_pairs

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.geo import FloatArray, IntArray

Names = np.ndarray[Any, Any]


def dates(tiles: pa.Table) -> Names:
    """Return (tiles,) the day of each tile, as 2015-09-26; of a scene whose date is not known, its id."""
    days = pc.strftime(tiles["datetime"], format="%Y-%m-%d")
    return np.array(pc.coalesce(days, tiles["scene_id"]).to_pylist())


def across_dates(positions: FloatArray, sizes: FloatArray, dates: Names, tolerance: float) -> IntArray:
    """Return the pairs of tiles of two dates whose centres lie so near that they show one place.

    Args:
        positions: (n, 3) as `rayjobs.tiles.positions.positions`.
        sizes: (n,) positive.
        dates: (n,) name or number of each tile's date.
        tolerance: greatest distance between the centres, in tile sizes.

    Returns:
        (m, 2) int64, the lower index first, sorted.
    """
    pairs = positive_pairs(positions, sizes, 0.0, tolerance)
    apart: IntArray = pairs[dates[pairs[:, 0]] != dates[pairs[:, 1]]]
    return apart
