"""Where tiles lie, as points between which straight lines can be measured, and how large they are.

Tiles of all scenes, projections and dates share one earth-centred frame, so that distances hold across zones, poles and the antimeridian. A
straight line through the Earth is shorter than the ground by less than a thousandth up to 900 km.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from rayjobs.geo import FloatArray, IntArray, ecef, great_circle_m, radius_m
from rayjobs.tiles.table import geometries

_SAME_BODY = 1e-6
"""By what share the radii of tiles of one body may differ: those of georeferenced tiles are the lengths of computed vectors."""
_FAR = 1e9
"""Distance between the frames of plain images, more than any image is wide and than the Earth."""


def frames(tiles: pa.Table) -> IntArray:
    """Return which frame each tile's pixels are counted in, (n,) numbered from 0: that of its scene, or of the place that scenes share."""
    found: IntArray = (
        pc.coalesce(tiles["place"], tiles["scene_id"]).combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    )
    return found


def positions(tiles: pa.Table) -> FloatArray:
    """Return the centres of tiles.

    Args:
        tiles: with the columns `geometry`, `crs`, `scene_id`, `place`, `row`, `col`, `height` and `width`.

    Returns:
        (n, 3) float64: metres from the centre of the Earth (a sphere) for georeferenced tiles; for tiles of plain images (x, y, z) in
        pixels, z setting each scene a thousand million from any other that does not show the same place.
    """
    found, _ = _centres_and_areas(tiles)
    plain = np.flatnonzero(tiles["geometry"].is_null().to_numpy())
    if len(plain):
        row, col, height, width = (tiles[name].to_numpy()[plain] for name in ("row", "col", "height", "width"))
        found[plain] = np.stack([col + width / 2, row + height / 2, (frames(tiles)[plain] + 1) * _FAR], axis=-1)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Spots:
    """Where the middles of tiles lie on their bodies."""

    lonlat: FloatArray
    """(n, 2) longitude and latitude, degrees; NaN where that is not known."""
    radius_m: FloatArray
    """(n,) of the body; NaN likewise."""

    def apart_m(self, first: IntArray, second: IntArray) -> FloatArray:
        """Return the great-circle distances of tiles, (m,) metres: indices (m,) each; NaN where one is not known or on another body."""
        found = great_circle_m(self.lonlat[first], self.lonlat[second], self.radius_m[first])
        return np.where(np.isclose(self.radius_m[first], self.radius_m[second], rtol=_SAME_BODY, atol=0), found, np.nan)


def spots(tiles: pa.Table) -> Spots:
    """Return where tiles lie: the middle of the footprint, or, of plain images, what their source says of the whole image.

    Args:
        tiles: with the columns `geometry`, `crs`, `lon`, `lat` and `radius_m`.
    """
    middles, _ = _centres_and_areas(tiles)
    length = np.linalg.norm(middles, axis=1)
    plain = length == 0
    length[plain] = np.nan
    x, y, z = (middles / length[:, None]).T
    lonlat = np.degrees(np.stack([np.arctan2(y, x), np.arcsin(z)], axis=-1))
    lonlat[plain] = np.stack([tiles[name].to_numpy()[plain] for name in ("lon", "lat")], axis=-1)
    radius = np.where(plain, tiles["radius_m"].to_numpy(), length)
    return Spots(lonlat=lonlat, radius_m=radius)


def sizes(tiles: pa.Table) -> FloatArray:
    """Return the sides of tiles, as of squares of the same area: (n,) float64, metres, or pixels for plain images."""
    _, areas = _centres_and_areas(tiles)
    plain = np.flatnonzero(tiles["geometry"].is_null().to_numpy())
    areas[plain] = tiles["height"].to_numpy()[plain] * tiles["width"].to_numpy()[plain]
    return np.sqrt(areas)


def reaches(tiles: pa.Table) -> FloatArray:
    """Return how far each tile reaches from its centre, to its farthest corner: (n,) float64, metres, or pixels for plain images."""
    points, owner = shapely.get_coordinates(geometries(tiles), return_index=True)
    corners = ecef(points, 1.0) * _radii(tiles)[owner, None]
    found = np.zeros(tiles.num_rows)
    np.maximum.at(found, owner, np.linalg.norm(corners - positions(tiles)[owner], axis=1))
    plain = np.flatnonzero(tiles["geometry"].is_null().to_numpy())
    found[plain] = np.hypot(tiles["height"].to_numpy()[plain], tiles["width"].to_numpy()[plain]) / 2
    return found


def _centres_and_areas(tiles: pa.Table) -> tuple[FloatArray, FloatArray]:
    """Return (n, 3) centre on the sphere, metres, and (n,) area of each footprint; zeros where there is none.

    Rings are fanned into triangles in space; a footprint that is cut at the antimeridian adds up from its parts.
    """
    start, stop, owner, corner = _triangles(tiles)
    rows = tiles.num_rows
    vectors = np.cross(start - corner, stop - corner) / 2
    normal = np.stack([np.bincount(owner, vectors[:, axis], rows) for axis in range(3)], axis=-1)
    areas = np.linalg.norm(normal, axis=1)
    unit = normal / np.where(areas > 0, areas, 1)[:, None]
    weight = (vectors * unit[owner]).sum(axis=1)
    middle = (start + stop + corner) * weight[:, None]
    centre = np.stack([np.bincount(owner, middle[:, axis], rows) for axis in range(3)], axis=-1)
    length = np.linalg.norm(centre, axis=1)
    radius = _radii(tiles)
    return centre * (radius / np.where(length > 0, length, 1))[:, None], areas * radius**2


def _triangles(tiles: pa.Table) -> tuple[FloatArray, FloatArray, IntArray, FloatArray]:
    """Return the edges of all rings on the unit sphere: (m, 3) start, stop, (m,) row of the table, (m, 3) first corner of the ring."""
    parts, tile = shapely.get_parts(geometries(tiles), return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    unit = ecef(points, 1.0)
    same = ring[1:] == ring[:-1]
    first = np.searchsorted(ring, np.arange(len(rings)))
    ring = ring[:-1][same]
    return unit[:-1][same], unit[1:][same], tile[part[ring]].astype(np.int64), unit[first[ring]]


def _radii(tiles: pa.Table) -> FloatArray:
    """Return the radius of each tile's body, (n,) metres."""
    encoded: Any = tiles["crs"].combine_chunks().dictionary_encode()
    of_crs = np.array([radius_m(crs) for crs in encoded.dictionary.to_pylist()] + [radius_m(None)])
    radii: FloatArray = of_crs[encoded.indices.fill_null(len(of_crs) - 1).to_numpy(zero_copy_only=False)]
    return radii
