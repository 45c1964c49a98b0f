"""Ask a service for the tiles most like a tile, a place or a picture."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from rayjobs import command
from rayjobs.errors import ConfigError, QueryError, ServiceError
from rayjobs.experiment import load
from rayjobs.geo import parse_bbox

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rayjobs.console import Console

_TIMEOUT_S = 60.0
_HALF_TURN, _QUARTER_TURN = 180.0, 90.0
_TILE_ID = re.compile(r"[0-9a-f]{20}")
_DESCRIPTION = """Ask a running service for the tiles most like a tile, a place or a picture.

The tiles that are asked for, and the tile that holds a place, are left out of the answer. A picture is not: the service does not know
where it comes from."""


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs query`."""
    made = command.parser("query", _DESCRIPTION)
    example = made.add_mutually_exclusive_group(required=True)
    example.add_argument("--tile", metavar="ID", action="append", help="a tile of the index; may be given several times, and is averaged")
    example.add_argument("--point", metavar=("LON", "LAT"), nargs=2, type=float, help="a place, in degrees")
    example.add_argument(
        "--image",
        metavar="FILE",
        type=Path,
        help="a PNG, JPEG or GeoTIFF with the encoder's bands; if it is itself in the index, it is its own first hit",
    )
    made.add_argument("--limit", type=int, default=10, help="most hits (10)")
    made.add_argument("--bbox", metavar=("W", "S", "E", "N"), nargs=4, type=float, help="only tiles in this box, in degrees")
    made.add_argument("--datetime", metavar="FROM/TO", help="only tiles of this interval (RFC 3339, `..` for an open end)")
    made.add_argument("--url", help="address of the service (default: serve.host and serve.port of the experiment)")
    return made


def run(options: argparse.Namespace, overrides: Sequence[str], console: Console) -> dict[str, Any]:
    """Ask, show the hits, and return the answer (a GeoJSON FeatureCollection)."""
    experiment = load(options.config, overrides)
    check(options)
    url = options.url or f"http://{experiment.serve.host}:{experiment.serve.port}"
    request = request_of(options)
    if options.dry_run:
        return {"url": url, "request": request, **({"image": str(options.image)} if options.image else {})}
    answer = ask(url, request, options.image, remedy=_ASK_ELSEWHERE if options.url else _START_ONE)
    if options.json:
        return answer
    for rank, feature in enumerate(answer["features"], start=1):
        console.result(hit_line(rank, feature))
    exact = "exact" if answer["exact"] else "approximate"
    return {"answered by": f"index {answer['index_version']}, {exact}, of {answer['candidates']:,} candidates"}


_START_ONE = "start one with `rayjobs serve`, or say where it is: serve.host and serve.port, or --url http://HOST:PORT"
_ASK_ELSEWHERE = "check --url, or leave it out to ask at serve.host and serve.port"


_WITHOUT_SERVICE = {
    408: "took longer than serve.request_timeout_s allows; ask again, or start the service with a higher one",
    503: "has no replica up: it is starting, or ending; ask again",
}
"""What Ray Serve answers in the service's place, by status, in plain text."""


def check(options: argparse.Namespace) -> None:
    """Refuse what no service could answer, before one is asked.

    Raises:
        ConfigError: names the option and what it takes.
    """
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: ask for at least 1 hit")
    for tile in options.tile or ():
        if not _TILE_ID.fullmatch(tile):
            raise ConfigError(f"--tile {tile}: no tile id; these have 20 digits and letters from a to f, as the `tile_id` of a hit")
    if options.point and not is_place(*options.point):
        raise ConfigError(
            f"--point {options.point[0]} {options.point[1]}: no place; give LON (-180 to 180) and LAT (-90 to 90), in this order"
        )
    if options.bbox is not None:
        _check_bbox(options.bbox)
    if options.image is not None and not options.image.is_file():
        raise ConfigError(f"--image {options.image}: there is no such file")
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
    """Return the request's JSON (for an image: the form's fields)."""
    filters = {name: getattr(options, name) for name in ("limit", "bbox", "datetime") if getattr(options, name) is not None}
    if options.tile:
        return {"positives": [{"tile_id": tile} for tile in options.tile], **filters}
    if options.point:
        lon, lat = options.point
        return {"positives": [{"point": {"lon": lon, "lat": lat}}], **filters}
    return filters


def ask(url: str, request: dict[str, Any], image: Path | None, *, remedy: str = _START_ONE) -> dict[str, Any]:
    """Send a search and return the answer.

    Args:
        url: of the service.
        request: as `request_of` returns it.
        image: the picture to search for, if there is one.
        remedy: what to do where no service answers.

    Raises:
        ConfigError: the picture cannot be read.
        QueryError: the service refused the request.
        ServiceError: no service answers, or it failed.
    """
    token = os.environ.get("RAYJOBS_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            answer = client.post("/v1/search", json=request) if image is None else _post_image(client, request, image)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(f"no service answers at {url} ({error}); {remedy}") from error
    return _answered(answer, url)


def _answered(answer: httpx.Response, url: str) -> dict[str, Any]:
    """Return what a search found; raise the service's refusal, or say that what answers is none of ours."""
    try:
        body = answer.json()
        detail = None if answer.is_success and "features" in body else str(body["detail"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        stranger = f"answered {answer.status_code}, and not as a service of ours; {_ASK_ELSEWHERE}"
        raise ServiceError(f"{url} {_WITHOUT_SERVICE.get(answer.status_code, stranger)}") from None
    if detail is None:
        return dict(body)
    raise QueryError(detail) if answer.is_client_error else ServiceError(detail)


def _post_image(client: httpx.Client, request: dict[str, Any], image: Path) -> httpx.Response:
    fields = {name: ",".join(map(str, value)) if name == "bbox" else str(value) for name, value in request.items()}
    try:
        with image.open("rb") as file:
            return client.post("/v1/search/image", data=fields, files={"image": (image.name, file)})
    except OSError as error:
        raise ConfigError(f"cannot read the picture {image}: {error.strerror}") from error


def hit_line(rank: int, feature: dict[str, Any]) -> str:
    """Return one hit as a line for people."""
    properties = feature["properties"]
    where = "" if feature["geometry"] is None else " at {:.4f}, {:.4f}".format(*centre(feature["geometry"]))
    label = f"  {properties['label']}" if properties["label"] else ""
    return f"{rank:>3}  {properties['score']:.4f}  {properties['tile_id']}  {properties['scene_id']}{where}{label}"


def centre(geometry: dict[str, Any]) -> tuple[float, float]:
    """Return longitude and latitude of the middle of a footprint's first ring."""
    ring = geometry["coordinates"]
    while isinstance(ring[0][0], list):
        ring = ring[0]
    corners = ring[:-1]
    return sum(point[0] for point in corners) / len(corners), sum(point[1] for point in corners) / len(corners)
