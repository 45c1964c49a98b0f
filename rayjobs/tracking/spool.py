"""What MLflow is yet to be told, on this machine's disk: it survives the command, and a later one tells it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import shutil
import threading
import time
import uuid
from typing import IO, TYPE_CHECKING

from rayjobs.tracking.entries import ENTRY
from rayjobs.tracking.section import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

    from rayjobs.tracking.entries import Entry

_LEAST_FREE_BYTES = 2**30
"""What is kept must leave so much of the disk."""
_count = itertools.count()


class Spool:
    """Entries of one run, a file each, in the order in which they came.

    It belongs to the process that has claimed it; nobody else reads or writes its entries meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        """Take the run's folder, which is made when it is claimed."""
        self.folder = folder
        self._lock: IO[str] | None = None
        self._claiming = threading.Lock()

    @property
    def claimed(self) -> bool:
        """Whether it is this process's."""
        return self._lock is not None

    def claim(self) -> bool:
        """Make it this process's, until `release`; False where it is another's."""
        with self._claiming:
            if self._lock is None:
                self._lock = self._locked()
            return self.claimed

    def _locked(self) -> IO[str] | None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def another(self) -> Spool:
        """Return one beside it, which nobody goes on with."""
        return Spool(self.folder.with_name(f"{self.folder.name}-{uuid.uuid4().hex}"))

    def release(self, *, forget: bool) -> None:
        """Let go of it; with `forget`, and if nothing waits, remove it."""
        if self._lock is None:
            return
        if forget and not self.waiting():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        self._lock = None

    @property
    def run_id(self) -> str | None:
        """Id of the run in MLflow, where it was written down."""
        with contextlib.suppress(OSError):
            return (self.folder / "run_id").read_text() or None
        return None

    def remember(self, run_id: str) -> None:
        """Write the run's id down."""
        if self.run_id != run_id:
            self._write("run_id", run_id.encode())

    def append(self, entry: Entry) -> None:
        """Write an entry down.

        Raises:
            OSError: it cannot be kept; the disk is nearly full.
            ValueError: it cannot be written as JSON.
        """
        data = ENTRY.dump_json(entry)
        if shutil.disk_usage(self.folder).free < _LEAST_FREE_BYTES + len(data):
            raise OSError(f"{self.folder} has not {_LEAST_FREE_BYTES >> 20:,} MiB left")
        self._write(f"{time.time_ns():020}-{next(_count):09}.json", data)

    def waiting(self) -> list[Path]:
        """Return the files of the entries."""
        return sorted(self.folder.glob("*.json"))

    @staticmethod
    def read(path: Path) -> Entry:
        """Read an entry. Raises `ValueError` where it is none."""
        return ENTRY.validate_json(path.read_bytes())

    def _write(self, name: str, data: bytes) -> None:
        half = self.folder / f"{name}.half"
        half.write_bytes(data)
        half.replace(self.folder / name)

    @property
    def goes_on(self) -> bool:
        """Whether a later command may go on with the run."""
        return "-" not in self.folder.name


def spool_of(uri: str, workspace: str, run: str, *, goes_on: bool = True) -> Spool:
    """Return the spool of a workspace's run at an MLflow, whose address, which may hold a password, is not in its name.

    Args:
        uri: MLflow's.
        workspace: URI of the workspace.
        run: what the run is there, its verb included.
        goes_on: False for a run of which each command makes another.
    """
    spool = Spool(_folder(uri) / _digest(f"{workspace} {run}"))
    return spool if goes_on else spool.another()


def spools_at(uri: str) -> list[Spool]:
    """Return the spools at an MLflow in which anything waits."""
    found = map(Spool, sorted(_folder(uri).glob("*")))
    return [spool for spool in found if spool.waiting()]


def _folder(uri: str) -> Path:
    return cache_folder() / "tracking" / _digest(uri)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
