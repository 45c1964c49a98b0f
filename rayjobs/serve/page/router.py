"""Routes of the pages: their files, and for the search page pictures of scenes and how alike the ground in view is to what is searched."""

import urllib.parse
import weakref
from typing import Annotated

import fastapi
import numpy as np
import pydantic
from fastapi.responses import Response

from rayjobs import geo
from rayjobs.errors import PinnedVersionError
from rayjobs.serve.answers import Answers
from rayjobs.serve.page.files import FILES, INDEX, LABEL
from rayjobs.serve.page.heat import Heat, heat
from rayjobs.serve.page.overview import Overviews
from rayjobs.serve.quick import QuickRoute
from rayjobs.serve.schema import Bounds, Feature, SearchRequest
from rayjobs.serve.service import Here, Pinned, Service, naming

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""Of every file of the page: scripts come from here alone, and a newer service's files are taken up at once."""

_MOST_TILES = 20_000
"""Whose similarity one picture of it shows."""

router = fastapi.APIRouter(route_class=QuickRoute, tags=["page"], include_in_schema=False)

Tag = Annotated[str | None, fastapi.Header(alias="if-none-match")]


@router.get("/")
def index(if_none_match: Tag = None) -> Response:
    """Answer the page."""
    return _file(INDEX, if_none_match)


@router.get("/label")
def label(if_none_match: Tag = None) -> Response:
    """Answer the labelling page."""
    return _file(LABEL, if_none_match)


class Picture(pydantic.BaseModel):
    """A picture of one scene."""

    scene_id: str
    datetime: str | None
    bounds: list[float]
    """west, south, east, north in degrees; the picture lies between them in web Mercator."""
    url: str
    """Relative to the service's root."""


class Pictures(pydantic.BaseModel):
    """Pictures of the scenes, earliest first."""

    pictures: list[Picture]


@router.get("/page/overview")
def overview(answers: Pinned) -> Pictures:
    """List the pictures that the map is made of."""
    return Pictures(
        pictures=[
            Picture(
                scene_id=outline.scene.scene_id,
                datetime=outline.scene.datetime.isoformat() if outline.scene.datetime else None,
                bounds=list(outline.bounds),
                url=f"page/overview/{number}.png?set={urllib.parse.quote(answers.source.version, safe='')}",
            )
            for number, outline in enumerate(_overviews(answers).outlines)
        ]
    )


@router.get("/page/overview/{number}.png")
def overview_picture(
    service: Here,
    number: Annotated[int, fastapi.Path(ge=0)],
    source: Annotated[str | None, fastapi.Query(alias="set", max_length=100)] = None,
) -> Response:
    """Show one scene of a set, as `/page/overview` lists them; of the index versions that are served, the newest of that set answers."""
    answers = service.answers if source is None else _made_from(service, source)
    overviews = _overviews(answers)
    if number >= len(overviews.outlines):
        raise fastapi.HTTPException(404, f"there are {len(overviews.outlines)} pictures, counted from 0")
    headers = {"cache-control": "no-cache" if source is None else "private, max-age=86400", **naming(answers)}
    return Response(overviews.png(number), media_type="image/png", headers=headers)


def _made_from(service: Service, source: str) -> Answers:
    """Return the index version that is served and was made from a set. Raises `PinnedVersionError` where none was."""
    held = (service.pinned(version) for version in service.versions)
    found = next((answers for answers in held if answers.source.version == source), None)
    if found is None:
        raise PinnedVersionError(f"no index version that is served was made from set {source[:80]!r}; list the pictures again")
    return found


@router.get("/page/place")
def place(
    answers: Pinned,
    lon: Annotated[float, fastapi.Query(ge=-180, le=180, allow_inf_nan=False)],
    lat: Annotated[float, fastapi.Query(ge=-90, le=90, allow_inf_nan=False)],
    datetime: Annotated[str | None, fastapi.Query(max_length=100)] = None,
) -> Feature:
    """Return the tile that holds a place, on a date if one is given."""
    return answers.tile_at(lon, lat, datetime=datetime)


class HeatRequest(SearchRequest):
    """What to compare the ground with, and which ground: `bbox`; `limit` says nothing here."""

    bbox: Bounds


@router.post("/page/heat")
def similarity(service: Here, response: Response, request: HeatRequest) -> Heat:
    """Tell how alike the tiles in view are to the examples; of very many tiles, a sample."""
    answers = service.pinned(request.index_version)
    response.headers.update(naming(answers))
    vector, _ = answers.query_vector(request.positives, request.negatives, method=request.method)
    boxes, scores = answers.similarity(vector, request, most=_MOST_TILES)
    return heat(boxes, scores.astype(np.float64), geo.parse_bbox(request.bbox))


@router.get("/page/{name}")
def page_file(name: str, if_none_match: Tag = None) -> Response:
    """Answer a file of the page. Names that are not in the list are none."""
    if name not in FILES:
        raise fastapi.HTTPException(404, f"the page has no file {name[:40]!r}")
    return _file(name, if_none_match)


def _file(name: str, known: str | None) -> Response:
    file = FILES[name]
    headers = {**_HEADERS, "etag": file.etag}
    if known is not None and file.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


_MADE: weakref.WeakKeyDictionary[Answers, Overviews] = weakref.WeakKeyDictionary()
"""Pictures by the index version that they belong to: they go with it."""


def _overviews(answers: Answers) -> Overviews:
    found = _MADE.get(answers)
    if found is None:
        found = _MADE.setdefault(answers, Overviews(answers.source))
    return found
