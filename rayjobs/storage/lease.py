"""A lease: the right to write a run, held by one process at a time and lost by one that stops renewing it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Self

from rayjobs.errors import DamagedError, PublishConflictError, StorageError

if TYPE_CHECKING:
    from rayjobs.storage.stores import Store, Tagged


_KINDS = {"expires": float, "host": str, "pid": int, "id": str}
_LATEST = 1e13
"""Unix time, after 300,000 years: no clock is so far ahead."""


class Lease:
    """Hold `key` for as long as the `with` block lasts.

    A holder that was killed is recognised at once on its own host (its process is gone) and elsewhere after `seconds`
    without a renewal, so an interrupted command can be run again. Storage may fail for that long before the lease is lost.
    """

    def __init__(self, store: Store, key: str, *, seconds: float = 120.0) -> None:
        """Name the lease; nothing is written before `__enter__`.

        Args:
            store: the workspace.
            key: what is held.
            seconds: how long a renewal holds. The default outlives one request that hangs until its client gives up.
        """
        self._store, self._key, self._seconds = store, key, seconds
        self.token = uuid.uuid4().hex
        """Names this holder, for `held`."""
        self._identity = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "id": self.token}
        self._tag: str | None = None
        self._expires = 0.0
        """Unix time to which storage is known to show us as the holder; 0 before and after."""
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._lost: PublishConflictError | None = None

    def __enter__(self) -> Self:
        """Take the lease.

        Raises:
            PublishConflictError: a live process holds it.
        """
        self._take()
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop renewing and give the lease back; never raises, since a lease that is not given back expires by itself."""
        self._stop.set()
        self._renewer.join(self._seconds)
        if self.lost or self._renewer.is_alive():
            return
        with contextlib.suppress(StorageError):
            self._write(expires=0.0, expected=self._tag)

    @property
    def lost(self) -> PublishConflictError | None:
        """Why this lease is not held any more; None while it is."""
        if self._lost is None and 0.0 < self._expires < time.time():
            return self._lapsed()
        return self._lost

    def check(self) -> None:
        """Raise if another process took the lease over, or may have (this one did not renew it in time)."""
        if lost := self.lost:
            raise lost

    @staticmethod
    def held(store: Store, key: str, token: str) -> bool:
        """Whether the holder named `token` has given the lease `key` neither back nor up to another: one read, from any machine.

        Compares no clocks: a lease that expired but that nobody took keeps nobody out.

        Raises:
            StorageError: storage cannot be asked.
            DamagedError: what lies there is no lease.
        """
        found = store.read_tagged(key)
        holder = _holder(store, key, found) if found else {}
        return holder.get("id") == token and holder["expires"] > 0.0

    @staticmethod
    def check_free(store: Store, key: str) -> Tagged | None:
        """Return what lies at the key of a lease, which nobody holds.

        Raises:
            PublishConflictError: a live process holds it.
            DamagedError: what lies there is no lease.
        """
        found = store.read_tagged(key)
        holder = _holder(store, key, found) if found else {"expires": 0.0}
        if holder["expires"] > time.time() and not _is_gone(holder):
            raise PublishConflictError(
                f"{store.address(key)} is held by process {holder['pid']} on {holder['host']}; "
                f"wait for it to end, or, if it is gone, run this again in {holder['expires'] - time.time():.0f} s"
            )
        return found

    def _take(self) -> None:
        found = self.check_free(self._store, self._key)
        self._write(expires=time.time() + self._seconds, expected=found.tag if found else None)

    def _keep_renewing(self) -> None:
        pause = self._seconds / 3
        while not self._lost and not self._stop.wait(pause):
            pause = self._seconds / (3 if self._renew() else 30)

    def _renew(self) -> bool:
        """Renew once; return False where storage failed and it should be tried again soon."""
        try:
            self._write(expires=time.time() + self._seconds, expected=self._tag)
        except PublishConflictError as error:
            self._lost = error
        except StorageError as error:
            if time.time() > self._expires:
                self._lost = self._lapsed()
                self._lost.__cause__ = error
            return False
        return True

    def _write(self, *, expires: float, expected: str | None) -> None:
        """Write the lease as ours.

        Raises:
            PublishConflictError: another process holds it.
            StorageError: storage failed, or an earlier write of ours arrived only now: try again.
        """
        text = json.dumps({**self._identity, "expires": expires}).encode()
        try:
            self._tag = self._store.swap(self._key, text, expected=expected)
        except PublishConflictError:
            # a refusal may be the second answer to a write that arrived, whose first answer was lost
            found = self._store.read_tagged(self._key)
            if found is None or json.loads(found.data).get("id") != self.token:
                raise
            self._tag = found.tag
            if found.data != text:
                raise StorageError(f"{self._store.address(self._key)} holds an earlier renewal that arrived late; renew it again") from None
        self._expires = expires

    def _lapsed(self) -> PublishConflictError:
        return PublishConflictError(
            f"{self._store.address(self._key)} could not be renewed for {self._seconds:.0f} s, so another process may hold it; "
            "check the storage and run the command again"
        )


def _holder(store: Store, key: str, found: Tagged) -> dict[str, Any]:
    """Return what a lease says of its holder. Raises `DamagedError` where it is none."""
    try:
        said = json.loads(found.data)
        kinds = {name: type(value) for name, value in said.items()}
        if _KINDS.items() <= kinds.items() and "started" in kinds and 0.0 <= said["expires"] < _LATEST:
            return dict(said)
    except (ValueError, AttributeError, RecursionError):
        pass
    raise DamagedError(f"{store.address(key)} is no lease; remove it if nothing is being written there")


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this host that is no more."""
    return bool(holder["host"] == socket.gethostname()) and _started(holder["pid"]) != holder["started"]


def _started(pid: int) -> int | None:
    """Return when a process of this host started, in kernel ticks since boot, or None where there is none (a pid may be used again)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
            return int(file.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None
