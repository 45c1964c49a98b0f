"""Settings of the application: the folder for copies is this user's, and nobody else's."""

from __future__ import annotations

import stat

import pytest

from rayjobs.errors import StorageError
from rayjobs.serve import settings as room
from rayjobs.serve.settings import CACHE, AppSettings

SETTINGS = AppSettings(workspace="file:/nowhere", index="made")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder for copies, not made yet."""
    monkeypatch.setenv(CACHE, str(tmp_path / "caches"))
    return tmp_path / "caches" / f"rayjobs-index-{room.os.getuid()}"


def test_the_folder_for_copies_is_made_for_this_user_alone(folder):
    assert SETTINGS.cache == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert SETTINGS.cache == folder


def test_by_default_it_lies_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setattr(room.tempfile, "gettempdir", lambda: str(tmp_path))
    assert SETTINGS.cache == tmp_path / f"rayjobs-index-{room.os.getuid()}"


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(folder, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(StorageError, match=f"other users could alter .* set {CACHE} to a folder of your own"):
        _ = SETTINGS.cache


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    folder.mkdir(parents=True, mode=0o700)
    name = room.os.getuid()
    monkeypatch.setattr(room.os, "getuid", lambda: name + 1)
    folder.rename(folder.with_name(f"rayjobs-index-{name + 1}"))
    with pytest.raises(StorageError, match="other users could alter"):
        _ = SETTINGS.cache


def test_a_link_and_a_file_in_its_place_are_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="other users could alter"):
        _ = SETTINGS.cache
    folder.unlink()
    folder.write_bytes(b"")
    with pytest.raises(StorageError, match=f"cannot be made .* set {CACHE}"):
        _ = SETTINGS.cache
