"""Request bodies within limits: none too large is taken into memory, and none that comes too slowly holds a place."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

_LONGEST_LENGTH = 18
"""Digits of a content-length; Python refuses to read numbers of thousands of them."""

Refusal = tuple[HTTPStatus, str]
"""Status and detail of an answer that refuses a request."""


class BodyRefusedError(Exception):
    """The body is not read further; raised through the application that reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What a request's body must keep to."""

    max_bytes: int
    """Most bytes."""
    pause_s: float
    """Seconds in which some more of it must come."""
    whole_s: float
    """Seconds in which all of it must come."""

    def refusal(self, headers: dict[bytes, bytes]) -> Refusal | None:
        """Return how a request is refused by what it declares; None where it may go on."""
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit():
            return HTTPStatus.BAD_REQUEST, "content-length is no number"
        if len(declared) > _LONGEST_LENGTH or int(declared) > self.max_bytes:
            return self.too_large()
        return None

    def too_large(self) -> Refusal:
        """Return the refusal of a body over the limit."""
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {self.max_bytes:,} bytes"

    def too_slow(self) -> Refusal:
        """Return the refusal of a body that does not come."""
        return (
            HTTPStatus.REQUEST_TIMEOUT,
            f"nothing more of the body came for {self.pause_s:g} s, or not all of it within {self.whole_s:g} s",
        )


class Measured:
    """A request whose body is measured as the application reads it; no other answer to a refused body leaves here."""

    def __init__(self, receive: Receive, send: Send, limits: BodyLimits) -> None:
        """Take the two ends of the connection."""
        self._receive, self._send, self._limits = receive, send, limits
        self._taken, self._whole = 0, False
        self._deadline: float | None = None
        self.refusal: Refusal | None = None
        """How the body is refused; None while it is not."""
        self.answered = False
        """Whether the application has begun to answer."""

    async def receive(self) -> Message:
        """Return the next message. Raises `BodyRefusedError` instead of a part that goes over a limit."""
        message: Message = await (self._receive() if self._whole else self._next_part())
        if message["type"] == "http.request":
            self._taken += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._taken > self._limits.max_bytes:
                raise self._refused(self._limits.too_large())
        return message

    async def _next_part(self) -> Message:
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._limits.whole_s
        try:
            async with asyncio.timeout_at(min(now + self._limits.pause_s, self._deadline)):
                return await self._receive()
        except TimeoutError:
            raise self._refused(self._limits.too_slow()) from None

    def _refused(self, refusal: Refusal) -> BodyRefusedError:
        self.refusal = refusal
        return BodyRefusedError()

    async def send(self, message: Message) -> None:
        """Pass an answer on, unless the body was refused before it began."""
        if self.answered or not self.refusal:
            self.answered = True
            await self._send(message)
