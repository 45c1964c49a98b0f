"""What went wrong far away, out of what Ray wraps round it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayjobs.errors import RayjobsError

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_error(error: BaseException) -> RayjobsError | None:
    """Return the error of ours that a failure of Ray's goes back to, if there is one."""
    return next((link for link in _links(error) if isinstance(link, RayjobsError)), None)


def _links(error: BaseException) -> Iterator[BaseException]:
    """Walk from an error to all that it names as its causes, each once."""
    waiting, seen = [error], set()
    while waiting:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        named = (getattr(link, "cause", None), link.__cause__, *getattr(link, "worker_failures", {}).values())
        waiting += [cause for cause in named if isinstance(cause, BaseException)]
