"""Scenes of services that hand out tiles: one for each date, on the level's own grid, clipped to the area; nothing is downloaded."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyproj
import shapely

from rayjobs.errors import ConfigError
from rayjobs.rasters import dates
from rayjobs.rasters.candidates import BandFile, Candidate
from rayjobs.rasters.capabilities import (
    chosen_format,
    chosen_set,
    chosen_style,
    moments,
    nearest_level,
    read_capabilities,
    template,
    unlisted,
)
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import GibsSource, WmtsSource, XyzSource
from rayjobs.rasters.tiled import TiledImage, TileMatrix, cut

Bounds = tuple[float, float, float, float]
"""Left, bottom, right and top."""

_WORLD: Bounds = (-180.0, -90.0, 180.0, 90.0)
_MERCATOR = 3857
"""EPSG code of web Mercator."""
_HALF_M = math.pi * 6_378_137.0
"""From the middle of its square to its edge."""
_MERCATOR_WORLD: Bounds = (-180.0, -85.06, 180.0, 85.06)
"""Degrees: its poles lie at infinity, and its square ends a little within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """One level of what a service shows: what its scenes have in common, whatever their dates."""

    name: str
    """First part of the scenes' ids."""
    level: str
    """Second part, after the date."""
    matrix: TileMatrix
    crs: str
    has: Bounds
    """Where it has tiles, degrees."""
    bands: int
    nodata: float | None
    unlisted: frozenset[str] = frozenset()
    """Of the dates that are asked for, those that the service does not list."""


def list_wmts(source: WmtsSource | GibsSource, search: Search) -> list[Candidate]:
    """Return the scenes of a layer of a web map tile service, one for each date and part of the area.

    Raises:
        BandError: the service has no such layer or matrix set, or its tiles are no pictures.
        ConfigError: the layer has no such format or style; a date cannot be read, lies where the service lists none, or cannot be asked
            for since the layer has no dates.
        StorageError: the service does not answer.
    """
    capabilities = read_capabilities(source.url)
    layer = capabilities.layer(source.layer)
    matrix_set = chosen_set(capabilities, layer, source.matrix_set)
    level = nearest_level(matrix_set, source.resolution_m)
    form, style = chosen_format(layer, source.format), chosen_style(layer, source.style)
    times = _times(source.dates, layer.times, f"the layer {layer.identifier} of {source.url}")
    bands = _channels(source.channels, form)
    shown = _Shown(
        name=source.name or layer.identifier,
        level=f"{matrix_set.identifier}-{level.identifier}",
        matrix=level,
        crs=matrix_set.crs,
        has=layer.bounds,
        bands=bands,
        nodata=_nodata(source, bands),
        unlisted=unlisted(source.dates, layer.times),
    )
    place = {"matrix_set": matrix_set.identifier, "level": level.identifier}
    templates = {time: template(capabilities, layer, **place, style=style, form=form, time=time) for time in times}
    return _scenes(shown, templates, search)


def list_xyz(source: XyzSource, search: Search) -> list[Candidate]:
    """Return the scenes of tiles in web Mercator whose addresses are told by zoom, column and row.

    Raises:
        ConfigError: a date cannot be read.
    """
    address = urllib.parse.urlsplit(source.url)
    bands = _channels(source.channels, "image/jpeg" if address.path.lower().endswith((".jpg", ".jpeg")) else "image/png")
    shown = _Shown(
        name=source.name or address.hostname or "xyz",
        level=f"z{source.zoom}",
        matrix=_mercator_level(source.zoom, source.tile_size),
        crs=f"EPSG:{_MERCATOR}",
        has=_MERCATOR_WORLD,
        bands=bands,
        nodata=_nodata(source, bands),
    )
    placed = source.url.replace("{z}", str(source.zoom)).replace("{x}", "{col}").replace("{y}", "{row}")
    return _scenes(shown, {time: placed.replace("{date}", time or "") for time in _times(source.dates, (), source.url)}, search)


def _times(asked: Sequence[str], listed: Sequence[str], whose: str) -> Sequence[str | None]:
    """Return the dates that are asked for; None, what is shown by default, where none are.

    Raises:
        ConfigError: one cannot be read, or lies where the service lists none.
    """
    try:
        return moments(asked, listed) or [None]
    except ValueError as error:
        raise ConfigError(f"dates of {whose}: {error}") from None


def _scenes(shown: _Shown, templates: Mapping[str | None, str], search: Search) -> list[Candidate]:
    """Return a scene for each date, whose tiles' addresses are given, and part of the area."""
    limit = _projected(shown.has, shown.crs)
    pieces = _pieces(search.area, shown.crs, shown.has)
    found = []
    for time, address in templates.items():
        for bounds in pieces:
            image = cut(shown.matrix, bounds, limit, template=address, crs=shown.crs, bands=shown.bands, nodata=shown.nodata)
            if image is not None:
                found.append(_candidate(shown, time, image))
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


def _candidate(shown: _Shown, time: str | None, image: TiledImage) -> Candidate:
    """Name a scene by what it shows and by its first tile, so that a window of it is the same ground whatever the area was."""
    at = f"{shown.level}.r{image.row}c{image.col}"
    dated = f"{shown.name}@{time.replace(':', '')}" if time else shown.name
    names = ("grey",) if image.bands == 1 else None  # as `rayjobs fetch` calls it
    return Candidate(
        scene_id=_safe(f"{dated}.{at}"),
        series=_safe(f"{shown.name}.{at}"),
        files=(BandFile(uri=image.uri, names=names),),
        datetime=dates.instant(time) if time else None,
        listed=time not in shown.unlisted,
    )


def _safe(name: str) -> str:
    """Return a name as that of a file may be."""
    return "".join(letter if letter.isalnum() or letter in "@-_." else "_" for letter in name)


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
    return known.is_geographic or known.to_epsg() == _MERCATOR


def _projected(bounds: Bounds, crs: str) -> Bounds:
    """Return the bounds of a box of degrees in a CRS."""
    if pyproj.CRS.from_user_input(crs).is_geographic:
        return bounds
    if pyproj.CRS.from_user_input(crs).to_epsg() == _MERCATOR:
        bounds = (bounds[0], max(bounds[1], _MERCATOR_WORLD[1]), bounds[2], min(bounds[3], _MERCATOR_WORLD[3]))
    left, bottom, right, top = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform_bounds(*bounds, densify_pts=101)
    return left, bottom, right, top
