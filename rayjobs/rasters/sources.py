"""Find the scenes of an experiment: list what the sources name, read headers, keep what fits area, dates and bands. No pixel is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import shapely
import shapely.geometry

from rayjobs.errors import BandError, ConfigError, EmptySearchError, first_few
from rayjobs.geo import parse_bbox, polygon_of_box
from rayjobs.rasters import dates
from rayjobs.rasters.candidates import Candidate, build_scene, default_bands, offered
from rayjobs.rasters.files import list_files
from rayjobs.rasters.headers import Header, read_headers
from rayjobs.rasters.images import list_images
from rayjobs.rasters.scenes import Scene
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import FilesSource, ImagesSource, RastersSection, StacApiSource, StacSource, XyzSource
from rayjobs.rasters.services import list_wmts, list_xyz
from rayjobs.rasters.stac import list_found, list_items
from rayjobs.storage import read_uri

SOURCES: dict[str, Callable[[Any, Search], list[Candidate]]] = {
    "files": list_files,
    "stac": list_items,
    "images": list_images,
    "gibs": list_wmts,
    "wmts": list_wmts,
    "xyz": list_xyz,
    "stac_api": list_found,
}
"""What lists the scenes of each kind of source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What discovery found."""

    scenes: list[Scene]
    """Sorted by scene id; at least one."""
    unreadable: list[tuple[str, str]]
    """Address and reason of each file whose header cannot be read; scenes that need one are left out."""
    left_out: int
    """How many scenes that is."""
    listed: int
    """How many scenes the sources list, those left out and those elsewhere or of other dates included."""
    files: Mapping[str, tuple[str, ...]]
    """By the address of each file that can be read, all files that its pixels lie in, as `Header.files`."""
    area: Any | None
    """The area of interest as a shapely geometry, as `area` gives it; None: all."""


def discover(section: RastersSection) -> Discovery:
    """Find the scenes of an experiment.

    Raises:
        EmptySearchError: no scene fits the sources, the area and the dates; says which of them refused how many.
        BandError: a scene lacks a wanted band, or its bands lie on several grids.
        ConfigError: two files would be one scene, or area or dates cannot be read.
        StorageError: a bucket, a key or a credential failed.
    """
    search = searched(section)
    place, interval = search.area, search.span
    listed = [entry for source in section.sources for entry in SOURCES[source.kind](source, search)]
    candidates = sorted(listed, key=lambda entry: entry.scene_id)
    if not candidates:
        raise EmptySearchError(f"the area rasters.aoi lies outside of all that {_named(section)} have; widen it")
    _refuse_twins(candidates)
    answers = read_headers(uri for candidate in candidates for uri in candidate.uris(section.bands))
    headers = {uri: answer for uri, answer in answers.items() if isinstance(answer, Header)}
    unreadable = sorted((uri, answer) for uri, answer in answers.items() if isinstance(answer, str))
    readable = [candidate for candidate in candidates if all(uri in headers for uri in candidate.uris(section.bands))]
    if not readable:
        raise EmptySearchError(_none_readable(section, unreadable))
    scenes = _scenes(readable, section.bands, headers)
    fitting = [scene for scene in scenes if _in_area(scene, place) and _in_span(scene, interval)]
    if not fitting:
        raise EmptySearchError(_none_fits(section, scenes, place, interval))
    return Discovery(
        scenes=fitting,
        unreadable=unreadable,
        left_out=len(candidates) - len(readable),
        listed=len(candidates),
        files={uri: header.files for uri, header in headers.items()},
        area=place,
    )


def _scenes(candidates: Sequence[Candidate], wanted: Sequence[str] | None, headers: dict[str, Header]) -> list[Scene]:
    scenes = []
    for candidate in candidates:
        assets = offered(candidate, headers)
        wanted = wanted or default_bands(candidate, assets)
        try:
            scenes.append(build_scene(candidate, assets, wanted, headers))
        except BandError as error:
            if candidate is candidates[0] or not candidate.picture or wanted != ("grey",):
                raise
            raise BandError(f"{error}; the pictures are of several forms: set rasters.bands: [red, green, blue]") from None
    return scenes


def _refuse_twins(candidates: Sequence[Candidate]) -> None:
    seen: dict[str, Candidate] = {}
    for candidate in candidates:
        twin = seen.setdefault(candidate.scene_id, candidate)
        if twin is not candidate:
            pair = f"{twin.files[0].uri} and {candidate.files[0].uri}"
            raise ConfigError(f"{pair} would both be scene {candidate.scene_id!r}; give one source a `name`, or drop one of them")


def searched(section: RastersSection) -> Search:
    """Return where and when scenes are looked for.

    Raises:
        ConfigError: area or dates cannot be read.
    """
    try:
        return Search(area=area(section), span=dates.interval(section.datetime) if section.datetime else None)
    except ValueError as error:
        raise ConfigError(f"rasters.datetime: {error}") from None


def area(section: RastersSection) -> Any | None:
    """Return the area of interest as a shapely geometry (WGS 84, cut at the antimeridian), or None where all is of interest.

    Raises:
        ConfigError: it is no box and no GeoJSON.
    """
    if section.aoi is None:
        return None
    if isinstance(section.aoi, str):
        return _geojson(section.aoi)
    try:
        return polygon_of_box(*parse_bbox(section.aoi))
    except ValueError as error:
        raise ConfigError(f"rasters.aoi: {error}") from None


def _geojson(uri: str) -> Any:
    """Return the union of all geometries of a GeoJSON file."""
    try:
        document = json.loads(read_uri(uri))
        features = document["features"] if document["type"] == "FeatureCollection" else [document]
        shapes = [shapely.geometry.shape(feature["geometry"] if feature["type"] == "Feature" else feature) for feature in features]
        whole = shapely.union_all(shapes)
    except (ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise ConfigError(f"rasters.aoi: {uri} is not GeoJSON: {error}") from error
    if whole.is_empty:
        raise ConfigError(f"rasters.aoi: {uri} holds no area")
    return whole


def _in_area(scene: Scene, place: Any | None) -> bool:
    return place is None or (scene.footprint is not None and bool(shapely.intersects(scene.footprint, place)))


def _in_span(scene: Scene, wanted: dates.Interval | None) -> bool:
    return wanted is None or (scene.datetime is not None and wanted.holds(scene.datetime))


def _none_readable(section: RastersSection, unreadable: Sequence[tuple[str, str]]) -> str:
    uri, reason = unreadable[0]
    return (
        f"none of the files of {_named(section)} can be read; {len(unreadable)} failed, the first: {uri}: {reason}; "
        "check rasters.sources, or replace the files"
    )


def _none_fits(section: RastersSection, scenes: Sequence[Scene], place: Any | None, wanted: dates.Interval | None) -> str:
    inside = sum(_in_area(scene, place) for scene in scenes)
    dated = sum(_in_span(scene, wanted) for scene in scenes)
    undated = sum(scene.datetime is None for scene in scenes)
    found = f"of {len(scenes)} scenes of {_named(section)} "
    if place is not None:
        found += f"{inside} touch the area rasters.aoi; "
    if wanted is not None:
        found += f"{dated} fit the dates rasters.datetime {section.datetime} ({undated} have no date: give the source a `datetime`); "
    return found + "none fits: widen the area or the dates"


def _named(section: RastersSection) -> str:
    names: list[str] = []
    for source in section.sources:
        if isinstance(source, FilesSource):
            names += source.uris
        elif isinstance(source, StacSource):
            names += source.items
        elif isinstance(source, ImagesSource):
            names.append(source.root)
        elif isinstance(source, XyzSource | StacApiSource):
            names.append(source.url)
        else:
            names.append(f"{source.kind}:{source.layer}")
    return first_few(names, between=", ")
