"""What stands in front of the routes, from the outside in: what is seen of requests, origins of browsers, our own faults, the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

from rayjobs.serve.bodies import BodyLimits
from rayjobs.serve.faults import Faults
from rayjobs.serve.limits import Gate
from rayjobs.serve.observe import Observed
from rayjobs.serve.rates import Rate
from rayjobs.serve.service import INDEX_VERSION

if TYPE_CHECKING:
    import fastapi

    from rayjobs.serve.section import ServiceSection
    from rayjobs.serve.tokens import Tokens

_MEBIBYTE = 2**20
_HEADERS = ("authorization", "content-type", "x-request-id", "x-rayjobs-person")


def put_in_front(api: fastapi.FastAPI, service: ServiceSection, tokens: Tokens | None) -> None:
    """Add the middlewares to an application; what is added last is asked first."""
    api.add_middleware(
        Gate,
        body=_bodies(service, service.max_json_mb),
        uploads=_bodies(service, service.max_upload_mb),
        tokens=tokens,
        rate=Rate(service.rate_limit) if service.rate_limit else None,
    )
    api.add_middleware(Faults)
    if service.cors_origins:
        origins = list(service.cors_origins)
        api.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=_HEADERS,
            expose_headers=(INDEX_VERSION, "x-request-id"),
            max_age=600,
        )
    api.add_middleware(Observed, log=service.access_log)


def _bodies(service: ServiceSection, most_mb: float) -> BodyLimits:
    return BodyLimits(max_bytes=int(most_mb * _MEBIBYTE), pause_s=service.body_timeout_s, whole_s=service.slowest_body_s)
