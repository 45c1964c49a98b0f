"""Scenes of raster files: one file each, or one for each band."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from rayjobs.errors import BandError, ConfigError, EmptySearchError
from rayjobs.rasters import dates
from rayjobs.rasters.candidates import BandFile, Candidate, Meaning, QualityRef
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import FilesSource, QualitySection
from rayjobs.storage import expand

_ENDINGS = {".tif", ".tiff", ".jp2", ".img", ".vrt", ".bil", ".bip", ".bsq", ".png", ".jpg", ".jpeg", ".bmp", ".webp"}
"""What is taken from a folder; files named one by one, or by a glob, may end in anything."""
_SIDE_FILES = (".aux.xml", ".ovr", ".msk", ".hdr", ".tfw", ".jgw", ".pgw", ".xml", ".json", ".txt", ".csv", ".md", ".pdf", ".zip")


class _Part(NamedTuple):
    """A file and what the pattern found in its address."""

    uri: str
    scene: str | None
    band: str | None
    date: str | None


def list_files(source: FilesSource, _: Search) -> list[Candidate]:
    """Return the scenes that a source of files names.

    Raises:
        NotFoundError: an address leads to nothing.
        EmptySearchError: no file fits the pattern.
        ConfigError: a date cannot be read, or several files are one band of one scene.
    """
    uris = list(dict.fromkeys(uri for named in source.uris for uri in _rasters(named)))
    if not uris:
        raise EmptySearchError(f"no raster file is in {', '.join(source.uris)}; name files or a glob")
    parts = [_Part(uri, None, None, None) for uri in uris] if source.pattern is None else _matching(source.pattern, uris, source)
    grouped: dict[str, list[_Part]] = {}
    for part in parts:
        grouped.setdefault(_scene_id(part, source), []).append(part)
    return [_candidate(scene_id, members, source) for scene_id, members in grouped.items()]


def _rasters(named: str) -> list[str]:
    """Return the raster files at an address; side files are left out."""
    found = expand(named)
    if len(found) == 1 and PurePosixPath(found[0]).name == PurePosixPath(named).name:
        return found
    kept = [uri for uri in found if not uri.lower().endswith(_SIDE_FILES)]
    if re.search(r"[*?\[]", named):
        return kept
    headers = {uri.lower()[:-4] for uri in found if uri.lower().endswith(".hdr")}
    return [uri for uri in kept if PurePosixPath(uri).suffix.lower() in _ENDINGS or uri.lower() in headers]


def _matching(pattern: str, uris: list[str], source: FilesSource) -> list[_Part]:
    parts = []
    for uri in uris:
        match = re.search(pattern, uri)
        if match:
            found = match.groupdict()
            parts.append(_Part(uri, found.get("scene"), found.get("band"), found.get("date")))
    if not parts:
        raise EmptySearchError(f"none of the {len(uris)} files of {', '.join(source.uris)} fits the pattern {pattern!r}; one is {uris[0]}")
    return parts


def _scene_id(part: _Part, source: FilesSource) -> str:
    path = PurePosixPath(urllib.parse.urlsplit(part.uri).path or part.uri)
    if part.scene is None and part.band is not None:
        return source.name or path.parent.name
    own = part.scene or path.stem
    return f"{source.name}-{own}" if source.name else own


def _candidate(scene_id: str, parts: list[_Part], source: FilesSource) -> Candidate:
    meaning = {"*": Meaning(scale=source.scale, offset=source.offset, nodata=source.nodata)}
    if any(part.band is not None for part in parts):
        files = tuple(BandFile(uri=part.uri, bands={part.band or "": 1}, meaning=meaning) for part in _ordered(scene_id, parts, source))
    else:
        _refuse_several(scene_id, parts)
        files = (BandFile(uri=parts[0].uri, names=source.bands, meaning=meaning),)
    moments = [moment for moment in (source.datetime, *(part.date for part in parts)) if moment is not None]
    try:
        taken = dates.instant(moments[0]) if moments else None
    except ValueError as error:
        raise ConfigError(f"scene {scene_id}: {error}; correct `datetime` or the group `date` of the pattern") from None
    quality = _quality(source.quality, scene_id) if source.quality else None
    return Candidate(scene_id=scene_id, files=files, datetime=taken, platform=source.platform, quality=quality)


def _ordered(scene_id: str, parts: list[_Part], source: FilesSource) -> list[_Part]:
    """Return one part for each band: in the order of `bands`, or sorted by name."""
    by_band: dict[str, _Part] = {}
    for part in parts:
        twin = by_band.setdefault(part.band or "", part)
        if twin is not part:
            raise ConfigError(
                f"{twin.uri} and {part.uri} are both band {part.band!r} of scene {scene_id}; tell the scenes apart with a group `scene`"
            )
    if source.bands is None:
        return [by_band[band] for band in sorted(by_band)]
    quality = source.quality.band if source.quality and source.quality.uri is None else None
    missing = [band for band in source.bands if band not in by_band]
    if missing:
        raise BandError(f"scene {scene_id} has no file of band {missing[0]!r}; it has {', '.join(map(repr, sorted(by_band)))}")
    return [by_band[band] for band in dict.fromkeys([*source.bands, *([str(quality)] if quality in by_band else [])])]


def _refuse_several(scene_id: str, parts: Iterable[_Part]) -> None:
    uris = [part.uri for part in parts]
    if len(uris) > 1:
        raise ConfigError(
            f"{uris[0]} and {uris[1]} would both be scene {scene_id}; give `pattern` a group `scene` (or `band`) that tells them apart"
        )


def _quality(section: QualitySection, scene_id: str) -> QualityRef:
    uri = section.uri.replace("{scene}", scene_id) if section.uri else None
    return QualityRef(uri=uri, band=section.band, bits=section.bits, classes=section.classes)
