"""What is asked of a request before the application sees it: a token and its scope, not too often, and a body within its limits.

An ASGI middleware, since a dependency of the application would run only after the body was taken into memory.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from rayjobs.serve.bodies import BodyLimits, Measured, Refusal
from rayjobs.serve.errors import problem
from rayjobs.serve.page.files import PUBLIC_PATHS
from rayjobs.serve.tokens import ADMIN, LABEL, READ, WRITE, Holder, Tokens
from rayjobs.serve.tokens import Scope as Granted

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from rayjobs.serve.rates import Rate

_OPEN = frozenset({"/healthz"}) | PUBLIC_PATHS
"""Paths that need no token: load balancers ask them, and the page's files hold no data."""

ADMIN_PATHS = frozenset({"/v1/refresh"})
"""Paths that steer the service."""

_CHANGES = frozenset({"PUT", "PATCH", "DELETE"})
"""Methods that change what the service holds; POST asks, since a search is too long for a path."""

_LABELS = "/v1/labels"
"""Paths below which POST changes what people said."""

PERSON = "person"
"""Under which a request's state holds the name of the person whom its token was given to; absent where the token has no name."""

PEOPLE = "people"
"""Under which it holds the names of everybody whom a token was given to; absent where the service asks for none."""

_FORM = b"multipart/form-data"

_ANYBODY = Holder(name="anybody", scopes=frozenset({READ, LABEL, WRITE, ADMIN}))


class Gate:
    """Refuses who has no token (401) or not the scope (403), who asks too often (429), and bodies too large (413) or too slow (408)."""

    def __init__(
        self, app: ASGIApp, *, body: BodyLimits, uploads: BodyLimits, tokens: Tokens | None = None, rate: Rate | None = None
    ) -> None:
        """Take the application behind; without tokens everybody may do everything, without a rate as often as they like.

        Args:
            app: what answers those who are let through.
            body: what bodies must keep to, such as JSON, which takes many times its length once it is read.
            uploads: what multipart forms must keep to, which hold images.
            tokens: of which a request must bear one.
            rate: how often a bearer may ask.
        """
        self._app, self._body, self._uploads, self._tokens, self._rate = app, body, uploads, tokens, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        limits = self._uploads if headers.get(b"content-type", b"").lower().startswith(_FORM) else self._body
        refused = self._refusal(scope, headers) or limits.refusal(headers)
        if refused:
            await answer(send, *refused)
            return
        measured = Measured(receive, send, limits)
        try:
            await self._app(scope, measured.receive, measured.send)
        except Exception:  # frameworks put an error of their own in place of the one that ended the reading
            if measured.answered or not measured.refusal:
                raise
        if measured.refusal and not measured.answered:
            await answer(send, *measured.refusal)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Refusal | tuple[HTTPStatus, str, int] | None:
        holder = self._holder(scope["path"], headers)
        if holder is None:
            return HTTPStatus.UNAUTHORIZED, "this service asks for a token: Authorization: Bearer TOKEN"
        needed = _needed(scope["method"], scope["path"])
        if needed not in holder.scopes:
            return HTTPStatus.FORBIDDEN, f"this asks for a token with the scope {needed!r}; yours has {', '.join(sorted(holder.scopes))}"
        scope.setdefault("state", {})["holder"] = holder.name
        if self._tokens is not None:
            scope["state"][PEOPLE] = self._tokens.people
        if holder.person is not None:
            scope["state"][PERSON] = holder.person
        return self._too_often(scope, holder)

    def _holder(self, path: str, headers: dict[bytes, bytes]) -> Holder | None:
        if self._tokens is None or path in _OPEN:
            return _ANYBODY
        return self._tokens.holder(headers.get(b"authorization", b""))

    def _too_often(self, scope: Scope, holder: Holder) -> tuple[HTTPStatus, str, int] | None:
        if self._rate is None or scope["path"] in _OPEN:
            return None
        wait = self._rate.wait_s(holder.name)
        return None if wait is None else (HTTPStatus.TOO_MANY_REQUESTS, f"more than {self._rate}; ask again in {wait} s", wait)


def _needed(method: str, path: str) -> Granted:
    if path in ADMIN_PATHS:
        return ADMIN
    if method == "POST" and (path == _LABELS or path.startswith(f"{_LABELS}/")):
        return LABEL
    return WRITE if method in _CHANGES else READ


async def answer(send: Send, status: HTTPStatus, detail: str, retry_after_s: int | None = None) -> None:
    """Answer a request as problem JSON, and close the connection, on which a body may lie unread."""
    body = json.dumps(problem(status, detail)).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
