"""What the options of `rayjobs query` ask of a service."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rayjobs.errors import ConfigError
from rayjobs.geo import parse_bbox

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_HALF_TURN, _QUARTER_TURN = 180.0, 90.0
_TILE_ID = re.compile(r"[0-9a-f]{20}")
_POLYGONS = ("Polygon", "MultiPolygon")

FORMATS = {".geojson": "geojson", ".json": "geojson", ".csv": "csv", ".parquet": "parquet"}
"""The form of an answer, by the ending of the file that it is written to."""

_FIELDS = {
    "limit": "limit",
    "offset": "offset",
    "bbox": "bbox",
    "datetime": "datetime",
    "labels": "label",
    "scenes": "scene",
    "threshold": "threshold",
    "spread_m": "spread",
    "exact": "exact",
    "method": "method",
    "index_version": "index_version",
}
"""Fields of a search, and the options that they are given by."""


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which tiles may be answered, and how many."""
    parser.add_argument("--limit", type=int, default=10, help="most hits (10)")
    parser.add_argument("--offset", type=int, help="hits to leave out before the first")
    parser.add_argument("--bbox", metavar=("W", "S", "E", "N"), nargs=4, type=float, help="only tiles in this box, in degrees")
    parser.add_argument("--intersects", metavar="FILE", type=Path, help="only tiles on the ground of this GeoJSON polygon")
    parser.add_argument("--datetime", metavar="FROM/TO", help="only tiles of this interval (RFC 3339, `..` for an open end)")
    parser.add_argument("--label", metavar="NAME", action="append", help="only tiles with this label; may be given several times")
    parser.add_argument("--scene", metavar="ID", action="append", help="only tiles of this scene; may be given several times")
    parser.add_argument(
        "--where", metavar="COLUMN=VALUE", action="append", help="only tiles with this value, or one of a list, in a column"
    )
    parser.add_argument("--threshold", metavar="SCORE", type=float, help="only hits with this similarity or more (-1 to 1)")
    parser.add_argument("--spread", metavar="METRES", type=float, help="no two hits nearer than this: of those the better one stays")
    parser.add_argument("--exact", action="store_true", default=None, help="compare with every tile that passes, however many")


def check(options: argparse.Namespace) -> None:
    """Refuse what no service could answer, before one is asked.

    Raises:
        ConfigError: names the option and what it takes.
    """
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: ask for at least 1 hit")
    for name in ("tile", "negative"):
        for tile in getattr(options, name) or ():
            if not _TILE_ID.fullmatch(tile):
                raise ConfigError(f"--{name} {tile}: no tile id; these have 20 digits and letters from a to f, as the `tile_id` of a hit")
    if options.point and not is_place(*options.point):
        raise ConfigError(
            f"--point {options.point[0]} {options.point[1]}: no place; give LON (-180 to 180) and LAT (-90 to 90), in this order"
        )
    if options.bbox is not None:
        _check_bbox(options.bbox)
    if options.image is not None and not options.image.is_file():
        raise ConfigError(f"--image {options.image}: there is no such file")
    if options.output is not None and options.output.suffix not in FORMATS:
        raise ConfigError(f"--output {options.output}: name a file that ends in {', '.join(FORMATS)}")
    if options.url is not None and not re.match(r"https?://[^/\s]+", options.url):
        raise ConfigError(f"--url {options.url}: no address of a service; write http://HOST:PORT")


def _check_bbox(box: Sequence[float]) -> None:
    try:
        parse_bbox(box)
    except ValueError as error:
        raise ConfigError(f"--bbox {' '.join(map(str, box))}: {error}") from None


def is_place(lon: float, lat: float) -> bool:
    """Whether longitude and latitude are degrees within their range."""
    return abs(lon) <= _HALF_TURN and abs(lat) <= _QUARTER_TURN  # false for NaN, too


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the request's JSON; that of an image lacks its positives.

    Raises:
        ConfigError: the polygon or a column cannot be read.
    """
    given = {field: getattr(options, option) for field, option in _FIELDS.items()}
    request = {field: value for field, value in given.items() if value is not None}
    if options.intersects is not None:
        request["intersects"] = _polygon(options.intersects)
    if options.where:
        request["where"] = dict(_column(text) for text in options.where)
    if options.negative:
        request["negatives"] = [{"tile_id": tile} for tile in options.negative]
    if options.tile:
        return {"positives": [{"tile_id": tile} for tile in options.tile], **request}
    if options.point:
        lon, lat = options.point
        return {"positives": [{"point": {"lon": lon, "lat": lat}}], **request}
    return request


def form_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request as the fields of a form."""
    return {name: _field(name, value) for name, value in request.items()}


def _field(name: str, value: Any) -> Any:
    if name == "bbox":
        return ",".join(map(str, value))
    if name in {"labels", "scenes"}:
        return value
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def _polygon(path: Path) -> dict[str, Any]:
    """Read a GeoJSON polygon, by itself or as the only feature of a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["type"] == "FeatureCollection":
            [found] = found["features"]
        geometry = found["geometry"] if found["type"] == "Feature" else found
        if geometry["type"] in _POLYGONS:
            return dict(geometry)
    except OSError as error:
        raise ConfigError(f"--intersects {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"--intersects {path}: no GeoJSON with one Polygon or MultiPolygon")


def _column(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--where {text}: write COLUMN=VALUE, or COLUMN=[VALUE, VALUE]")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--where {text}: the value is not valid YAML") from error
