"""The routes under `/v1`, and `/healthz`: what each asks of one index version, and in which form it answers."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

import fastapi
import pydantic
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from rayjobs.rasters.uploads import read_upload
from rayjobs.serve.answers import Answers
from rayjobs.serve.features import FORMATS, GEOJSON, WRITTEN
from rayjobs.serve.forms import FormFilters, known_words, numbers_of
from rayjobs.serve.held import Target
from rayjobs.serve.hits import Found
from rayjobs.serve.observe import searched, stage
from rayjobs.serve.quick import QuickRoute
from rayjobs.serve.schema import (
    BatchAnswer,
    BatchRequest,
    ChangesAnswer,
    ChangesRequest,
    Embedding,
    Feature,
    Filters,
    Ground,
    Health,
    Info,
    Page,
    Problem,
    SearchAnswer,
    SearchRequest,
    TileId,
)
from rayjobs.serve.service import INDEX_VERSION, Here, Pinned, Service, naming

T = TypeVar("T")


class GeoJSONResponse(JSONResponse):
    """GeoJSON, as RFC 7946 names it."""

    media_type = GEOJSON


PROBLEM = "application/problem+json"
"""Media type of errors (RFC 9457)."""

_PROBLEM_SCHEMA = {"model": Problem, "content": {PROBLEM: {}}}
_AS_TABLES: dict[int | str, dict[str, Any]] = {200: {"content": {media: {} for media in WRITTEN if media != GEOJSON}}}


def versioned_router() -> fastapi.APIRouter:
    """Return a router for paths under `/v1`: what it does not know it refuses, and its errors are described."""
    return fastapi.APIRouter(
        route_class=QuickRoute,
        dependencies=[fastapi.Depends(known_words)],
        default_response_class=GeoJSONResponse,
        responses={
            "4XX": {**_PROBLEM_SCHEMA, "description": "What is wrong with the request"},
            "5XX": {**_PROBLEM_SCHEMA, "description": "A fault"},
        },
    )


router = versioned_router()


async def _wanted_format(
    request: fastapi.Request,
    format: Annotated[Literal["geojson", "csv", "parquet"] | None, fastapi.Query()] = None,  # noqa: A002  its name in the URL
) -> str:
    """Return the media type of an answer: `format`, else the first of the Accept header that we have, else GeoJSON."""
    if format is not None:
        return FORMATS[format]
    accepted = (part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(","))
    return next((media for media in accepted if media in WRITTEN), GEOJSON)


Format = Annotated[str, fastapi.Depends(_wanted_format)]


async def _in_turn(quick: bool, work: Callable[..., T], *arguments: Any) -> T:  # noqa: FBT001  what it is called with says what it means
    """Do what takes a millisecond here, since handing it on takes as long, and the rest in a thread, while others are answered."""
    return work(*arguments) if quick else await run_in_threadpool(work, *arguments)


@router.get("/healthz", tags=["service"], response_class=JSONResponse)
async def healthz(service: Here) -> Health:
    """Say that the service is up, which index version it serves, and why it does not serve a later one."""
    return Health(index_version=service.answers.version, last_error=service.last_error)


@router.get("/v1/info", tags=["service"], response_class=JSONResponse)
async def info(service: Here) -> Info:
    """Describe the index and its encoder."""
    return service.answers.info().model_copy(update={"versions": service.versions, "last_error": service.last_error})


@router.post("/v1/refresh", tags=["service"], response_class=JSONResponse)
async def refresh(service: Here) -> Target:
    """Look at once which index version is current, and say which one all processes are to serve; they take it up within seconds."""
    return await service.refresh()


@router.post("/v1/search", tags=["search"], response_model=SearchAnswer, responses=_AS_TABLES)
async def search(service: Here, request: SearchRequest, media: Format) -> Response:
    """Find the tiles most like the positive examples and least like the negative ones; the examples themselves are left out."""
    answers = service.pinned(request.index_version)
    return await _in_turn(media == GEOJSON and answers.is_quick(request), _searched, answers, request, media)


def _searched(answers: Answers, request: SearchRequest, media: str) -> Response:
    vector, examples = answers.query_vector(request.positives, request.negatives, method=request.method)
    return _searched_by_vector(answers, vector, request, media, examples)


def _searched_by_vector(answers: Answers, vector: Any, filters: Filters, media: str, without: Sequence[str] = ()) -> Response:
    with stage("search"):
        found = answers.search(vector, filters, without=without)
    searched([found])
    return _written(found, media)


def _written(found: Found, media: str) -> Response:
    with stage("write"):
        return Response(WRITTEN[media](found), media_type=media, headers={INDEX_VERSION: found.index_version})


@router.post("/v1/search/image", tags=["search"], response_model=SearchAnswer, responses=_AS_TABLES)
async def search_image(service: Here, image: fastapi.UploadFile, filters: FormFilters, media: Format) -> Response:
    """Find the tiles most like an uploaded PNG, JPEG or GeoTIFF, whose bands must be the encoder's.

    Of a GeoTIFF with a coordinate reference system, the ground of one tile in its middle is taken, at the encoder's resolution.
    """
    answers = service.pinned(filters.index_version)
    vector = await _embedded(service, image, answers)
    return await _in_turn(False, _searched_by_vector, answers, vector, filters, media)  # noqa: FBT003  see there


async def _embedded(service: Service, image: fastapi.UploadFile, answers: Answers) -> Any:
    pixels = await run_in_threadpool(read_upload, await image.read(), service.uploads_for(answers), like=answers.window)
    return await service.embed(pixels.values, pixels.valid, answers)


@router.post("/v1/search/batch", tags=["search"], response_model=BatchAnswer, response_class=JSONResponse)
async def search_batch(service: Here, request: BatchRequest) -> Response:
    """Answer up to 256 searches from one index version; those with equal filters are searched together."""
    pins = {search.index_version for search in request.searches} - {None}
    if len(pins) > 1:
        raise fastapi.HTTPException(
            HTTPStatus.BAD_REQUEST, "the searches of a batch pin several index versions; a batch is answered from one"
        )
    answers = service.pinned(next(iter(pins), None))
    with stage("search"):
        found = await run_in_threadpool(answers.search_batch, request.searches)
    searched(found)
    with stage("write"):
        text = f'{{"answers":[{",".join(one.geojson() for one in found)}]}}'
        return Response(text, media_type="application/json", headers=naming(answers))


@router.post("/v1/embed", tags=["search"], response_class=JSONResponse)
async def embed(
    service: Here,
    response: Response,
    image: fastapi.UploadFile,
    index_version: Annotated[str | None, fastapi.Form(max_length=100)] = None,
) -> Embedding:
    """Return the embedding of an uploaded image, to be searched for later; the image is read as by `/v1/search/image`."""
    answers = service.pinned(index_version)
    response.headers.update(naming(answers))
    vector = await _embedded(service, image, answers)
    return Embedding(embedding=vector.tolist(), encoder_fingerprint=answers.encoder_fingerprint, index_version=answers.version)


@router.post("/v1/changes", tags=["places"])
def changes(service: Here, response: Response, request: ChangesRequest) -> ChangesAnswer:
    """Find the places that look most unlike what they were: those whose embedding moved most between two times."""
    answers = service.pinned(request.index_version)
    response.headers.update(naming(answers))
    return answers.changes(request)


@router.get("/v1/tiles", tags=["tiles"], response_model=SearchAnswer)
def tiles(
    answers: Pinned,
    bbox: Annotated[str | None, fastapi.Query(max_length=200, description="west,south,east,north")] = None,
    datetime: Annotated[str | None, fastapi.Query(max_length=100)] = None,
    limit: Annotated[int, fastapi.Query(ge=1)] = 100,
    offset: Annotated[int, fastapi.Query(ge=0)] = 0,
) -> Response:
    """List tiles on some ground, for a map; `candidates` says how many there are."""
    try:
        ground = Ground.model_validate({"bbox": numbers_of(bbox), "datetime": datetime})
        page = Page(limit=limit, offset=offset)
    except pydantic.ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("query", *fault["loc"])} for fault in error.errors(include_url=False)]) from None
    return _written(answers.tiles(ground, page), GEOJSON)


@router.get("/v1/tiles/{tile_id}", tags=["tiles"])
async def tile(answers: Pinned, tile_id: TileId) -> Feature:
    """Describe one tile."""
    return answers.tile(tile_id)


@router.get("/v1/tiles/{tile_id}/dates", tags=["places"], response_model=SearchAnswer)
def dates(answers: Pinned, tile_id: TileId) -> Response:
    """List the other tiles that show the same place, earliest first; `score` says how alike they are to it."""
    return _written(answers.same_place(tile_id), GEOJSON)


@router.get("/v1/tiles/{tile_id}/thumbnail.png", tags=["tiles"], response_class=Response, responses={200: {"content": {"image/png": {}}}})
def thumbnail(answers: Pinned, tile_id: TileId) -> Response:
    """Show one tile's pixels."""
    headers = {"cache-control": "max-age=86400", **naming(answers)}
    return Response(answers.thumbnail(tile_id), media_type="image/png", headers=headers)
