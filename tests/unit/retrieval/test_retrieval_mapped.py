"""Files of rows that are mapped: made once, whole or not at all, and never another user's."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from rayjobs.errors import StorageError
from rayjobs.retrieval import mapped as room
from rayjobs.retrieval.mapped import mapped

ROWS = pa.record_batch({"a": pa.array(range(1000)), "b": pa.array([str(row) for row in range(1000)])})


def never():
    pytest.fail("the file was made again")


def test_rows_are_made_once(tmp_path):
    path = tmp_path / "folder" / "rows.arrow"
    assert mapped(path, lambda: ROWS).equals(ROWS)
    assert mapped(path, never).equals(ROWS)
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.arrow"]


def test_a_file_has_its_name_only_when_it_is_on_disk(tmp_path, monkeypatch):
    path, done = tmp_path / "rows.arrow", []
    flushed, renamed = os.fsync, Path.replace
    monkeypatch.setattr(room.os, "fsync", lambda handle: done.append(os.fstat(handle).st_size) or flushed(handle))
    monkeypatch.setattr(Path, "replace", lambda aside, target: done.append(target) or renamed(aside, target))
    mapped(path, lambda: ROWS)
    assert done == [path.stat().st_size, path]


def test_another_number_of_batches_is_made_again(tmp_path):
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_file(path, ROWS.schema) as writer:
        for start in (0, 500):
            writer.write_batch(ROWS.slice(start, 500))
    assert mapped(path, lambda: ROWS).equals(ROWS)
    assert mapped(path, never).equals(ROWS)


def test_what_another_user_made_is_neither_mapped_nor_removed(tmp_path, monkeypatch):
    path = tmp_path / "rows.arrow"
    mapped(path, lambda: ROWS)
    monkeypatch.setattr(room.os, "getuid", lambda: 12345)
    with pytest.raises(StorageError, match="another user"):
        mapped(path, never)
    assert path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StorageError, match=r"taken/rows.arrow cannot be written .* make room there"):
        mapped(tmp_path / "taken" / "rows.arrow", lambda: ROWS)
