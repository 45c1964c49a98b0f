"""Removing old versions: what others name stays, what is killed is finished, and the current one cannot go."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from rayjobs.errors import DamagedError, NotFoundError, PublishConflictError, StorageError
from rayjobs.storage import Artefact, open_store, remove


@pytest.fixture
def index(store):
    return Artefact(store, "indexes", "i")


def publish(index, version, shared, own):
    draft = index.draft(version)
    for name, data in shared.items():
        draft.share(name, data)
    for name, data in own.items():
        draft.write(name, data)
    return draft.publish({})


@pytest.fixture
def versions(index):
    """Two versions that share a file; the second is current."""
    first = publish(index, "v1", {"old": b"1", "both": b"0"}, {"note": b"n1", "chips/0": b"c1"})
    second = publish(index, "v2", {"new": b"2", "both": b"0"}, {"note": b"n2"})
    return first, second


def test_a_version_goes_with_what_it_alone_names(index, versions):
    first, second = versions
    index.store.write("indexes/i/v1/stray", b"that nobody names")
    index.store.write("indexes/it/v1/manifest.json", b"of another index")
    remove(index, ["v1"])
    kept = {entry.key(second.prefix) for entry in second.files}
    ours = {"indexes/i/CURRENT", "indexes/i/v2/manifest.json", "indexes/it/v1/manifest.json"}
    assert set(index.store.list("indexes/")) == kept | ours
    assert first.key("both") in kept
    assert index.current().damage() is None
    assert index.finished() == ["v2"]
    with pytest.raises(NotFoundError):
        remove(index, ["v1"])


def test_the_folder_of_a_version_on_a_file_system_goes_too(tmp_path):
    index = Artefact(open_store(f"file:{tmp_path}"), "sets", "s")
    publish(index, "v1", {}, {"chips/0": b"1"})
    publish(index, "v2", {}, {"chips/0": b"2"})
    remove(index, ["v1"])
    assert sorted(path.name for path in (tmp_path / "sets" / "s").iterdir() if not path.name.startswith(".")) == ["CURRENT", "v2"]


def test_the_current_version_cannot_be_removed(index, versions):
    with pytest.raises(PublishConflictError, match=r"v2/? is current; run the command again"):
        remove(index, [versions[1].version])
    assert index.current().damage() is None
    assert not [key for key in index.store.list() if "removed" in key]


def test_a_version_that_is_made_current_while_it_is_hidden_stays(index, versions, monkeypatch):
    delete = type(index.store).delete

    def instead(store, key):
        delete(store, key)
        if key == "indexes/i/v1/manifest.json":
            store.write(index.pointer, b'{"version": "v1"}')

    monkeypatch.setattr(type(index.store), "delete", instead)
    with pytest.raises(PublishConflictError, match=r"v1/? is current; run the command again"):
        remove(index, ["v1"])
    assert index.current().version == "v1"
    assert index.current().damage() is None


@pytest.mark.parametrize("name", ["../it/v1", "", "v1/..", "copy"])
def test_what_is_no_version_of_that_name_is_not_removed(index, versions, name):
    index.store.write("indexes/i/copy/manifest.json", index.store.read("indexes/i/v1/manifest.json"))
    with pytest.raises((NotFoundError, DamagedError, StorageError)):
        remove(index, [name])
    assert index.at("v1").damage() is None


def test_a_role_that_may_not_look_for_parts_of_uploads_removes_all_the_same(index, versions, monkeypatch):
    def refused(*_):
        raise StorageError("not allowed")

    monkeypatch.setattr(type(index.store), "sweep", refused)
    remove(index, ["v1"])
    assert index.finished() == ["v2"]
    assert not index.store.list("indexes/i/v1/")


class Dying:
    """A store that dies after so many changes."""

    def __init__(self, store, changes):
        self._store, self._left = store, changes

    def __getattr__(self, name):
        return getattr(self._store, name)

    def _changed(self):
        if not self._left:
            raise StorageError("killed")
        self._left -= 1

    def write(self, key, data):
        self._changed()
        self._store.write(key, data)

    def delete(self, key):
        self._changed()
        self._store.delete(key)


CHANGES = 6
"""Of a removal: the copy of the manifest, the manifest, two files of the folder and one beside it, the copy."""


@pytest.mark.parametrize("changes", range(CHANGES + 1))
def test_a_removal_that_is_killed_hides_the_version_and_can_be_finished(index, versions, changes):
    _, second = versions
    dying = dataclasses.replace(index, store=Dying(index.store, changes))
    with pytest.raises(StorageError, match="killed") if changes < CHANGES else contextlib.nullcontext():
        remove(dying, ["v1"])
    whole = "v1" in index.finished()
    assert whole == (changes < 2)
    if whole:
        assert index.at("v1").damage() is None
    remove(index, [])
    if whole:
        assert index.at("v1").damage() is None
        remove(index, ["v1"])
    ours = {"indexes/i/CURRENT", "indexes/i/v2/manifest.json"}
    assert set(index.store.list("indexes/i/")) == ours | {entry.key(second.prefix) for entry in second.files}


def test_a_version_that_was_published_again_meanwhile_stays(index, versions):
    index.store.write("indexes/i/v1/removed.json", index.store.read("indexes/i/v1/manifest.json"))
    remove(index, [])
    assert index.at("v1").damage() is None
    assert index.store.size("indexes/i/v1/removed.json") is None
