"""Which tiles are near each other, and which share ground.

Distances are between centres, in tile sizes: divided by the side of the larger of the two tiles, so that tiles of differing resolution are
near each other where the larger one says so, whichever is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import scipy.spatial
import shapely

from rayjobs.geo import BoolArray, FloatArray, GeometryArray, IntArray
from rayjobs.tiles.positions import frames
from rayjobs.tiles.table import geometries

_AT_ONCE = 100_000
"""Pairs whose common ground is measured together."""
_SHARED = 1e-3
"""Tiles that share less than this part of the smaller one only touch: footprints cut a bent common edge at different corners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """The neighbours of each tile, in compressed rows."""

    offsets: IntArray
    """(n + 1,) where each tile's neighbours start in `members`."""
    members: IntArray
    """(m,) indices of neighbours, ascending within a tile."""

    @classmethod
    def from_pairs(cls, pairs: IntArray, count: int) -> Neighbourhood:
        """Build from pairs (m, 2) of `count` tiles, each pair once in either order."""
        both = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64).reshape(-1, 2)
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        return cls(offsets=np.searchsorted(both[:, 0], np.arange(count + 1)).astype(np.int64), members=both[:, 1].copy())

    @property
    def counts(self) -> IntArray:
        """(n,) number of neighbours of each tile."""
        return np.diff(self.offsets)

    def of(self, tile: int) -> IntArray:
        """Return the neighbours of one tile, ascending."""
        return self.members[self.offsets[tile] : self.offsets[tile + 1]]


def distances(positions: FloatArray, sizes: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """Return the distances between tiles in tile sizes.

    Args:
        positions: (n, 3) as `rayjobs.tiles.positions.positions`.
        sizes: (n,) as `rayjobs.tiles.positions.sizes`.
        first: indices, of any shape.
        second: indices of a shape that broadcasts with it.
    """
    apart = np.linalg.norm(positions[first] - positions[second], axis=-1)
    return cast("FloatArray", apart / np.maximum(sizes[first], sizes[second]))


def positive_pairs(positions: FloatArray, sizes: FloatArray, min_dist: float, max_dist: float) -> IntArray:
    """Return all pairs of tiles whose distance lies within [min_dist, max_dist], in tile sizes.

    Args:
        positions: (n, 3) as `rayjobs.tiles.positions.positions`.
        sizes: (n,) positive.
        min_dist: in tile sizes.
        max_dist: in tile sizes.

    Returns:
        (m, 2) int64, the lower index first, sorted.
    """
    found = [pairs[_within(positions, sizes, pairs, min_dist, max_dist)] for pairs in _candidates(positions, sizes, max_dist)]
    return _sorted(np.sort(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=1))


def _within(positions: FloatArray, sizes: FloatArray, pairs: IntArray, min_dist: float, max_dist: float) -> BoolArray:
    apart = distances(positions, sizes, pairs[:, 0], pairs[:, 1])
    return (apart >= min_dist) & (apart <= max_dist)


def _candidates(positions: FloatArray, sizes: FloatArray, max_dist: float) -> Iterator[IntArray]:
    """Yield pairs that may be near, tiles grouped by powers of two of their size: large tiles do not widen the search among small ones."""
    octave = np.floor(np.log2(sizes)).astype(np.int64)
    groups = [np.flatnonzero(octave == value) for value in np.unique(octave)]
    trees = [scipy.spatial.cKDTree(positions[group]) for group in groups]
    for index, group in enumerate(groups):
        reach = max_dist * float(sizes[group].max()) * (1 + 1e-9)
        yield group[trees[index].query_pairs(reach, output_type="ndarray")]
        for smaller in range(index):
            near = trees[index].sparse_distance_matrix(trees[smaller], reach, output_type="ndarray")
            yield np.column_stack([group[near["i"]], groups[smaller][near["j"]]])


def outlines(tiles: pa.Table) -> GeometryArray:
    """Return what tiles cover as (n,) shapely geometries that can be compared.

    Georeferenced tiles give their footprints. Tiles of plain images give boxes in pixels, far outside the degrees of the globe and each
    scene, or place that scenes share, on a stretch of its own.
    """
    found = geometries(tiles)
    plain = np.flatnonzero(shapely.is_missing(found))
    if len(plain):
        row, col, height, width = (tiles[name].to_numpy()[plain].astype(np.float64) for name in ("row", "col", "height", "width"))
        west = col + 1000 + frames(tiles)[plain] * (float((col + width).max()) + 1)
        found[plain] = shapely.box(west, row, west + width, row + height)
    return found


def overlapping_pairs(outlines: GeometryArray) -> IntArray:
    """Return all pairs of tiles that share ground; to touch along an edge is not to share.

    Args:
        outlines: (n,) of `outlines`, or other polygons.

    Returns:
        (m, 2) int64, the lower index first, sorted.
    """
    tree = shapely.STRtree(outlines)
    first, second = tree.query(outlines, predicate="intersects")
    once = first < second
    pairs = np.column_stack([first[once], second[once]]).astype(np.int64)
    shared = [_shares_ground(outlines, pairs[start : start + _AT_ONCE]) for start in range(0, len(pairs), _AT_ONCE)]
    return _sorted(pairs[np.concatenate([np.empty(0, bool), *shared])])


def _sorted(pairs: IntArray) -> IntArray:
    order: IntArray = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order]


def _shares_ground(outlines: GeometryArray, pairs: IntArray) -> BoolArray:
    one, other = outlines[pairs[:, 0]], outlines[pairs[:, 1]]
    common = shapely.area(shapely.intersection(one, other))
    return cast("BoolArray", common > _SHARED * np.minimum(shapely.area(one), shapely.area(other)))
