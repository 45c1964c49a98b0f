"""What MLflow is yet to be told, on this machine's disk: it survives the command, and a later one tells it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

from rayjobs.tracking.entries import ENTRY
from rayjobs.tracking.section import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rayjobs.tracking.entries import Entry


class Spool:
    """Entries of one run, a file each, in the order in which they came; and the run's id, once MLflow has given it one."""

    def __init__(self, folder: Path) -> None:
        """Take the run's folder, which is made with the first entry."""
        self._folder = folder

    @property
    def run_id(self) -> str | None:
        """Id of a run that was begun from here, and has not finished."""
        with contextlib.suppress(OSError):
            return self._run_id.read_text()
        return None

    @property
    def _run_id(self) -> Path:
        return self._folder / "run_id"

    def begun(self, run_id: str) -> None:
        """Write the run's id down, if any entries are kept that need it."""
        if self._folder.exists() and self.run_id != run_id:
            self._write(self._run_id, run_id.encode())

    def append(self, entry: Entry) -> None:
        """Write an entry down."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.turn():
            waiting = self.waiting()
            number = int(waiting[-1].stem) + 1 if waiting else 0
            self._write(self._folder / f"{number:09}.json", ENTRY.dump_json(entry))

    def waiting(self) -> list[Path]:
        """Return the files of the entries."""
        return sorted(self._folder.glob("*.json"))

    @staticmethod
    def read(path: Path) -> Entry:
        """Read an entry. Raises `ValueError` where it is none."""
        return ENTRY.validate_json(path.read_bytes())

    def forget(self) -> None:
        """Remove the folder of a run that has finished, if nothing waits in it."""
        with contextlib.suppress(OSError):
            self._run_id.unlink(missing_ok=True)
            self._folder.rmdir()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Have other processes wait that would read or write the run's entries."""
        try:
            folder = os.open(self._folder, os.O_RDONLY)
        except OSError:
            yield
            return
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        half = path.with_suffix(".half")
        half.write_bytes(data)
        half.replace(path)


def spool_of(uri: str, workspace: str, run: str) -> Spool:
    """Return the spool of a workspace's run at an MLflow; the address itself, which may hold a password, is not written down."""
    return Spool(_folder(uri) / _digest(f"{workspace} {run}"))


def spools_at(uri: str) -> list[Spool]:
    """Return the spools at an MLflow that have anything to tell."""
    found = map(Spool, sorted(_folder(uri).glob("*")))
    return [spool for spool in found if spool.waiting()]


def _folder(uri: str) -> Path:
    return cache_folder() / "tracking" / _digest(uri)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
