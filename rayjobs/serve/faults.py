"""Faults of ours: what is unexpected is answered 500 where it is still seen, and goes on to the log of the process."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from rayjobs.serve.limits import answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Faults:
    """An ASGI middleware inside those that give an answer its id and its origins: Starlette's own answers outside of them."""

    def __init__(self, app: ASGIApp) -> None:
        """Take the application behind."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through; answer an unexpected error without saying more, and raise it again, so that the log has it."""
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            if scope["type"] == "http" and not begun:
                await answer(send, HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the service; its log says more")
            raise
