"""How workers far away tell the driver how far they are, without Ray's own stream of logs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@ray.remote(num_cpus=0)
class Mailbox:
    """Messages of distant workers, kept until the driver takes them."""

    def __init__(self) -> None:
        """Begin empty."""
        self._messages: list[dict[str, Any]] = []

    def post(self, message: dict[str, Any]) -> None:
        """Leave a message."""
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        """Return what came since the last call."""
        messages, self._messages = self._messages, []
        return messages


@contextmanager
def listening(hear: Callable[[dict[str, Any]], None], *, every_s: float = 0.5) -> Iterator[Any]:
    """Yield a mailbox to hand to workers, and call `hear` in a thread with each message; none is left unheard at the end."""
    mailbox = Mailbox.remote()  # type: ignore[attr-defined]  # Ray's decorator hides the class from mypy
    stop = threading.Event()

    def listen() -> None:
        while not stop.wait(every_s):
            for message in ray.get(mailbox.take.remote()):
                hear(message)

    thread = threading.Thread(target=listen, name="mailbox", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join()
        for message in ray.get(mailbox.take.remote()):
            hear(message)
        ray.kill(mailbox)
