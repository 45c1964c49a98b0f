"""From what a source lists and what the files' headers say to scenes with the wanted bands on one grid."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayjobs.errors import BandError
from rayjobs.geo import Grid, ground_size_m
from rayjobs.rasters.headers import Header
from rayjobs.rasters.masks import aligned, same_grid
from rayjobs.rasters.scenes import Asset, QualityLayer, Scene, Spot

LABEL = "label"
"""The band of a label image that has only one; the first part of the names of several."""

_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a source says of a band's values; None: as the file says."""

    scale: float | None = None
    offset: float | None = None
    nodata: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BandFile:
    """A file that a scene draws bands from."""

    uri: str
    bands: Mapping[str, int] | None = None
    """Band of the file (from 1) by name; None: all bands, named by the header."""
    names: tuple[str, ...] | None = None
    """Where `bands` is None: names to use instead of the header's, in the file's order."""
    meaning: Mapping[str, Meaning] = dataclasses.field(default_factory=dict)
    """By band name; the key `*` stands for the rest."""
    companion: bool = False
    """A label image beside a picture: its bands are called `label`, or `label_red` and so on."""
    turns: int = 0
    """Quarter turns clockwise that bring it onto the scene's other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRef:
    """A quality layer whose file may still have to be found among the scene's bands."""

    bits: tuple[int, ...]
    classes: tuple[int, ...]
    uri: str | None = None
    band: str | int = 1
    """Of the file at `uri`, from 1; without `uri` the name of one of the scene's bands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A scene as its source lists it, before any header was read."""

    scene_id: str
    series: str | None = None
    """Of a service's scene, what all dates of the same layer, level and tiles have in common: the id without the date."""
    files: tuple[BandFile, ...]
    datetime: datetime.datetime | None = None
    listed: bool = True
    """Whether the service that it is of lists its date; True where there is no such list."""
    platform: str | None = None
    label: str | None = None
    place: str | None = None
    observation: str | None = None
    spot: Spot | None = None
    """These three as of `Scene`."""
    resolution_m: float | None = None
    """For files without coordinates."""
    quality: QualityRef | None = None
    picture: bool = False
    """A plain picture: colour tables are looked up, and grey serves where colours are asked for."""

    def uris(self, wanted: Sequence[str] | None) -> list[str]:
        """Return the files whose headers are needed for the wanted bands (None: all)."""
        quality = self.quality
        asked = None if wanted is None else {*wanted, *([quality.band] if quality else [])}
        uris = [file.uri for file in self.files if asked is None or file.bands is None or asked & file.bands.keys()]
        return [*uris, quality.uri] if quality and quality.uri else uris


def offered(candidate: Candidate, headers: Mapping[str, Header]) -> dict[str, Asset]:
    """Return every band that the candidate's files (those with a header) hold, in the order of files and bands.

    Raises:
        BandError: the files do not have the bands that the source names, or two bands have one name.
    """
    found: dict[str, Asset] = {}
    for file in candidate.files:
        header = headers.get(file.uri)
        if header is None:
            continue
        for name, asset in _of_file(file, header, candidate).items():
            if name in found:
                raise BandError(f"scene {candidate.scene_id} has two bands called {name!r}; name them apart with `bands` or `pattern`")
            found[name] = asset
    return found


def _of_file(file: BandFile, header: Header, candidate: Candidate) -> dict[str, Asset]:
    found: dict[str, Asset] = {}
    for name, index in _named(file, header, candidate).items():
        if index > len(header.dtypes):
            raise BandError(f"{file.uri} has {len(header.dtypes)} bands, so it cannot give {name!r} as band {index}; correct the source")
        found[name] = _asset(file, header, name, index)
    if file.companion:
        return _companion(found, header)
    return _picture(found, header) if candidate.picture else found


def _named(file: BandFile, header: Header, candidate: Candidate) -> Mapping[str, int]:
    if file.bands is not None:
        return file.bands
    if file.names is not None and len(file.names) > len(header.dtypes):
        raise BandError(
            f"{file.uri} has {len(header.dtypes)} bands, but {len(file.names)} names are given: {', '.join(file.names)}; name each once"
        )
    if file.names is not None:
        return {name: index for index, name in enumerate(file.names, start=1)}
    colour = [(name, index) for index, name in enumerate(header.names, start=1) if index not in header.alpha]
    if candidate.picture and len(colour) == 1:
        return {"grey": colour[0][1]}
    return dict(colour)


def _asset(file: BandFile, header: Header, name: str, index: int) -> Asset:
    meaning = file.meaning.get(name) or file.meaning.get("*") or Meaning()
    return Asset(
        uri=file.uri,
        band_index=index,
        scale=_first(meaning.scale, header.scales[index - 1]),
        offset=_first(meaning.offset, header.offsets[index - 1]),
        nodata=meaning.nodata if meaning.nodata is not None else header.nodata[index - 1],
        turns=file.turns,
    )


def _first(given: float | None, stored: float) -> float:
    return stored if given is None else given


def _picture(found: dict[str, Asset], header: Header) -> dict[str, Asset]:
    """Offer red, green and blue of a picture that has a colour table or only grey."""
    grey = found.get("grey")
    if grey is None:
        return found
    if header.paletted:
        return {name: dataclasses.replace(grey, palette=component) for component, name in enumerate(_COLOURS)}
    return {"grey": grey, **dict.fromkeys(_COLOURS, grey)}


def _companion(found: dict[str, Asset], header: Header) -> dict[str, Asset]:
    """Offer the bands of a label image: `label` where it has only one, codes or grey, and its colours under names of their own."""
    colours = {f"{LABEL}_{name}": asset for name, asset in _picture(found, header).items() if name != "grey"}
    return {LABEL: found["grey"], **colours} if "grey" in found else colours


def default_bands(candidate: Candidate, assets: Mapping[str, Asset]) -> tuple[str, ...]:
    """Return the bands to read where none are named: all but the quality layer's; of one band that serves as colours, that alone."""
    if candidate.picture:
        served = {"grey": _COLOURS, LABEL: tuple(f"{LABEL}_{colour}" for colour in _COLOURS)}
        derived = {colour for single, colours in served.items() if single in assets for colour in colours}
        return tuple(name for name in assets if name not in derived)
    hidden = candidate.quality.band if candidate.quality and candidate.quality.uri is None else None
    return tuple(name for name in assets if name != hidden)


def build_scene(candidate: Candidate, assets: Mapping[str, Asset], wanted: Sequence[str], headers: Mapping[str, Header]) -> Scene:
    """Return the scene with the wanted bands.

    Raises:
        BandError: a wanted band is not there, the bands do not lie on one grid, or the quality layer does not fit them.
    """
    for name in wanted:
        if name not in assets:
            raise BandError(f"scene {candidate.scene_id} has no band {name!r}; it has {', '.join(map(repr, assets)) or 'none'}")
    chosen = {name: assets[name] for name in wanted}
    first = headers[chosen[wanted[0]].uri]
    for name, asset in chosen.items():
        if not same_grid(first.grid, _turned(headers[asset.uri].grid, asset.turns)):
            raise BandError(_two_grids(candidate.scene_id, wanted[0], first, name, headers[asset.uri]))
    dtypes = [_dtype(headers[asset.uri], asset) for asset in chosen.values()]
    return Scene(
        scene_id=candidate.scene_id,
        assets=chosen,
        grid=first.grid,
        block=first.block,
        dtype=np.result_type(*dtypes).name,
        resolution_m=ground_size_m(first.grid) if first.grid.crs else candidate.resolution_m,
        datetime=candidate.datetime or first.datetime,
        quality=_quality(candidate, assets, first, headers),
        label=candidate.label,
        place=candidate.place,
        observation=candidate.observation,
        spot=candidate.spot if first.grid.crs is None else None,
        platform=candidate.platform,
        footprint=first.footprint,
    )


def _turned(grid: Grid, turns: int) -> Grid:
    """Return the grid of a picture after so many quarter turns."""
    return dataclasses.replace(grid, height=grid.width, width=grid.height) if turns % 2 else grid


def _dtype(header: Header, asset: Asset) -> np.dtype[np.generic]:
    return np.dtype(header.dtypes[asset.band_index - 1])


def _two_grids(scene_id: str, name: str, header: Header, other: str, second: Header) -> str:
    def grid(header: Header) -> str:
        at = header.grid
        return f"{header.uri}: {at.height} x {at.width} pixels of {ground_size_m(at) or abs(at.transform[0]):g} m"

    return (
        f"bands {name!r} and {other!r} of scene {scene_id} lie on different grids ({grid(header)}; {grid(second)}). "
        "Resampling of bands is not built yet: choose bands of one grid with rasters.bands, or resample the files"
    )


def _quality(candidate: Candidate, assets: Mapping[str, Asset], first: Header, headers: Mapping[str, Header]) -> QualityLayer | None:
    wanted = candidate.quality
    if wanted is None:
        return None
    if wanted.uri is not None:
        uri, index = wanted.uri, int(wanted.band)
    elif wanted.band in assets:
        uri, index = assets[str(wanted.band)].uri, assets[str(wanted.band)].band_index
    else:
        raise BandError(f"scene {candidate.scene_id} has no quality band {wanted.band!r}; it has {', '.join(map(repr, assets))}")
    header = headers[uri]
    if index > len(header.dtypes) or np.dtype(header.dtypes[index - 1]).kind not in "ui":
        raise BandError(f"the quality layer {uri} has no band {index} of whole numbers; correct `quality`")
    if not same_grid(first.grid, header.grid) and not aligned(first.grid, header.grid):
        raise BandError(
            f"the quality layer {uri} of scene {candidate.scene_id} has another CRS or is turned; warp it to the scene's CRS first"
        )
    return QualityLayer(uri=uri, band_index=index, bits=wanted.bits, classes=wanted.classes)
