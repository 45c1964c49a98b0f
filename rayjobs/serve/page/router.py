"""Routes of the search page: its files, pictures of the scenes for its map, and how alike the ground in view is to what is searched."""

import weakref
from typing import Annotated

import fastapi
import numpy as np
import pydantic
from fastapi.responses import Response

from rayjobs import geo
from rayjobs.serve.answers import Answers
from rayjobs.serve.page.files import FILES, INDEX
from rayjobs.serve.page.heat import Heat, heat
from rayjobs.serve.page.overview import Overviews
from rayjobs.serve.schema import Feature, Finite, SearchRequest
from rayjobs.serve.service import Here

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

router = fastapi.APIRouter(tags=["page"], include_in_schema=False)

Tag = Annotated[str | None, fastapi.Header(alias="if-none-match")]


@router.get("/")
def index(if_none_match: Tag = None) -> Response:
    """Answer the page."""
    return _file(INDEX, if_none_match)


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
def overview(service: Here) -> Pictures:
    """List the pictures that the map is made of."""
    answers = service.answers
    return Pictures(
        pictures=[
            Picture(
                scene_id=outline.scene.scene_id,
                datetime=outline.scene.datetime.isoformat() if outline.scene.datetime else None,
                bounds=list(outline.bounds),
                url=f"page/overview/{number}.png?set={answers.source.version}",
            )
            for number, outline in enumerate(_overviews(answers).outlines)
        ]
    )


@router.get("/page/overview/{number}.png")
def overview_picture(service: Here, number: Annotated[int, fastapi.Path(ge=0)]) -> Response:
    """Show one scene."""
    overviews = _overviews(service.answers)
    if number >= len(overviews.outlines):
        raise fastapi.HTTPException(404, f"there are {len(overviews.outlines)} pictures, counted from 0")
    return Response(overviews.png(number), media_type="image/png", headers={"cache-control": "private, max-age=86400"})


@router.get("/page/place")
def place(
    service: Here,
    lon: Annotated[float, fastapi.Query(ge=-180, le=180, allow_inf_nan=False)],
    lat: Annotated[float, fastapi.Query(ge=-90, le=90, allow_inf_nan=False)],
    datetime: Annotated[str | None, fastapi.Query(max_length=100)] = None,
) -> Feature:
    """Return the tile that holds a place, on a date if one is given."""
    return service.answers.tile_at(lon, lat, datetime=datetime)


class HeatRequest(SearchRequest):
    """What to compare the ground with, and which ground: `bbox`; `limit` says nothing here."""

    bbox: Annotated[list[Finite], pydantic.Field(min_length=4, max_length=4)]


@router.post("/page/heat")
def similarity(service: Here, request: HeatRequest) -> Heat:
    """Tell how alike the tiles in view are to the examples; of very many tiles, a sample."""
    answers = service.answers
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
