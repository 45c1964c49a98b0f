"""Ask a service for the tiles most like a tile, a place or a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from rayjobs import command
from rayjobs.errors import ConfigError, QueryError, ServiceError
from rayjobs.experiment import load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rayjobs.console import Console

_TIMEOUT_S = 60.0


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs query`."""
    made = command.parser("query", "Ask a running service for the tiles most like a tile, a place or a picture.")
    example = made.add_mutually_exclusive_group(required=True)
    example.add_argument("--tile", metavar="ID", action="append", help="a tile of the index; may be given several times, and is averaged")
    example.add_argument("--point", metavar=("LON", "LAT"), nargs=2, type=float, help="a place, in degrees")
    example.add_argument("--image", metavar="FILE", type=Path, help="a PNG, JPEG or GeoTIFF with the encoder's bands")
    made.add_argument("--limit", type=int, default=10, help="most hits (10)")
    made.add_argument("--bbox", metavar=("W", "S", "E", "N"), nargs=4, type=float, help="only tiles in this box, in degrees")
    made.add_argument("--datetime", metavar="FROM/TO", help="only tiles of this interval (RFC 3339, `..` for an open end)")
    made.add_argument("--url", help="address of the service (default: serve.host and serve.port of the experiment)")
    return made


def run(options: argparse.Namespace, overrides: Sequence[str], console: Console) -> dict[str, Any]:
    """Ask, show the hits, and return the answer (a GeoJSON FeatureCollection)."""
    experiment = load(options.config, overrides)
    url = options.url or f"http://{experiment.serve.host}:{experiment.serve.port}"
    request = request_of(options)
    if options.dry_run:
        return {"url": url, "request": request}
    answer = ask(url, request, options.image)
    if options.json:
        return answer
    for rank, feature in enumerate(answer["features"], start=1):
        console.result(hit_line(rank, feature))
    exact = "exact" if answer["exact"] else "approximate"
    return {"answered by": f"index {answer['index_version']}, {exact}, of {answer['candidates']:,} candidates"}


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the request's JSON (for an image: the form's fields)."""
    filters = {name: getattr(options, name) for name in ("limit", "bbox", "datetime") if getattr(options, name) is not None}
    if options.tile:
        return {"positives": [{"tile_id": tile} for tile in options.tile], **filters}
    if options.point:
        lon, lat = options.point
        return {"positives": [{"point": {"lon": lon, "lat": lat}}], **filters}
    return filters


def ask(url: str, request: dict[str, Any], image: Path | None) -> dict[str, Any]:
    """Send a search and return the answer.

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
    except httpx.HTTPError as error:
        raise ServiceError(f"no service answers at {url} ({error}); start one with `rayjobs serve`, or name it with --url") from error
    if answer.is_client_error:
        raise QueryError(_detail(answer))
    if answer.is_error:
        raise ServiceError(_detail(answer))
    found: dict[str, Any] = answer.json()
    return found


def _post_image(client: httpx.Client, request: dict[str, Any], image: Path) -> httpx.Response:
    fields = {name: ",".join(map(str, value)) if name == "bbox" else str(value) for name, value in request.items()}
    try:
        with image.open("rb") as file:
            return client.post("/v1/search/image", data=fields, files={"image": (image.name, file)})
    except OSError as error:
        raise ConfigError(f"cannot read the picture {image}: {error.strerror}") from error


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"the service answered {answer.status_code}: {answer.text[:200]}"


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
