"""Where pixels lie on the ground: footprints, distances and a global grid of cells.

Only affine arithmetic, pyproj and shapely: knows nothing of files, pixels or vectors. Longitudes and latitudes are degrees of
WGS 84; imagery of another body (Mars, the Moon) keeps those of its own sphere, since nothing relates it to the Earth.

A box is (west, south, east, north) in degrees; west > east means that it crosses the antimeridian, as in GeoJSON (RFC 7946).
"""

# ruff: noqa: PLR2004  (90, 180 and 360 degrees need no name)

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyproj
import shapely
import shapely.affinity

from rayjobs.errors import ImageryError

EARTH_RADIUS_M = 6371008.8
"""Mean radius of the Earth (IUGG), metres."""
BODY_RADIUS_M = {"earth": EARTH_RADIUS_M, "mars": 3_389_500.0, "moon": 1_737_400.0}
"""Mean radius of bodies by name, metres (IAU 2015)."""

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
GeometryArray = np.ndarray[Any, np.dtype[np.object_]]

_EDGE_M = 5_000.0
"""An edge is cut into pieces no longer than this: a straight piece then leaves the true edge by half a metre at 45 degrees."""
_MAX_SEGMENTS = 64
_BENT_DEG = 0.5
"""A piece of an edge that turns by more than this, as near a pole, leaves the true edge by a thousandth of its length: cut finer."""
_STEEP_DEG = 2.0
"""Pieces that still turn by more than this lie right beside a pole, and are cut one window at a time."""
_POLE_DEG = 1e-7
"""Vertices this near a pole (1 cm) are taken as the pole."""
_TOUCH_DEG = 1e-9
"""Boxes are grown by this (0.1 mm) before asking what they touch, so that rounding never hides a shared edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A rectangle of pixels."""

    row: int
    """First row, counted from the top."""
    col: int
    """First column, counted from the left."""
    height: int
    """Rows."""
    width: int
    """Columns."""

    def __post_init__(self) -> None:
        """Refuse windows that no raster can hold."""
        if self.row < 0 or self.col < 0:
            raise ValueError(f"a window starts at or after pixel (0, 0), not at row {self.row}, column {self.col}")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a window has at least one pixel, not {self.height} x {self.width}")

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to cut an array (..., height, width)."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def intersects(self, other: Window) -> bool:
        """Whether the two windows share a pixel."""
        rows = self.row < other.row + other.height and other.row < self.row + self.height
        return rows and self.col < other.col + other.width and other.col < self.col + self.width

    def inside(self, height: int, width: int) -> bool:
        """Whether a raster of that shape holds the window."""
        return self.row + self.height <= height and self.col + self.width <= width


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which ground the pixels of a raster lie on."""

    crs: str | None
    """WKT or `EPSG:n`; None for plain images, which lie nowhere."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f, pixel corners to the units of `crs`."""
    height: int
    """Rows."""
    width: int
    """Columns."""

    def __post_init__(self) -> None:
        """Refuse grids without pixels or without extent."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a grid has at least one pixel, not {self.height} x {self.width}")
        a, b, _, d, e, _ = self.transform
        if not all(map(math.isfinite, self.transform)) or a * e == b * d:
            raise ValueError(f"the transform {self.transform} does not map pixels to the ground one to one")

    @property
    def whole(self) -> Window:
        """The window of all pixels."""
        return Window(row=0, col=0, height=self.height, width=self.width)

    def xy(self, cols: FloatArray, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return coordinates in the units of `crs` for pixel positions (0, 0 = the outer corner of the first pixel), any shape."""
        a, b, c, d, e, f = self.transform
        return a * cols + b * rows + c, d * cols + e * rows + f


class BBox(NamedTuple):
    """A box in degrees; west > east where it crosses the antimeridian."""

    west: float
    south: float
    east: float
    north: float


def window_array(windows: Sequence[Window]) -> IntArray:
    """Return windows as (n, 4) int64: row, col, height, width."""
    return np.array([(w.row, w.col, w.height, w.width) for w in windows], np.int64).reshape(-1, 4)


class _Ground(NamedTuple):
    to_lonlat: pyproj.Transformer
    geographic: bool
    radius_m: float
    geodesic: pyproj.Geod


@functools.lru_cache(maxsize=256)
def _ground(crs: str) -> _Ground:
    try:
        parsed = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise ImageryError(f"cannot read the coordinate reference system {_short(crs)}; correct it in the imagery") from error
    ellipsoid, geodesic = parsed.ellipsoid, parsed.get_geod()
    if ellipsoid is None or geodesic is None or parsed.geodetic_crs is None:
        raise ImageryError(f"the coordinate reference system {_short(crs)} is not tied to the ground; assign the imagery another, or none")
    radius = (2 * ellipsoid.semi_major_metre + ellipsoid.semi_minor_metre) / 3
    try:
        transformer = pyproj.Transformer.from_crs(parsed, "EPSG:4326", always_xy=True)
    except pyproj.exceptions.ProjError:  # another celestial body: PROJ refuses to relate it to the Earth
        transformer = pyproj.Transformer.from_crs(parsed, parsed.geodetic_crs, always_xy=True)
        return _Ground(transformer, parsed.is_geographic, radius, geodesic)
    return _Ground(transformer, parsed.is_geographic, EARTH_RADIUS_M, geodesic)


def _short(crs: str) -> str:
    text = " ".join(crs.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def locatable(crs: str | None) -> bool:
    """Whether a coordinate reference system leads to longitude and latitude (engineering and unreadable ones do not)."""
    if crs is None:
        return False
    try:
        _ground(crs)
    except ImageryError:
        return False
    return True


def radius_m(crs: str | None) -> float:
    """Return the mean radius of the body that `crs` describes, metres; the Earth's for None.

    Raises:
        ImageryError: the CRS cannot be read or is not tied to the ground.
    """
    return EARTH_RADIUS_M if crs is None else _ground(crs).radius_m


def _lonlat(grid: Grid, cols: FloatArray, rows: FloatArray) -> FloatArray:
    """Transform pixel positions of any shape to (..., 2) degrees; longitudes as PROJ gives them; not finite where there is no ground."""
    if grid.crs is None:
        raise ValueError("plain images have no place on the ground")
    x, y = grid.xy(cols, rows)
    lon, lat = _ground(grid.crs).to_lonlat.transform(x, y)
    return np.stack([np.asarray(lon, np.float64), np.asarray(lat, np.float64)], axis=-1)


def lonlat(grid: Grid, windows: IntArray) -> FloatArray:
    """Return where the centres of windows lie.

    Args:
        grid: with a CRS.
        windows: (n, 4) int: row, col, height, width.

    Returns:
        (n, 2) float64 longitude in [-180, 180) and latitude, degrees; not finite where the centre lies off the ground (in the
        corner of a full-disk image).
    """
    row, col, height, width = np.asarray(windows, np.float64).reshape(-1, 4).T
    found = _lonlat(grid, col + width / 2, row + height / 2)
    found[:, 0] = wrapped(found[:, 0])
    return found


def wrapped(degrees: FloatArray) -> FloatArray:
    """Return angles within [-180, 180)."""
    with np.errstate(invalid="ignore"):
        inside = (degrees >= -180) & (degrees < 180)
        turned: FloatArray = np.where(inside, degrees, (degrees + 180) % 360 - 180)  # untouched where already inside: no rounding
    return turned


def ground_size_m(grid: Grid) -> float | None:
    """Return the side of the pixel at the grid's centre, metres along the geodesic (the mean of its two sides).

    Returns:
        None for plain images and where the centre lies off the ground.
    """
    sides = pixel_sides_m(grid)
    return None if sides is None else (sides[0] + sides[1]) / 2


def pixel_sides_m(grid: Grid) -> tuple[float, float] | None:
    """Return width and height of the pixel at the grid's centre, metres along the geodesic.

    Returns:
        None for plain images and where the centre lies off the ground.
    """
    if grid.crs is None:
        return None
    col, row = grid.width / 2, grid.height / 2
    ends = _lonlat(grid, np.array([col - 0.5, col + 0.5, col, col]), np.array([row, row, row - 0.5, row + 0.5]))
    geodesic = _ground(grid.crs).geodesic
    if not np.isfinite(ends).all():
        return None
    _, _, sides = geodesic.inv(ends[::2, 0], ends[::2, 1], ends[1::2, 0], ends[1::2, 1])
    return float(sides[0]), float(sides[1])


def footprint(grid: Grid, window: Window | None = None) -> Any:
    """Return the ground of a window (default: of the whole grid) as a shapely geometry; see `footprints`."""
    return footprints(grid, window_array([window or grid.whole]))[0]


def footprints(grid: Grid, windows: IntArray) -> GeometryArray:
    """Return the ground that windows cover.

    Edges are cut so that the bends of a reprojection are kept. Outer rings run counter-clockwise. A footprint that crosses the
    antimeridian is a MultiPolygon cut at 180 degrees; one that holds a pole reaches up to it.

    Args:
        grid: where the pixels lie.
        windows: (n, 4) int: row, col, height, width.

    Returns:
        (n,) shapely geometries in degrees; None where the grid has no CRS or a window does not lie wholly on the ground.

    Raises:
        ImageryError: the CRS cannot be read or is not tied to the ground.
    """
    windows = np.asarray(windows, np.int64).reshape(-1, 4)
    if grid.crs is None or not len(windows):
        return np.full(len(windows), None, object)
    return _footprints(grid, windows, _segments(grid, windows))


def _footprints(grid: Grid, windows: IntArray, segments: int) -> GeometryArray:
    result: GeometryArray = np.full(len(windows), None, object)
    cols, rows = _outline(windows, segments)
    ring = _lonlat(grid, cols, rows)
    on_ground = np.isfinite(ring).all(axis=(1, 2))
    ring[~on_ground] = 0.0
    steps = wrapped(np.roll(ring[:, :, 0], -1, axis=1) - ring[:, :, 0])
    bent, polar = _near_pole(grid, ring, steps)
    if segments < _MAX_SEGMENTS and bent.any():
        result[bent] = _footprints(grid, windows[bent], min(_MAX_SEGMENTS, 16 * segments))
        on_ground &= ~bent
    ring[:, 1:, 0] = ring[:, :1, 0] + np.cumsum(steps[:, :-1], axis=1)
    crossing = (ring[:, :, 0].min(axis=1) < -180) | (ring[:, :, 0].max(axis=1) > 180)
    plain = on_ground & ~polar & ~crossing
    result[plain] = _polygons(ring[plain])
    for index in np.flatnonzero(on_ground & crossing & ~polar):
        result[index] = _cut(ring[index])
    for index in np.flatnonzero(on_ground & polar):
        result[index] = _cut(_polar_ring(_refined(grid, cols[index], rows[index])))
    return result


def _segments(grid: Grid, windows: IntArray) -> int:
    size_m = ground_size_m(grid)
    if size_m is None:
        return _MAX_SEGMENTS
    return max(1, min(_MAX_SEGMENTS, math.ceil(int(windows[:, 2:].max()) * size_m / _EDGE_M)))


def _outline(windows: IntArray, segments: int) -> tuple[FloatArray, FloatArray]:
    """Return pixel positions round each window, (n, 4 segments): down, right, up, left; counter-clockwise on a north-up grid."""
    along = np.arange(segments) / segments
    zero, one = np.zeros(segments), np.ones(segments)
    right = np.concatenate([zero, along, one, 1 - along])
    down = np.concatenate([along, one, 1 - along, zero])
    row, col, height, width = windows[:, :, None].transpose(1, 0, 2).astype(np.float64)
    return col + width * right, row + height * down


def _near_pole(grid: Grid, ring: FloatArray, steps: FloatArray) -> tuple[BoolArray, BoolArray]:
    """Tell which rings (n, k, 2) bend and which lie beside a pole, by their steps in longitude (n, k); on a geographic grid none does."""
    if grid.crs is None or _ground(grid.crs).geographic:
        return np.zeros(len(ring), bool), np.zeros(len(ring), bool)
    steepest = np.abs(steps).max(axis=1)
    polar = (steepest > _STEEP_DEG) | (np.abs(ring[:, :, 1]) > 90 - _POLE_DEG).any(axis=1) | (np.abs(steps.sum(axis=1)) > 180)
    return steepest > _BENT_DEG, polar


def _polygons(rings: FloatArray) -> GeometryArray:
    """Make polygons of open rings (n, k, 2), turning those that run clockwise."""
    x, y = rings[:, :, 0], rings[:, :, 1]
    x0, y0 = x - x[:, :1], y - y[:, :1]
    doubled = (x0 * np.roll(y0, -1, axis=1) - np.roll(x0, -1, axis=1) * y0).sum(axis=1)
    rings = np.where((doubled < 0)[:, None, None], rings[:, ::-1], rings)
    closed = np.concatenate([rings, rings[:, :1]], axis=1)
    made: GeometryArray = shapely.polygons(closed)
    return made


def _refined(grid: Grid, cols: FloatArray, rows: FloatArray) -> FloatArray:
    """Halve the edges of one window until no piece turns far round the pole; return its ring, (k, 2) degrees."""
    points = _lonlat(grid, cols, rows)
    for _ in range(40):
        steps = np.abs(wrapped(np.roll(points[:, 0], -1) - points[:, 0]))
        at_pole = np.abs(points[:, 1]) > 90 - _POLE_DEG
        steep = (steps > _STEEP_DEG) & ~at_pole & ~np.roll(at_pole, -1)
        if not steep.any():
            break
        where = np.flatnonzero(steep)
        following = (where + 1) % len(cols)
        cols, rows = (np.insert(axis, where + 1, (axis[where] + axis[following]) / 2) for axis in (cols, rows))
        points = _lonlat(grid, cols, rows)
    return points


def _polar_ring(points: FloatArray) -> FloatArray:
    """Return one window's ring beside a pole, longitudes unwrapped; it runs along the pole where the window reaches or holds it."""
    pole = math.copysign(90.0, float(points[:, 1].sum()))
    at_pole = np.abs(points[:, 1]) > 90 - _POLE_DEG
    if at_pole.any():  # start just behind the pole, so that the ring ends by going to it
        start = int(np.flatnonzero(at_pole & ~np.roll(at_pole, -1))[0]) + 1
        points = np.roll(points, -start, axis=0)[~np.roll(at_pole, -start)]
    steps = wrapped(np.roll(points[:, 0], -1) - points[:, 0])
    ring = points.copy()
    ring[1:, 0] = points[0, 0] + np.cumsum(steps[:-1])
    turned = float(steps.sum())
    if at_pole.any():
        return np.vstack([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])
    if abs(turned) > 180:  # the ring goes once round the pole
        end = ring[0, 0] + turned
        return np.vstack([ring, [[end, ring[0, 1]], [end, pole], [ring[0, 0], pole]]])
    return ring


def _cut(ring: FloatArray) -> Any:
    """Return an unwrapped ring (k, 2) as a polygon within [-180, 180], cut at the antimeridian."""
    ring = ring - [360 * math.floor((ring[:, 0].min() + 180) / 360), 0]
    whole = shapely.make_valid(shapely.Polygon(ring))
    parts: list[Any] = []
    for turn in range(math.ceil((ring[:, 0].max() + 180) / 360)):
        piece = shapely.intersection(whole, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        moved = shapely.affinity.translate(piece, xoff=-360 * turn)
        parts += [part for part in shapely.get_parts(moved) if part.geom_type == "Polygon" and part.area > 0]
    # a ring round a pole is cut where it starts as well as at the antimeridian: there its parts are one again
    parts = list(shapely.get_parts(shapely.union_all(parts)))
    oriented = [shapely.Polygon(part.exterior if part.exterior.is_ccw else part.exterior.reverse(), part.interiors) for part in parts]
    return oriented[0] if len(oriented) == 1 else shapely.MultiPolygon(oriented)


def polygon_of_ring(ring: FloatArray) -> Any:
    """Return the ground inside a ring that a person drew, cut at the antimeridian.

    An edge that spans more than half a turn of longitude goes the short way, over the antimeridian, as do longitudes past 180 degrees; one
    from -180 to 180 is kept as it is. A ring that goes once round a pole holds the pole that it is nearer to.

    Args:
        ring: (k, 2) degrees, open.

    Raises:
        ValueError: the ring crosses itself, or has fewer than three corners.
    """
    steps = np.roll(ring[:, 0], -1) - ring[:, 0]
    short = wrapped(steps)
    if (np.abs(steps) > 180).any() and not (np.abs(steps) == 360).any():
        round_a_pole = abs(short.sum()) > 180
        ring = _polar_ring(ring) if round_a_pole else np.column_stack([ring[0, 0] + np.cumsum([0, *short[:-1]]), ring[:, 1]])
    if len(ring) < 3 or not (drawn := shapely.Polygon(ring)).is_valid:
        raise ValueError(shapely.is_valid_reason(drawn) if len(ring) >= 3 else "a ring has three corners or more")
    return drawn if np.abs(ring[:, 0]).max() <= 180 else _cut(ring)


def ecef(lonlat: FloatArray, radius_m: float | FloatArray = EARTH_RADIUS_M) -> FloatArray:
    """Return points on a sphere as earth-centred coordinates: (n, 2) degrees to (n, 3) metres."""
    lon, lat = np.radians(np.asarray(lonlat, np.float64).reshape(-1, 2)).T
    unit = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
    return np.asarray(unit * np.reshape(radius_m, (-1, 1)), np.float64)


def great_circle_m(a: FloatArray, b: FloatArray, radius_m: float | FloatArray = EARTH_RADIUS_M) -> FloatArray:
    """Return distances along great circles (haversine), metres.

    Args:
        a: (n, 2) or (2,) longitude and latitude, degrees.
        b: (n, 2) or (2,).
        radius_m: of the body, or (n,) of the body of each pair; on the Earth the sphere is at most 0.6 % off the ellipsoid.
    """
    (lon_a, lat_a), (lon_b, lat_b) = np.radians(a).T, np.radians(b).T
    half = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return np.asarray(2 * radius_m * np.arcsin(np.sqrt(np.clip(half, 0, 1))), np.float64)


def _cell_rows(size_m: float) -> int:
    if not (math.isfinite(size_m) and size_m > 0):
        raise ValueError(f"cells have a positive size, not {size_m} m")
    return max(1, round(math.pi * EARTH_RADIUS_M / size_m))


def _cell_cols(row: IntArray, size_m: float) -> IntArray:
    middle = np.radians((row + 0.5) * 180 / _cell_rows(size_m) - 90)
    return np.maximum(1, np.rint(2 * math.pi * EARTH_RADIUS_M * np.cos(middle) / size_m)).astype(np.int64)


def cells(lonlat: FloatArray, size_m: float) -> IntArray:
    """Return the cell of a global grid that each point lies in.

    Rows are bands of latitude of about `size_m`; each row has an integer number of columns about `size_m` wide, so that it closes
    at the antimeridian (the idea of the Major TOM grid, Francis & Czerkawski 2024). Cells do not depend on any imagery.

    Args:
        lonlat: (n, 2) degrees, finite.
        size_m: side of a cell, metres on the Earth's sphere.

    Returns:
        (n, 2) int64 row (0 = south pole) and column (0 = eastwards of 180 degrees).
    """
    lonlat = np.asarray(lonlat, np.float64).reshape(-1, 2)
    rows = _cell_rows(size_m)
    row = np.clip(np.floor((lonlat[:, 1] + 90) * rows / 180).astype(np.int64), 0, rows - 1)
    cols = _cell_cols(row, size_m)
    col = np.minimum(np.floor((wrapped(lonlat[:, 0]) + 180) * cols / 360).astype(np.int64), cols - 1)
    return np.stack([row, col], axis=-1)


def cell_name(row: int, col: int) -> str:
    """Return a cell's name; unique among cells of one size."""
    return f"r{row}c{col}"


class Touched(NamedTuple):
    """Which cells boxes touch, one entry for each pair of a box and a cell."""

    box: IntArray
    """(m,) index of the box, ascending."""
    cell: IntArray
    """(m, 2) row and column."""


def cells_touched_by(boxes: FloatArray, size_m: float) -> Touched:
    """Return the cells that boxes share or touch, an edge or a corner being enough.

    Args:
        boxes: (n, 4) west, south, east, north, degrees; west > east crosses the antimeridian.
        size_m: side of a cell, metres.
    """
    west, south, east, north = np.asarray(boxes, np.float64).reshape(-1, 4).T
    rows = _cell_rows(size_m)
    first = np.clip(np.floor((south - _TOUCH_DEG + 90) * rows / 180), 0, rows - 1).astype(np.int64)
    last = np.clip(np.floor((north + _TOUCH_DEG + 90) * rows / 180), 0, rows - 1).astype(np.int64)
    box, row = _spread(first, last)
    cols = _cell_cols(row, size_m)
    width = np.where(west > east, east - west + 360, east - west)[box] + 2 * _TOUCH_DEG
    start = np.floor((west[box] - _TOUCH_DEG + 180) * cols / 360).astype(np.int64)
    stop = np.floor((west[box] - _TOUCH_DEG + width + 180) * cols / 360).astype(np.int64)
    pair, col = _spread(start, np.minimum(stop, start + cols - 1))
    return Touched(box[pair], np.stack([row[pair], col % cols[pair]], axis=-1))


def _spread(first: IntArray, last: IntArray) -> tuple[IntArray, IntArray]:
    """List first[i]..last[i] for each i: (m,) the i, (m,) the number."""
    counts = last - first + 1
    index = np.repeat(np.arange(len(first)), counts)
    offsets = np.cumsum(counts) - counts
    return index, first[index] + np.arange(len(index)) - offsets[index]


def cells_touched(west: float, south: float, east: float, north: float, size_m: float) -> IntArray:
    """Return the cells that one box shares or touches, (m, 2) int64; see `cells_touched_by`."""
    return cells_touched_by(np.array([[west, south, east, north]]), size_m).cell


def bboxes(geometries: GeometryArray) -> FloatArray:
    """Return the boxes of geometries, (n, 4) degrees; NaN for None.

    Of geometries in several parts the smallest box is taken that may cross the antimeridian.
    """
    geometries = np.asarray(geometries, object)
    found: FloatArray = shapely.bounds(geometries)
    for index in np.flatnonzero(shapely.get_num_geometries(geometries) > 1):
        west, east = _around(shapely.bounds(shapely.get_parts(geometries[index]))[:, [0, 2]])
        found[index, [0, 2]] = west, east
    return found


def _around(spans: FloatArray) -> tuple[float, float]:
    """Return the shortest span round the circle that holds all (n, 2) spans of longitude."""
    spans = spans[np.argsort(spans[:, 0])]
    reach = np.maximum.accumulate(spans[:, 1])
    gaps = np.append(spans[1:, 0] - reach[:-1], spans[0, 0] + 360 - reach[-1])
    widest = int(np.argmax(gaps))
    if gaps[widest] <= 0:
        return -180.0, 180.0
    if widest == len(gaps) - 1:
        return float(spans[0, 0]), float(reach[-1])
    return float(spans[widest + 1, 0]), float(reach[widest])


def bbox_of(geometry: Any) -> BBox:
    """Return the box of one geometry; see `bboxes`."""
    return BBox(*map(float, bboxes(np.array([geometry], object))[0]))


def polygon_of_box(west: float, south: float, east: float, north: float) -> Any:
    """Return a box as a Polygon, or as a MultiPolygon cut at the antimeridian where west > east."""
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def parse_bbox(values: Sequence[float]) -> BBox:
    """Check a box that a person wrote.

    Raises:
        ValueError: it has not four finite numbers, is upside down or leaves the globe (fit to be shown; the caller names the key).
    """
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(f"a bounding box is four numbers [west, south, east, north], not {list(values)}")
    box = BBox(*map(float, values))
    if box.south > box.north:
        raise ValueError(f"the bounding box {list(values)} has its south {box.south} above its north {box.north}")
    if not (-90 <= box.south <= box.north <= 90 and -180 <= box.west <= 180 and -180 <= box.east <= 180):
        raise ValueError(f"the bounding box {list(values)} leaves the globe: longitudes are within [-180, 180], latitudes within [-90, 90]")
    return box


def in_bbox(lonlat: FloatArray, bbox: BBox) -> BoolArray:
    """Return which points (n, 2) lie in a box or on its edge: (n,) bool."""
    lonlat = np.asarray(lonlat, np.float64).reshape(-1, 2)
    lon, lat = wrapped(lonlat[:, 0]), lonlat[:, 1]
    if bbox.west > bbox.east:
        across = (lon >= bbox.west) | (lon <= bbox.east)
    else:  # -180 and 180 are one meridian
        across = ((lon >= bbox.west) & (lon <= bbox.east)) | ((lon == -180) & (bbox.east == 180))
    return np.asarray(across & (lat >= bbox.south) & (lat <= bbox.north), np.bool_)


def grown(boxes: FloatArray, distance_m: float) -> FloatArray:
    """Return boxes (n, 4) grown on all sides, so that they hold every point within `distance_m` of the box."""
    west, south, east, north = np.asarray(boxes, np.float64).reshape(-1, 4).T
    lat = math.degrees(distance_m / EARTH_RADIUS_M)
    south, north = np.maximum(south - lat, -90), np.minimum(north + lat, 90)
    furthest = np.radians(np.maximum(np.abs(south), np.abs(north)))
    width = np.where(west > east, east - west + 360, east - west)
    with np.errstate(divide="ignore"):
        lon = np.where(distance_m > 0, lat / np.maximum(np.cos(furthest), 1e-12), 0.0)
    all_round = width + 2 * lon >= 360
    lon = np.where(all_round, 0.0, lon)
    new_west = np.where(all_round, -180.0, np.where(west - lon < -180, west - lon + 360, west - lon))
    new_east = np.where(all_round, 180.0, np.where(east + lon > 180, east + lon - 360, east + lon))
    return np.stack([new_west, south, new_east, north], axis=-1)


def geoparquet_metadata(geometries: GeometryArray) -> bytes:
    """Return the value of the Parquet key `geo` (GeoParquet 1.1) for a WKB column `geometry` that holds these geometries."""
    known = np.asarray(geometries, object)
    known = known[~shapely.is_missing(known)]
    types = _TYPES[np.flatnonzero(np.bincount(shapely.get_type_id(known), minlength=len(_TYPES)))]
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(types.tolist())}
    if len(known):
        boxes = bboxes(known)
        across = boxes[:, 0] > boxes[:, 2]
        ends = [(west, 180.0) for west, _, _, _ in boxes[across]] + [(-180.0, east) for _, _, east, _ in boxes[across]]
        west, east = _around(np.vstack([boxes[~across][:, [0, 2]], np.reshape(ends, (-1, 2))]))
        column["bbox"] = [west, float(boxes[:, 1].min()), east, float(boxes[:, 3].max())]
    return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}, sort_keys=True).encode()


_TYPES = np.array(["Point", "LineString", "LinearRing", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon", "GeometryCollection"])
"""Names of shapely's type ids."""
