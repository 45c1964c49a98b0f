"""Rows that are made once on each machine, and that all of its processes then map into memory out of one file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from rayjobs.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable


def mapped(path: Path, make: Callable[[], pa.RecordBatch]) -> pa.RecordBatch:
    """Map a file of rows into memory; one that is not there, or is damaged, is made first.

    Args:
        path: the file, named after all that decides what is in it. Others may be making it at the same time.
        make: returns its rows.

    Raises:
        StorageError: it belongs to another user, or cannot be written.
    """
    if path.exists():
        try:
            return _read(path)
        except (pa.ArrowException, OSError):  # cut short or altered; what is mapped elsewhere stays as it is
            path.unlink(missing_ok=True)
    batch = make()
    try:
        _write(batch, path)
        return _read(path)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{path} cannot be written ({error}); make room there, or set another folder for copies of files") from error


def _read(path: Path) -> pa.RecordBatch:
    if path.stat().st_uid != os.getuid():
        raise StorageError(f"{path} belongs to another user, who could alter it; remove it, or set another folder for copies of files")
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    if reader.num_record_batches != 1:
        raise pa.ArrowInvalid(f"{path} holds {reader.num_record_batches} batches of rows, not one")
    batch = reader.get_batch(0)
    batch.validate(full=True)  # offsets within their buffers: what was cut short is refused here, and not by a crash
    return batch


def _write(batch: pa.RecordBatch, path: Path) -> None:
    """Write a file where others may be doing the same: whole or not at all, even where power is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as sink:
            with pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            sink.flush()
            os.fsync(sink.fileno())  # before it has its name: a file that is named is whole
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)
