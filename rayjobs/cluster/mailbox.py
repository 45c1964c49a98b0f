"""How workers far away tell the driver how far they are, without Ray's own stream of logs."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


logger = logging.getLogger(__name__)

_HASTE_S = 0.3
"""How long an interrupted command waits for a message that is being heard, such as by a tracking server that does not answer."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Messages of distant workers, kept until the driver takes them."""

    def __init__(self) -> None:
        """Begin empty."""
        self._messages: list[dict[str, Any]] = []
        self._ending = False
        self._failed: set[int] = set()

    def post(self, message: dict[str, Any]) -> None:
        """Leave a message."""
        self._messages.append(message)

    def fail(self, rank: int, error: Exception) -> None:
        """Leave word of a failure that no restart mends."""
        self._failed.add(rank)
        self._messages.append({"kind": "failed", "error": error})

    def failed(self) -> set[int]:
        """Return the ranks that left such word."""
        return self._failed

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

    Whatever goes wrong with a message is logged: news of the work must never stop it. A block that is interrupted waits for no message
    that is being heard.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # no other node's end may take it away
    mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # Ray's decorator hides the class from mypy
    stop = threading.Event()

    def hear_all() -> None:
        try:
            messages = ray.get(mailbox.take.remote())
        except Exception:  # see above
            logger.exception("a worker's messages were lost")
            return
        hear_each(messages, hear)

    def listen() -> None:
        while not stop.wait(every_s):
            hear_all()

    thread = threading.Thread(target=listen, name="mailbox", daemon=True)
    thread.start()
    patience = None
    try:
        yield mailbox
    except KeyboardInterrupt:
        patience = _HASTE_S
        raise
    finally:
        stop.set()
        thread.join(patience)
        if not thread.is_alive():
            hear_all()
        ray.kill(mailbox)


def hear_each(messages: Iterable[dict[str, Any]], hear: Callable[[dict[str, Any]], None]) -> None:
    """Call `hear` with each message; one that it fails at is logged, and the others are heard."""
    for message in messages:
        try:
            hear(message)
        except Exception:  # news of the work must never stop it
            logger.exception("a worker's message was lost: %.200r", message)
