"""What is asked of a request before the application sees it: the token, and a body within the limit.

An ASGI middleware, since a dependency of the application would run only after the body was taken into memory.
"""

from __future__ import annotations

import hmac
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from rayjobs.errors import ConfigError
from rayjobs.serve.errors import problem
from rayjobs.serve.page.files import PUBLIC_PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = frozenset({"/healthz"}) | PUBLIC_PATHS
"""Paths that need no token: load balancers ask them, and the page's files hold no data."""

_LONGEST_LENGTH = 18
"""Digits of a content-length; Python refuses to read numbers of thousands of them."""

TOKEN = "RAYJOBS_TOKEN"  # noqa: S105  the variable's name
"""Variable that holds the token."""


def token_of(environment: Mapping[str, str], *, required: bool) -> str | None:
    """Return the token that requests must bear; None lets everybody in.

    Args:
        environment: of the process that answers.
        required: whether to refuse to go on without one.

    Raises:
        ConfigError: the token is empty, or is required and absent.
    """
    token = environment.get(TOKEN)
    if token == "":
        raise ConfigError(f"{TOKEN} is empty; give it a value, or unset it to let everybody in")
    if required and token is None:
        raise ConfigError(
            f"{TOKEN} was set where the service was started from, but is not set where it runs, so that everybody could enter; "
            "put it into the environment of the cluster's nodes or of the submitted job, or unset it at the start"
        )
    return token


class _BodyTooLargeError(Exception):
    """The body went over the limit while it was read."""


class _Measured:
    """A request whose body is counted as the application reads it; no answer to a body that is too large leaves here."""

    def __init__(self, receive: Receive, send: Send, most: int) -> None:
        self._receive, self._send, self._most, self._taken = receive, send, most, 0
        self.answered = False

    @property
    def too_large(self) -> bool:
        return self._taken > self._most

    async def receive(self) -> Message:
        message: Message = await self._receive()
        self._taken += len(message.get("body", b""))
        if self.too_large:
            raise _BodyTooLargeError
        return message

    async def send(self, message: Message) -> None:
        if self.answered or not self.too_large:
            self.answered = True
            await self._send(message)


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
        refusal = self._refusal(scope["path"], {name.lower(): value for name, value in scope["headers"]})
        if refusal:
            await _answer(send, *refusal)
            return
        measured = _Measured(receive, send, self._max)
        try:
            await self._app(scope, measured.receive, measured.send)
        except Exception:  # frameworks put an error of their own in place of the one that ended the reading
            if measured.answered or not measured.too_large:
                raise
        if measured.too_large and not measured.answered:
            await _answer(send, *self._too_large())

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[HTTPStatus, str] | None:
        if not self._may_enter(path, headers):
            return HTTPStatus.UNAUTHORIZED, "this service asks for a token: Authorization: Bearer TOKEN"
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            return HTTPStatus.BAD_REQUEST, "content-length is no number"
        if len(declared) > _LONGEST_LENGTH or int(declared) > self._max:
            return self._too_large()
        return None

    def _too_large(self) -> tuple[HTTPStatus, str]:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {self._max:,} bytes"

    def _may_enter(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._token is None or path in _OPEN:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {self._token}".encode())


async def _answer(send: Send, status: HTTPStatus, detail: str) -> None:
    body: Any = json.dumps(problem(status, detail)).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
