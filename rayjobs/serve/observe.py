"""What is seen of requests: an id, a line of JSON in the log, metrics for Prometheus, spans for OpenTelemetry.

Metrics are Ray's own, so that they come out where those of Ray Serve do, with the process and the node they are of. Neither bodies nor
headers nor query strings are logged: they may hold tokens and places.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray.util.metrics
from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from rayjobs.serve.hits import Found

_ID = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]

REQUESTS = ray.util.metrics.Histogram(
    "rayjobs_request_seconds", "Seconds from a request to its answer.", boundaries=_SECONDS, tag_keys=("route", "status")
)
STAGES = ray.util.metrics.Histogram(
    "rayjobs_stage_seconds", "Seconds that requests spend in a stage.", boundaries=_SECONDS, tag_keys=("stage",)
)
SEARCHES = ray.util.metrics.Counter("rayjobs_searches", "Queries that were searched for.", tag_keys=("mode", "index_version"))
BATCHES = ray.util.metrics.Histogram(
    "rayjobs_batch_size", "Items that were worked on together.", boundaries=[1, 2, 4, 8, 16, 32, 64, 128, 256], tag_keys=("of",)
)
SERVED = ray.util.metrics.Gauge(
    "rayjobs_index_served", "1 for the index version that this process serves, 0 for earlier ones.", tag_keys=("index_version",)
)

_LOG = logging.getLogger("ray.serve.rayjobs")  # below Ray Serve's own, whose files and JSON it shares


@dataclass(slots=True)
class Seen:
    """What is known of a request under way."""

    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What the log is to say of it beside path, status and time: `search_ms`, `index_version`, ..."""


_SEEN: contextvars.ContextVar[Seen | None] = contextvars.ContextVar("seen", default=None)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure a stage of the request under way, `embed`, `search`, ..., and make it a span where Ray Serve traces the request."""
    begun = time.perf_counter()
    traced = trace.get_current_span().is_recording()
    try:
        with trace.get_tracer(__name__).start_as_current_span(name) if traced else contextlib.nullcontext():
            yield
    finally:
        seconds = time.perf_counter() - begun
        STAGES.observe(seconds, tags={"stage": name})
        if seen := _SEEN.get():
            seen.facts[f"{name}_ms"] = round(1e3 * seconds, 3)


def searched(answers: Sequence[Found]) -> None:
    """Count the answers to queries that were searched for together, all from one index version."""
    modes = collections.Counter("exact" if answer.exact else "approximate" for answer in answers)
    version = answers[0].index_version
    for mode, count in modes.items():
        SEARCHES.inc(count, tags={"mode": mode, "index_version": version})
    if len(answers) > 1:
        BATCHES.observe(len(answers), tags={"of": "search"})
    if seen := _SEEN.get():
        seen.facts |= {"index_version": version, "queries": len(answers), "exact": modes["exact"]}


class Observed:
    """An ASGI middleware that sees every request, those too that others refuse."""

    def __init__(self, app: ASGIApp, *, log: bool = True) -> None:
        """Take the application behind, and whether each request is a line of the log."""
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, and tell what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name.lower() == _ID), None)
        seen = Seen(given.decode() if given and _SANE.fullmatch(given) else secrets.token_hex(16))
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if given is None or given.decode("latin-1") != seen.request_id:  # else Ray Serve sends it back
                    message = {**message, "headers": [*message["headers"], (_ID, seen.request_id.encode())]}
            await send(message)

        begun, token = time.perf_counter(), _SEEN.set(seen)
        try:
            await self._app(scope, receive, answer)
        finally:
            _SEEN.reset(token)
            self._tell(scope, seen, status, time.perf_counter() - begun)

    def _tell(self, scope: Scope, seen: Seen, status: int, seconds: float) -> None:
        REQUESTS.observe(seconds, tags={"route": getattr(scope.get("route"), "path", "none"), "status": str(status)})
        if self._log:
            facts = {"method": scope["method"], "path": scope["path"], "status": status, "ms": round(1e3 * seconds, 3), **seen.facts}
            holder = scope.get("state", {}).get("holder")
            _LOG.info("request", extra={"rayjobs_request_id": seen.request_id, "token": holder, **facts})
