"""A lease: the right to write a run, held by one process at a time and lost by one that stops renewing it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Self

from rayjobs.errors import PublishConflictError

if TYPE_CHECKING:
    from rayjobs.storage.stores import Store


class Lease:
    """Hold `key` for as long as the `with` block lasts.

    A holder that was killed is recognised at once on its own host (its process is gone) and elsewhere after `seconds`
    without a renewal, so an interrupted command can be run again.
    """

    def __init__(self, store: Store, key: str, *, seconds: float = 30.0) -> None:
        """Name the lease; nothing is written before `__enter__`."""
        self._store, self._key, self._seconds = store, key, seconds
        self._identity = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "id": uuid.uuid4().hex}
        self._tag: str | None = None
        self._stop = threading.Event()
        self._renewer: threading.Thread | None = None
        self.lost: PublishConflictError | None = None

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
            PublishConflictError: a live process holds it.
        """
        self._tag = self._take()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop renewing and give the lease back."""
        self._stop.set()
        if self._renewer:
            self._renewer.join()
        if not self.lost:
            self._tag = self._store.swap(self._key, self._text(expires=0.0), expected=self._tag)

    def check(self) -> None:
        """Raise if another process took the lease over (this one did not renew it in time)."""
        if self.lost:
            raise self.lost

    def _text(self, *, expires: float) -> bytes:
        return json.dumps({**self._identity, "expires": expires}).encode()

    def _take(self) -> str:
        found = self._store.read_tagged(self._key)
        holder: dict[str, Any] = json.loads(found.data) if found else {"expires": 0.0}
        if holder["expires"] > time.time() and not self._is_gone(holder):
            raise PublishConflictError(
                f"{self._store.address(self._key)} is held by process {holder['pid']} on {holder['host']}; "
                f"wait for it to end, or, if it is gone, run this again in {holder['expires'] - time.time():.0f} s"
            )
        return self._store.swap(self._key, self._text(expires=time.time() + self._seconds), expected=found.tag if found else None)

    def _is_gone(self, holder: dict[str, Any]) -> bool:
        return bool(holder["host"] == self._identity["host"]) and _started(holder["pid"]) != holder["started"]

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            try:
                self._tag = self._store.swap(self._key, self._text(expires=time.time() + self._seconds), expected=self._tag)
            except PublishConflictError as error:
                self.lost = error
                return


def _started(pid: int) -> int | None:
    """Return when a process of this host started, in kernel ticks since boot, or None where there is none (a pid may be used again)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
            return int(file.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None
