"""The HTTP interface: routes, problem JSON, and the gate in front of them. Which service answers is asked of Ray Serve at each request."""

from http import HTTPStatus
from typing import Annotated, cast

import fastapi
import numpy as np
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from rayjobs.errors import QueryError, RayjobsError
from rayjobs.rasters.uploads import read_upload
from rayjobs.serve.errors import problem, status_of
from rayjobs.serve.front import put_in_front
from rayjobs.serve.page.router import router as page
from rayjobs.serve.schema import Feature, Filters, Health, Info, SearchAnswer, SearchRequest, TileId
from rayjobs.serve.section import ServiceSection
from rayjobs.serve.service import Here, current_service
from rayjobs.serve.tokens import Tokens

__all__ = ["build_api", "current_service"]


router = fastapi.APIRouter()


@router.get("/healthz", tags=["service"])
async def healthz(service: Here) -> Health:
    """Say that the service is up, which index version it serves, and why it does not serve a later one."""
    return Health(index_version=service.answers.version, last_error=service.last_error)


@router.get("/v1/info", tags=["service"])
async def info(service: Here) -> Info:
    """Describe the index and its encoder."""
    return service.answers.info().model_copy(update={"versions": service.versions, "last_error": service.last_error})


@router.post("/v1/search", tags=["search"])
async def search(service: Here, request: SearchRequest) -> SearchAnswer:
    """Find the tiles most like the examples; the examples themselves are left out."""
    answers = service.answers
    vector, examples = answers.query_vector(request.positives)
    return answers.search(vector, request, without=examples)


@router.post("/v1/search/image", tags=["search"])
async def search_image(
    service: Here,
    image: fastapi.UploadFile,
    limit: Annotated[int, fastapi.Form(ge=1)] = 10,
    bbox: Annotated[str | None, fastapi.Form(max_length=200, description="west,south,east,north")] = None,
    datetime: Annotated[str | None, fastapi.Form(max_length=100)] = None,
) -> SearchAnswer:
    """Find the tiles most like an uploaded PNG, JPEG or GeoTIFF, whose bands must be the encoder's."""
    filters = Filters(limit=limit, bbox=_numbers(bbox), datetime=datetime)
    answers = service.answers
    pixels = await run_in_threadpool(read_upload, await image.read(), service.uploads_for(answers))  # other requests go on meanwhile
    vector = await service.embed(pixels.values, pixels.valid, answers)
    return answers.search(vector, filters, without=())


@router.get("/v1/tiles/{tile_id}", tags=["tiles"])
async def tile(service: Here, tile_id: TileId) -> Feature:
    """Describe one tile."""
    return service.answers.tile(tile_id)


@router.get("/v1/tiles/{tile_id}/thumbnail.png", tags=["tiles"], response_class=Response)
def thumbnail(service: Here, tile_id: TileId) -> Response:
    """Show one tile's pixels."""
    return Response(service.answers.thumbnail(tile_id), media_type="image/png", headers={"cache-control": "max-age=86400"})


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(("west", "south", "east", "north")) or not np.isfinite(numbers).all():
        raise QueryError(f"bbox {text!r} is not four numbers: west,south,east,north")
    return numbers


_PROBLEM = "application/problem+json"


def _our_error(_: fastapi.Request, error: Exception) -> JSONResponse:
    status = status_of(type(error))
    headers = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse(problem(status, str(error)), int(status), headers, media_type=_PROBLEM)


def _wrong_request(_: fastapi.Request, error: Exception) -> JSONResponse:
    faults = cast("RequestValidationError", error).errors()
    detail = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}" for fault in faults)
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return JSONResponse(problem(status, detail, title="Unprocessable Content"), status, media_type=_PROBLEM)  # its name since RFC 9110


def _no_such_thing(_: fastapi.Request, error: Exception) -> JSONResponse:
    """Answer what the framework refuses: a path or a method that is none, a body that cannot be read."""
    refusal = cast("HTTPException", error)
    status = HTTPStatus(refusal.status_code)
    return JSONResponse(problem(status, str(refusal.detail)), status, refusal.headers, media_type=_PROBLEM)


def _our_fault(_: fastapi.Request, __: Exception) -> JSONResponse:
    """Answer an unexpected fault without saying more; Starlette raises it again, so that the replica's log has it."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return JSONResponse(problem(status, "a fault of the service; its log says more"), status, media_type=_PROBLEM)


def build_api(service: ServiceSection | None = None, tokens: Tokens | None = None) -> fastapi.FastAPI:
    """Return the ASGI application.

    Args:
        service: limits of requests, and what is logged; default the section's own.
        tokens: of which every request but `/healthz` and the page's files must bear one; None lets everybody in.
    """
    api = fastapi.FastAPI(title="rayjobs", version="1", description="Find every place that looks like the one you point at.")
    api.include_router(router)
    api.include_router(page)
    api.add_exception_handler(RayjobsError, _our_error)
    api.add_exception_handler(RequestValidationError, _wrong_request)
    api.add_exception_handler(HTTPException, _no_such_thing)
    api.add_exception_handler(Exception, _our_fault)
    put_in_front(api, service or ServiceSection(), tokens)
    return api
