"""Scenes of services that hand out tiles: one for each date, on the level's own grid, clipped to the area; nothing is downloaded."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

import pyproj
import shapely

from rayjobs.errors import ConfigError
from rayjobs.rasters import dates
from rayjobs.rasters.candidates import BandFile, Candidate
from rayjobs.rasters.capabilities import chosen_format, chosen_set, moments, nearest_level, read_capabilities, template
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import GibsSource, WmtsSource, XyzSource
from rayjobs.rasters.tiled import TiledImage, TileMatrix, cut

Bounds = tuple[float, float, float, float]
"""Left, bottom, right and top."""

_WORLD: Bounds = (-180.0, -90.0, 180.0, 90.0)
_MERCATOR = "EPSG:3857"
_HALF_M = math.pi * 6_378_137.0
"""From the middle of web Mercator's square to its edge."""
_MERCATOR_BOUNDS: Bounds = (-_HALF_M, -_HALF_M, _HALF_M, _HALF_M)


def list_wmts(source: WmtsSource | GibsSource, search: Search) -> list[Candidate]:
    """Return the scenes of a layer of a web map tile service, one for each date and part of the area.

    Raises:
        BandError: the service has no such layer or matrix set.
        EmptySearchError: the layer has no tiles in that format.
        ConfigError: a date cannot be read, or lies where the service lists none.
        StorageError: the service does not answer.
    """
    capabilities = read_capabilities(source.url)
    layer = capabilities.layer(source.layer)
    matrix_set = chosen_set(capabilities, layer, source.matrix_set)
    level = nearest_level(matrix_set, source.resolution_m)
    form = chosen_format(layer, source.format)
    try:
        times: Sequence[str | None] = moments(source.dates, layer.times) or [None]
    except ValueError as error:
        raise ConfigError(f"dates of the layer {layer.identifier} of {source.url}: {error}") from None
    pieces = _pieces(search.area, matrix_set.crs, layer.bounds)
    limit = _projected(layer.bounds, matrix_set.crs)
    bands = _channels(source.channels, form)
    found = []
    for time in times:
        address = template(
            capabilities, layer, matrix_set=matrix_set.identifier, level=level.identifier, style=source.style, form=form, time=time
        )
        for bounds in pieces:
            nodata = _nodata(source, bands)
            image = cut(level, bounds, limit, template=address, crs=matrix_set.crs, bands=bands, nodata=nodata)
            if image is not None:
                named = f"{matrix_set.identifier}-{level.identifier}"
                found.append(_candidate(source.name or layer.identifier, time, named, image))
    return found


def list_xyz(source: XyzSource, search: Search) -> list[Candidate]:
    """Return the scenes of tiles in web Mercator whose addresses are told by zoom, column and row.

    Raises:
        ConfigError: a date cannot be read.
    """
    level = _mercator_level(source.zoom, source.tile_size)
    try:
        times: Sequence[str | None] = moments(source.dates, ()) or [None]
    except ValueError as error:
        raise ConfigError(f"dates of {source.url}: {error}") from None
    name = source.name or urllib.parse.urlsplit(source.url).hostname or "xyz"
    form = "image/jpeg" if urllib.parse.urlsplit(source.url).path.lower().endswith((".jpg", ".jpeg")) else "image/png"
    bands = _channels(source.channels, form)
    found = []
    for time in times:
        filled = {"{z}": level.identifier, "{x}": "{col}", "{y}": "{row}", "{date}": time or ""}
        address = source.url
        for place, text in filled.items():
            address = address.replace(place, text)
        for bounds in _pieces(search.area, _MERCATOR, (-180.0, -85.06, 180.0, 85.06)):
            nodata = _nodata(source, bands)
            image = cut(level, bounds, _MERCATOR_BOUNDS, template=address, crs=_MERCATOR, bands=bands, nodata=nodata)
            if image is not None:
                found.append(_candidate(name, time, f"z{source.zoom}", image))
    return found


def _mercator_level(zoom: int, tile_size: int) -> TileMatrix:
    tiles = 2**zoom
    pixel = 2 * _HALF_M / (tiles * tile_size)
    return TileMatrix(
        identifier=str(zoom),
        left=-_HALF_M,
        top=_HALF_M,
        pixel_width=pixel,
        pixel_height=pixel,
        tile_width=tile_size,
        tile_height=tile_size,
        columns=tiles,
        rows=tiles,
        resolution_m=pixel,
    )


def _channels(given: int | None, form: str) -> int:
    """Return how many bands tiles are read as: JPEG has no opacity."""
    return given or (3 if form == "image/jpeg" else 4)


def _nodata(source: WmtsSource | GibsSource | XyzSource, bands: int) -> float | None:
    """Return the value of missing pixels; tiles with opacity say themselves where they have no data."""
    return source.nodata if bands < 4 else None  # noqa: PLR2004  with opacity


def _candidate(name: str, time: str | None, level: str, image: TiledImage) -> Candidate:
    """Name a scene by what it shows and by its first tile, so that a window of it is the same ground whatever the area was."""
    dated = f"{name}@{time.replace(':', '')}" if time else name
    safe = "".join(letter if letter.isalnum() or letter in "@-_." else "_" for letter in f"{dated}.{level}.r{image.row}c{image.col}")
    names = ("grey",) if image.bands == 1 else None  # as `rayjobs fetch` calls it
    return Candidate(scene_id=safe, files=(BandFile(uri=image.uri, names=names),), datetime=dates.instant(time) if time else None)


def _pieces(area: shapely.Geometry | None, crs: str, has: Bounds) -> list[Bounds]:
    """Return the bounds of the area in a CRS: two where it crosses the antimeridian and the CRS is cut there."""
    if area is None:
        return [_projected(has, crs)]
    parts = list(shapely.get_parts(area))
    west = [part for part in parts if part.bounds[0] <= _WORLD[0]]
    east = [part for part in parts if part.bounds[2] >= _WORLD[2]]
    crosses = bool(west) and bool(east) and not any(part in east for part in west)
    halves = ([part for part in parts if part.bounds[0] >= 0], [part for part in parts if part.bounds[0] < 0])
    groups = [group for group in halves if group] if crosses and _cut_at_antimeridian(crs) else [parts]
    return list(_inside(groups, crs, has))


def _inside(groups: Sequence[Sequence[Any]], crs: str, has: Bounds) -> Iterator[Bounds]:
    for group in groups:
        around = shapely.total_bounds(group)
        left, bottom = max(around[0], has[0]), max(around[1], has[1])
        right, top = min(around[2], has[2]), min(around[3], has[3])
        if left < right and bottom < top:
            yield _projected((float(left), float(bottom), float(right), float(top)), crs)


def _cut_at_antimeridian(crs: str) -> bool:
    known = pyproj.CRS.from_user_input(crs)
    return known.is_geographic or known.to_epsg() == 3857  # noqa: PLR2004  web Mercator


def _projected(bounds: Bounds, crs: str) -> Bounds:
    """Return the bounds of a box of degrees in a CRS."""
    if pyproj.CRS.from_user_input(crs).is_geographic:
        return bounds
    if pyproj.CRS.from_user_input(crs).to_epsg() == 3857:  # noqa: PLR2004  whose poles lie at infinity
        bounds = (bounds[0], max(bounds[1], -85.06), bounds[2], min(bounds[3], 85.06))
    left, bottom, right, top = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform_bounds(*bounds, densify_pts=101)
    return left, bottom, right, top
