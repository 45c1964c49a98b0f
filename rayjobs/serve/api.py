"""The HTTP interface: routes, errors as problem JSON, and what stands in front of them."""

from http import HTTPStatus
from typing import cast

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rayjobs.errors import RayjobsError
from rayjobs.serve.errors import problem, status_of
from rayjobs.serve.front import put_in_front
from rayjobs.serve.page.router import router as page
from rayjobs.serve.routes import PROBLEM, router
from rayjobs.serve.section import ServiceSection
from rayjobs.serve.service import current_service
from rayjobs.serve.tokens import Tokens

__all__ = ["build_api", "current_service"]


def _our_error(_: fastapi.Request, error: Exception) -> JSONResponse:
    status = status_of(type(error))
    headers = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse(problem(status, str(error)), int(status), headers, media_type=PROBLEM)


def _wrong_request(_: fastapi.Request, error: Exception) -> JSONResponse:
    faults = cast("RequestValidationError", error).errors()
    detail = "; ".join(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}" for fault in faults)
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return JSONResponse(problem(status, detail, title="Unprocessable Content"), status, media_type=PROBLEM)  # its name since RFC 9110


def _no_such_thing(_: fastapi.Request, error: Exception) -> JSONResponse:
    """Answer what the framework refuses: a path or a method that is none, a body that cannot be read."""
    refusal = cast("HTTPException", error)
    status = HTTPStatus(refusal.status_code)
    return JSONResponse(problem(status, str(refusal.detail)), status, refusal.headers, media_type=PROBLEM)


def _our_fault(_: fastapi.Request, __: Exception) -> JSONResponse:
    """Answer an unexpected fault without saying more; Starlette raises it again, so that the replica's log has it."""
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return JSONResponse(problem(status, "a fault of the service; its log says more"), status, media_type=PROBLEM)


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
