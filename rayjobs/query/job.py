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
from rayjobs.query.request import FORMATS, add_filters, check, form_of, request_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rayjobs.console import Console

_TIMEOUT_S = 60.0
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
    made.add_argument("--negative", metavar="ID", action="append", help="a tile that hits should not look like; may be given several times")
    made.add_argument(
        "--method", choices=("mean", "rocchio", "linear"), help="how examples become one query (mean; rocchio with negatives)"
    )
    add_filters(made)
    made.add_argument("--index-version", metavar="NAME", help="answer from this index version or not at all")
    made.add_argument("--output", metavar="FILE", type=Path, help="write the hits there instead: .geojson, .csv or .parquet (GeoParquet)")
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
    remedy = _ASK_ELSEWHERE if options.url else _START_ONE
    if options.output:
        return _written(url, request, options, remedy)
    answer = ask(url, request, options.image, remedy=remedy)
    if options.json:
        return answer
    for rank, feature in enumerate(answer["features"], start=1):
        console.result(hit_line(rank, feature))
    exact = "exact" if answer["exact"] else "approximate"
    return {"answered by": f"index {answer['index_version']}, {exact}, of {answer['candidates']:,} candidates"}


def _written(url: str, request: dict[str, Any], options: argparse.Namespace, remedy: str) -> dict[str, Any]:
    """Write the hits to a file, in the form of its ending."""
    response = _asked(url, request, options.image, remedy, FORMATS[options.output.suffix])
    if not response.is_success:
        _answered(response, url)
    try:
        options.output.write_bytes(response.content)
    except OSError as error:
        raise ConfigError(f"--output {options.output}: {error.strerror}") from error
    return {"written": str(options.output), "bytes": len(response.content)}


_START_ONE = "start one with `rayjobs serve`, or say where it is: serve.host and serve.port, or --url http://HOST:PORT"
_ASK_ELSEWHERE = "check --url, or leave it out to ask at serve.host and serve.port"


_WITHOUT_SERVICE = {
    408: "took longer than serve.request_timeout_s allows; ask again, or start the service with a higher one",
    503: "has no replica up: it is starting, or ending; ask again",
}
"""What Ray Serve answers in the service's place, by status, in plain text."""


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
    return _answered(_asked(url, request, image, remedy), url)


def _asked(url: str, request: dict[str, Any], image: Path | None, remedy: str, form: str = "geojson") -> httpx.Response:
    token = os.environ.get("RAYJOBS_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers, params={"format": form}, timeout=_TIMEOUT_S) as client:
            return client.post("/v1/search", json=request) if image is None else _post_image(client, request, image)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(f"no service answers at {url} ({error}); {remedy}") from error


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
    """Search for a picture at once; beside other examples, for its embedding."""
    alone = not request.keys() & {"negatives", "method"}
    try:
        with image.open("rb") as file:
            fields = form_of(request) if alone else {}
            found = client.post(f"/v1/{'search/image' if alone else 'embed'}", data=fields, files={"image": (image.name, file)})
    except OSError as error:
        raise ConfigError(f"cannot read the picture {image}: {error.strerror}") from error
    if alone or not found.is_success:
        return found
    return client.post("/v1/search", json={"positives": [{"embedding": found.json()["embedding"]}], **request})


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
