"""Scenes of an image folder: each picture one scene without coordinates, and what its folder, its name or a table tells of it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from rayjobs.errors import ConfigError, EmptySearchError
from rayjobs.geo import BODY_RADIUS_M
from rayjobs.rasters import dates
from rayjobs.rasters.candidates import BandFile, Candidate
from rayjobs.rasters.scenes import Spot
from rayjobs.storage import open_store, read_uri

if TYPE_CHECKING:
    import datetime

    from rayjobs.rasters.search import Search
    from rayjobs.rasters.section import ImagesSource

_LABEL = "label"

Told = dict[str, str]
"""What is told of a picture, as text: `label`, `observation`, `place`, `date`, `lon`, `lat`, those of them that are known."""

_DEGREES = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([NSEW]?)", re.IGNORECASE)
_LIMITS = {"lon": (360.0, "E", "W"), "lat": (90.0, "N", "S")}
"""Greatest number of degrees, and the letters that may follow it: for those that count up, and down."""


def list_images(source: ImagesSource, _: Search) -> list[Candidate]:
    """Return the pictures below the folder.

    Raises:
        EmptySearchError: there is none, or none fits the pattern.
        ConfigError: the table lacks a column, or tells two things of one picture; a date or a coordinate cannot be read; a picture has the
            name of no label image.
    """
    store = open_store(source.root)
    endings = tuple(ending.lower() for ending in source.extensions)
    below = store.list()
    keys = [key for key in below if key.lower().endswith(endings)]
    if not keys:
        raise EmptySearchError(_no_picture(source, below))
    told = _told(source, _without_companions(source, keys))
    prefix = f"{source.name}-" if source.name else ""
    return [
        Candidate(
            scene_id=prefix + key,
            files=tuple(_files(source, key, store.address)),
            label=of_picture.get(_LABEL),
            observation=of_picture.get("observation"),
            place=of_picture.get("place"),
            datetime=_date(key, of_picture),
            spot=_spot(key, of_picture, source.body),
            resolution_m=source.resolution_m,
            picture=True,
        )
        for key, of_picture in told.items()
    ]


def _no_picture(source: ImagesSource, below: list[str]) -> str:
    if not below:
        return f"there is no folder {source.root}, or it is empty; `root` of the source must name a folder of pictures"
    endings = ", ".join(source.extensions)
    found = f"no picture ({endings}) is among the {len(below):,} files below {source.root}"
    return f"{found}; one is {below[0]}; check `root` and `extensions`"


def _without_companions(source: ImagesSource, keys: list[str]) -> list[str]:
    """Return the pictures among the files: those that are no other picture's label image."""
    if source.companion is None:
        return keys
    beside = {found for key in keys if (found := _companion_of(source, key)) != key}
    return [key for key in keys if key not in beside]


def _companion_of(source: ImagesSource, key: str) -> str:
    if source.companion is None:
        return key
    try:
        return re.sub(source.companion.replace, source.companion.by, key, count=1)
    except (re.error, IndexError) as error:
        raise ConfigError(f"`companion.by` {source.companion.by!r} does not fit `replace` {source.companion.replace!r}: {error}") from None


def _files(source: ImagesSource, key: str, address: Callable[[str], str]) -> Iterator[BandFile]:
    yield BandFile(uri=address(key))
    if source.companion is not None:
        beside = _companion_of(source, key)
        if beside == key:
            said = f"`companion` finds nothing to replace in {key} of {source.root}, so that its label image has no name"
            raise ConfigError(f"{said}; correct `replace`, or take such pictures out of the folder (or out of `pattern`)")
        yield BandFile(uri=address(beside), companion=True, turns=source.companion.turn // 90)


def _told(source: ImagesSource, keys: list[str]) -> dict[str, Told]:
    """Return what is told of each picture to take, by its path."""
    told: dict[str, Told] = {key: {} for key in keys} if source.csv is None else _from_table(source.csv, source)
    if source.pattern is not None:
        told = {key: _groups(match) | told[key] for key in told if (match := re.search(source.pattern, key))}
        if not told:
            raise EmptySearchError(f"no picture below {source.root} fits the pattern {source.pattern!r}; one is {keys[0]}")
    if source.labels == "folder":
        told = {key: _of_folder(source, key) | found for key, found in told.items()}
    return told


def _groups(match: re.Match[str]) -> Told:
    return {what: found for what, found in match.groupdict().items() if found}


def _of_folder(source: ImagesSource, key: str) -> Told:
    if "/" not in key:
        raise ConfigError(f"{source.root} holds pictures outside of class folders ({key}); move them, or set `labels: none`")
    return {_LABEL: PurePosixPath(key).parts[0]}


def _from_table(uri: str, source: ImagesSource) -> dict[str, Told]:
    table = csv.DictReader(io.StringIO(read_uri(uri).decode("utf-8-sig"), newline=""))
    columns = source.columns | ({_LABEL: source.csv_label_column} if source.labels == "csv" else {})
    for column in (source.csv_file_column, *columns.values()):
        if column not in (table.fieldnames or ()):
            raise ConfigError(f"{uri} has no column {column!r}; it has {', '.join(table.fieldnames or ('no line of names',))}")
    told: dict[str, Told] = {}
    for row in table:
        key, found = row[source.csv_file_column], {what: row[column] for what, column in columns.items() if row[column]}
        if not key:
            raise ConfigError(f"{uri}, line {table.line_num}: no file is named; correct the table")
        before = told.setdefault(key, found)
        if before != found:
            what = next(what for what in columns if before.get(what) != found.get(what))
            pair = f"{before.get(what)!r} and {found.get(what)!r}"
            raise ConfigError(f"{uri}, line {table.line_num}: {key} has two {what}s, {pair}; keep one")
    if not told:
        raise EmptySearchError(f"{uri} lists no picture")
    return told


def _date(key: str, told: Told) -> datetime.datetime | None:
    if "date" not in told:
        return None
    try:
        return dates.instant(told["date"])
    except ValueError as error:
        raise ConfigError(f"{key}: {error}; correct the group `date` of the pattern, or the table") from None


def _spot(key: str, told: Told, body: str | float) -> Spot | None:
    if "lon" not in told or "lat" not in told:
        return None
    lon, lat = (_degrees(key, what, told[what]) for what in ("lon", "lat"))
    return Spot(lon=(lon + 180) % 360 - 180, lat=lat, radius_m=BODY_RADIUS_M[body] if isinstance(body, str) else body)


def _degrees(key: str, what: str, text: str) -> float:
    """Read degrees as -16.5, 16.5S or 354W."""
    most, ahead, behind = _LIMITS[what]
    match = _DEGREES.fullmatch(text.strip())
    letter = match[2].upper() if match else ""
    if match is None or letter not in {"", ahead, behind} or (letter and match[1][0] in "+-") or abs(float(match[1])) > most:
        raise ConfigError(
            f"{key}: cannot read {text!r} as {what}; write degrees up to {most:g}, as -16.5, or with a letter, as 16.5{behind}; correct "
            f"the table, or the group `{what}` of the pattern"
        )
    return -float(match[1]) if letter == behind else float(match[1])
