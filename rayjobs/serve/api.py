"""The HTTP interface: routes, errors as problem JSON, and what stands in front of them."""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, cast

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rayjobs.errors import LabelLostError, RayjobsError
from rayjobs.serve.errors import problem, status_of
from rayjobs.serve.front import put_in_front
from rayjobs.serve.label_routes import router as labels
from rayjobs.serve.page.router import router as page
from rayjobs.serve.routes import PROBLEM, router
from rayjobs.serve.section import ServiceSection
from rayjobs.serve.service import current_service
from rayjobs.serve.tokens import Tokens

__all__ = ["build_api", "current_service"]


_MOST_FAULTS = 10
"""Of a request that are told."""
_LONGEST_FAULT = 500
"""Characters of one of them, which may quote the request."""


def _refusals(retry_after_s: float) -> Callable[[fastapi.Request, Exception], JSONResponse]:
    """Return what answers an error of ours; a 503 says after how many seconds to ask again."""
    busy = {"retry-after": str(math.ceil(retry_after_s))}

    def our_error(_: fastapi.Request, error: Exception) -> JSONResponse:
        status = status_of(type(error))
        headers = busy if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return JSONResponse(problem(status, str(error), **_further(error)), int(status), headers, media_type=PROBLEM)

    return our_error


def _further(error: Exception) -> dict[str, Any]:
    """Return what a program should know of an error beside its words."""
    if not isinstance(error, LabelLostError):
        return {}
    return {"lost": [{"tile_id": tile, "labelled_by": list(people)} for tile, people in error.lost.items()]}


def _wrong_request(_: fastapi.Request, error: Exception) -> JSONResponse:
    faults = cast("RequestValidationError", error).errors()
    told = [_told(fault) for fault in faults[:_MOST_FAULTS]]
    more = [f"and {len(faults) - _MOST_FAULTS:,} more"] if len(faults) > _MOST_FAULTS else []
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    body = problem(status, "; ".join(told + more), title="Unprocessable Content")  # its name since RFC 9110
    return JSONResponse(body, status, media_type=PROBLEM)


def _told(fault: Mapping[str, Any]) -> str:
    words = f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
    if fault["type"] == "json_invalid" and "error" in fault.get("ctx", {}):
        words = f"{words}: {fault['ctx']['error']}"
    if fault["type"] == "model_attributes_type" and fault["loc"] == ("body",):
        words = "body: send JSON, an object, under content-type: application/json"
    return words if len(words) <= _LONGEST_FAULT else f"{words[:_LONGEST_FAULT]} ..."


def _no_such_thing(_: fastapi.Request, error: Exception) -> JSONResponse:
    """Answer what the framework refuses: a path or a method that is none, a body that cannot be read."""
    refusal = cast("HTTPException", error)
    status = HTTPStatus(refusal.status_code)
    return JSONResponse(problem(status, str(refusal.detail)), status, refusal.headers, media_type=PROBLEM)


def build_api(service: ServiceSection | None = None, tokens: Tokens | None = None) -> fastapi.FastAPI:
    """Return the ASGI application.

    Args:
        service: limits of requests, and what is logged; default the section's own.
        tokens: of which every request but `/healthz` and the page's files must bear one; None lets everybody in.
    """
    api = fastapi.FastAPI(title="rayjobs", version="1", description="Find every place that looks like the one you point at.")
    api.include_router(router)
    api.include_router(labels)
    api.include_router(page)
    service = service or ServiceSection()
    api.add_exception_handler(RayjobsError, _refusals(service.retry_after_s))
    api.add_exception_handler(RequestValidationError, _wrong_request)
    api.add_exception_handler(HTTPException, _no_such_thing)
    put_in_front(api, service, tokens)
    return api
