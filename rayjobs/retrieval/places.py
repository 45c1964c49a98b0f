"""Which tiles meet a box or a polygon: boxes round neighbours, and round those, so that only tiles on the edge are compared one by one.

Longitude and latitude are a map that goes on past the antimeridian: a box is kept *unrolled*, its west within [-180, 180] and its east at
or past its west, so that comparisons are of plain numbers.
"""

# ruff: noqa: PLR2004  (90, 180 and 360 degrees need no name)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import shapely
import shapely.affinity
import shapely.errors

from rayjobs import geo
from rayjobs.errors import QueryError

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int32]]
GeometryArray = np.ndarray[Any, np.dtype[np.object_]]

FANOUT = 16
"""Tiles, and boxes, that have one box round them all."""
_MOST_VERTICES = 20_000
"""Of a polygon that is searched in; comparing costs as much as it has edges."""
_TURNS = (-360.0, 0.0, 360.0)
_TOUCH_DEG = 1e-9
"""Boxes are grown by this (0.1 mm) before asking whether they are apart, so that rounding never hides a shared edge."""
_NEAREST = 16
"""Boxes round tiles, and round those, that are looked into for what is near."""


class Compared(NamedTuple):
    """How boxes lie to a region."""

    meets: BoolArray
    """(n,) whether a box may share a point with the region; where it is false, it does not."""
    inside: BoolArray
    """(n,) whether the region holds the whole box; where it is true, it does."""


class Region(Protocol):
    """A part of the ground that tiles may meet."""

    def compare(self, boxes: FloatArray) -> Compared:
        """Compare unrolled boxes, (n, 4) west, south, east, north, none of them NaN."""

    def meets(self, boxes: FloatArray, footprints: Callable[[IntArray], GeometryArray]) -> BoolArray:
        """Tell which tiles meet the region, (n,), by their boxes or their footprints; `footprints` reads those of some of the n."""


class BoxRegion:
    """A box in degrees; tiles meet it if their boxes do."""

    def __init__(self, bbox: geo.BBox) -> None:
        """Take a box, west > east over the antimeridian."""
        self._west, self._south, self._east, self._north = unrolled(np.array([bbox]))[0]

    def compare(self, boxes: FloatArray) -> Compared:
        """See `Region`."""
        west, south, east, north = boxes.T
        meets, inside = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
        for turn in _TURNS:
            meets |= (west <= self._east + turn) & (east >= self._west + turn)
            inside |= (west >= self._west + turn) & (east <= self._east + turn)
        inside |= self._east - self._west >= 360
        meets &= (south <= self._north) & (north >= self._south)
        inside &= (south >= self._south) & (north <= self._north)
        return Compared(meets, inside)

    def meets(self, boxes: FloatArray, footprints: Callable[[IntArray], GeometryArray]) -> BoolArray:  # noqa: ARG002  boxes tell
        """See `Region`."""
        return self.compare(boxes).meets


class Area:
    """Polygons on the ground; tiles meet them if their footprints do.

    Edges are straight in longitude and latitude (RFC 7946). A ring with an edge that spans more than half a turn of longitude is taken to
    cross the antimeridian there, the short way; longitudes past 180 degrees say the same. A ring that goes once round a pole
    holds the pole that it is nearer to. An edge from -180 to 180 is drawn as it is written.
    """

    def __init__(self, geometry: Any) -> None:
        """Take a shapely Polygon or MultiPolygon.

        Raises:
            QueryError: it is none of these, is empty, crosses itself, has too many vertices, or leaves the globe.
        """
        whole = _on_the_globe(geometry)
        self._bounds = BoxRegion(geo.bbox_of(whole))
        copies = [shapely.affinity.translate(whole, xoff=turn) for turn in _TURNS]
        self._rounds = shapely.union_all(copies)
        shapely.prepare(self._rounds)

    def compare(self, boxes: FloatArray) -> Compared:
        """See `Region`."""
        meets, inside = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
        near = self._near(boxes)
        grown = shapely.box(*_grown(boxes[near]).T)
        meets[near] = shapely.intersects(self._rounds, grown)
        inside[meets] = shapely.contains_properly(self._rounds, grown[meets[near]])
        return Compared(meets, inside)

    def meets(self, boxes: FloatArray, footprints: Callable[[IntArray], GeometryArray]) -> BoolArray:
        """See `Region`."""
        met, near = np.zeros(len(boxes), bool), self._near(boxes)
        met[near] = shapely.intersects(self._rounds, footprints(near))
        return met

    def _near(self, boxes: FloatArray) -> IntArray:
        return np.flatnonzero(self._bounds.compare(_grown(boxes)).meets)


def _grown(boxes: FloatArray) -> FloatArray:
    """Return boxes grown by what rounding may hide."""
    return np.add(boxes, (-_TOUCH_DEG, -_TOUCH_DEG, _TOUCH_DEG, _TOUCH_DEG))


def area_of(geojson: Mapping[str, Any]) -> Any:
    """Return a GeoJSON Polygon or MultiPolygon as a shapely geometry; what else `Area` asks of it is checked there.

    Raises:
        QueryError: it is none.
    """
    try:
        return shapely.geometry.shape(geojson)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
        raise QueryError(f"intersects is no GeoJSON polygon ({' '.join(str(error).split())[:200]})") from None


def _on_the_globe(geometry: Any) -> Any:
    """Return polygons within [-180, 180] degrees, cut at the antimeridian."""
    if getattr(geometry, "geom_type", None) not in {"Polygon", "MultiPolygon"}:
        raise QueryError(f"intersects takes a Polygon or a MultiPolygon, not a {getattr(geometry, 'geom_type', type(geometry).__name__)}")
    if geometry.is_empty:
        raise QueryError("the polygon of intersects is empty")
    if (count := shapely.get_num_coordinates(geometry)) > _MOST_VERTICES:
        raise QueryError(f"the polygon of intersects has {count:,} vertices, more than {_MOST_VERTICES:,}; simplify it")
    whole = shapely.union_all([_without_holes(part) for part in shapely.get_parts(geometry)])
    if whole.area == 0:
        raise QueryError("the polygon of intersects has no area")
    return whole


def _without_holes(polygon: Any) -> Any:
    holes = [_ring_on_the_globe(hole) for hole in polygon.interiors]
    return shapely.difference(_ring_on_the_globe(polygon.exterior), shapely.union_all(holes))


def _ring_on_the_globe(ring: Any) -> Any:
    points = shapely.get_coordinates(ring)
    if not (np.isfinite(points).all() and np.abs(points[:, 0]).max() <= 360 and np.abs(points[:, 1]).max() <= 90):
        raise QueryError("the polygon of intersects leaves the globe: longitudes are within [-180, 180], latitudes within [-90, 90]")
    try:
        return geo.polygon_of_ring(points[:-1])
    except ValueError as error:
        raise QueryError(f"the polygon of intersects is not valid: {error}; correct it") from None


class Places:
    """The boxes of tiles, in groups of neighbours that have a box themselves, as have groups of groups (a packed R-tree)."""

    def __init__(self, *, boxes: Sequence[FloatArray], order: Rows, geometries: Callable[[IntArray], GeometryArray]) -> None:
        """Take what is known of tiles.

        Args:
            boxes: west, south, east and north, (rows,) each, unrolled; NaN for tiles without a place.
            order: (rows,) as `packed_order` returns it.
            geometries: reads the footprints of rows.
        """
        self._boxes, self._order, self._geometries = boxes, order, geometries
        self.count = len(order) - int(np.isnan(boxes[0]).sum())
        """Tiles that have a place."""
        self._levels = _levels([side[order[: self.count]] for side in boxes])

    def _boxes_of(self, rows: IntArray) -> FloatArray:
        return np.stack([side[rows] for side in self._boxes], axis=1)

    @property
    def known(self) -> BoolArray:
        """(rows,) whether a tile has a place."""
        return ~np.isnan(self._boxes[0])

    def meeting(self, region: Region) -> IntArray:
        """Return the rows that meet a region, in no order."""
        taken: list[IntArray] = []
        nodes = np.arange(len(self._levels[0]))
        for depth, boxes in enumerate(self._levels):
            compared = region.compare(boxes[nodes])
            taken.append(self._rows_below(nodes[compared.inside], depth))
            nodes = self._children(nodes[compared.meets & ~compared.inside], depth)
        rows = self._order[nodes].astype(np.int64)
        met = region.meets(self._boxes_of(rows), lambda few: self._geometries(rows[few]))
        return np.concatenate([*taken, rows[met]])

    def _children(self, nodes: IntArray, depth: int) -> IntArray:
        """Return what boxes of one level are made of: boxes of the next, or places in the order of rows."""
        below = len(self._levels[depth + 1]) if depth + 1 < len(self._levels) else self.count
        return _members(nodes, FANOUT, below)

    def _rows_below(self, nodes: IntArray, depth: int) -> IntArray:
        return self._order[_members(nodes, FANOUT ** (len(self._levels) - depth), self.count)].astype(np.int64)

    def boxes_of(self, rows: IntArray) -> FloatArray:
        """Return tiles' boxes, (n, 4) degrees, west > east over the antimeridian; NaN for tiles without a place."""
        boxes = self._boxes_of(rows)
        boxes[:, 2] = np.where(boxes[:, 2] > 180, boxes[:, 2] - 360, boxes[:, 2])
        return boxes

    def middles(self, rows: IntArray) -> FloatArray:
        """Return longitude and latitude of the middles of tiles' boxes, (n, 2) degrees; NaN for tiles without a place."""
        return middles_of(self._boxes_of(rows))

    def within(self, place: FloatArray, distance_m: float) -> IntArray:
        """Return the rows whose middles lie nearer than `distance_m` to a place, (2,) longitude and latitude, in no order."""
        lon, lat = place
        around = geo.grown(np.array([[lon, lat, lon, lat]]), distance_m)[0]
        rows = self.meeting(BoxRegion(geo.BBox(*around.tolist())))
        return rows[geo.great_circle_m(self.middles(rows), place) < distance_m]

    def holding(self, lon: float, lat: float) -> IntArray:
        """Return the rows whose footprints hold a place, the one whose middle is nearest first."""
        rows = np.sort(self.meeting(BoxRegion(geo.BBox(lon, lat, lon, lat))))
        points = [shapely.Point(lon, lat), *([shapely.Point(-lon, lat)] if abs(lon) == 180 else [])]
        footprints = self._geometries(rows)
        rows = rows[np.any([shapely.intersects(footprints, point) for point in points], axis=0)]
        return rows[np.argsort(geo.great_circle_m(self.middles(rows), np.array([lon, lat])), kind="stable")]

    def near(self, lon: float, lat: float) -> IntArray:
        """Return some rows near a place, mostly the nearest among them: those in the boxes whose middles are nearest, level by level."""
        nodes = np.arange(len(self._levels[0]))
        for depth, boxes in enumerate(self._levels):
            away = geo.great_circle_m(middles_of(boxes[nodes]), np.array([lon, lat]))
            nodes = self._children(nodes[np.argsort(away, kind="stable")[:_NEAREST]], depth)
        return self._order[nodes].astype(np.int64)


def _members(nodes: IntArray, size: int, count: int) -> IntArray:
    """Return the members, of `count` in all, of groups of `size`."""
    members: IntArray = (nodes[:, None] * size + np.arange(size)).ravel()
    return members[members < count]


def _levels(sides: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the boxes (n, 4) round each `FANOUT` of some boxes, given by their sides, and round those, the fewest first."""
    starts = np.arange(0, len(sides[0]), FANOUT)
    if not len(starts):
        return [np.empty((0, 4))]
    rounds = [(np.minimum if number < 2 else np.maximum).reduceat(side, starts) for number, side in enumerate(sides)]
    above = _levels(rounds) if len(starts) > FANOUT else []
    return [*above, np.stack(rounds, axis=1)]


def middles_of(boxes: FloatArray) -> FloatArray:
    """Return longitude and latitude of the middles of unrolled boxes, (n, 2) degrees; NaN stays."""
    west, south, east, north = boxes.T
    return np.column_stack([geo.wrapped((west + east) / 2), (south + north) / 2])


def unrolled(boxes: FloatArray) -> FloatArray:
    """Return boxes (n, 4), west > east over the antimeridian, with easts at or past their wests; NaN stays."""
    west, south, east, north = boxes.T
    return np.stack([west, south, np.where(east < west, east + 360, east), north], axis=1)


def packed_order(boxes: FloatArray) -> Rows:
    """Return rows so that each `FANOUT` of them, and each as many groups, lie close together, those without a place last.

    Sort-tile-recursive (Leutenegger et al. 1997).

    Args:
        boxes: (rows, 4) unrolled; NaN for tiles without a place.
    """
    middles = middles_of(boxes)
    by_lon = np.argsort(middles[:, 0], kind="stable")
    count = int(np.isfinite(middles[:, 0]).sum())
    strip = FANOUT**2 * max(1, math.isqrt(-(-count // FANOUT**2)))
    strips = np.minimum(np.arange(len(by_lon)), count) // strip
    return by_lon[np.lexsort((middles[by_lon, 1], strips))].astype(np.int32)
