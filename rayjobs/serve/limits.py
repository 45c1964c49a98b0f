"""What is asked of a request before the application sees it: the token, and a body within the limit.

An ASGI middleware, since a dependency of the application would run only after the body was taken into memory.
"""

from __future__ import annotations

import hmac
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from rayjobs.serve.errors import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = frozenset({"/healthz"})
"""Paths that need no token: load balancers ask them."""


_LONGEST_LENGTH = 18
"""Digits of a content-length; Python refuses to read numbers of thousands of them."""


class _BodyTooLargeError(Exception):
    """The body went over the limit while it was read."""


class Gate:
    """Refuses requests without the token (401) and bodies over the limit (413)."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, token: str | None) -> None:
        """Take the application behind; no token lets everybody in."""
        self._app, self._max, self._token = app, max_body_bytes, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._may_enter(scope["path"], headers):
            await _answer(send, HTTPStatus.UNAUTHORIZED, "this service asks for a token: Authorization: Bearer TOKEN")
            return
        too_large = f"the body is larger than {self._max:,} bytes"
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            await _answer(send, HTTPStatus.BAD_REQUEST, "content-length is no number")
            return
        if len(declared) > _LONGEST_LENGTH or int(declared) > self._max:
            await _answer(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
            return
        try:
            await self._app(scope, self._counting(receive), send)
        except _BodyTooLargeError:
            await _answer(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)

    def _may_enter(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._token is None or path in _OPEN:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {self._token}".encode())

    def _counting(self, receive: Receive) -> Receive:
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message: Message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max:
                raise _BodyTooLargeError
            return message

        return counted


async def _answer(send: Send, status: HTTPStatus, detail: str) -> None:
    body: Any = json.dumps(problem(status, detail)).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
