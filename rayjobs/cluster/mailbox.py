"""How workers far away tell the driver how far they are, without Ray's own stream of logs."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


logger = logging.getLogger(__name__)


@ray.remote(num_cpus=0)
class Mailbox:
    """Messages of distant workers, kept until the driver takes them."""

    def __init__(self) -> None:
        """Begin empty."""
        self._messages: list[dict[str, Any]] = []
        self._ending = False

    def post(self, message: dict[str, Any]) -> None:
        """Leave a message."""
        self._messages.append(message)

    def take(self) -> list[dict[str, Any]]:
        """Return what came since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def end(self) -> None:
        """Have distant workers know that the driver is about to end."""
        self._ending = True

    def is_ending(self) -> bool:
        """Whether the driver is about to end."""
        return self._ending


@contextmanager
def listening(hear: Callable[[dict[str, Any]], None], *, every_s: float = 0.5) -> Iterator[Any]:
    """Yield a mailbox to hand to workers, and call `hear` in a thread with each message; none is left unheard at the end.

    Whatever goes wrong with a message is logged: news of the work must never stop it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # no other node's end may take it away
    mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # Ray's decorator hides the class from mypy
    stop = threading.Event()

    def hear_all() -> None:
        try:
            for message in ray.get(mailbox.take.remote()):
                hear(message)
        except Exception:  # see above
            logger.exception("a worker's messages were lost")

    def listen() -> None:
        while not stop.wait(every_s):
            hear_all()

    thread = threading.Thread(target=listen, name="mailbox", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join()
        hear_all()
        ray.kill(mailbox)
