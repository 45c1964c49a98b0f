"""Files that the versions of an artefact share: named without a copy, out of reach of hostile manifests, swept when nobody names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayjobs.errors import DamagedError, NotFoundError, PublishConflictError
from rayjobs.storage import Artefact, FileDigest, LocalStore, S3Store, digest_of, share


@pytest.fixture
def index(store):
    return Artefact(store, "indexes", "i")


def publish(index, version, shared, own, *, after=None):
    draft = index.draft(version, after=after)
    for name, data in shared.items():
        draft.share(name, data)
    for name, data in own.items():
        draft.write(name, data)
    return draft.publish({})


def test_a_version_names_files_of_its_parent_without_a_copy(index):
    first = publish(index, "v1", {"segment": b"large", "encoder/model": b"weights"}, {"note": b"1"})
    before = index.store.list("indexes/i/shared/")
    draft = index.draft("v2", after=first)
    draft.adopt(first, ["segment", "encoder/model"])
    draft.write("note", b"2")
    second = draft.publish({})
    assert [second.read(name) for name in ("segment", "encoder/model", "note")] == [b"large", b"weights", b"2"]
    assert second.key("segment") == first.key("segment") == f"indexes/i/shared/{digest_of('x', b'large').sha256}/segment"
    assert index.store.list("indexes/i/shared/") == before
    assert second.damage() is None


def test_what_lies_under_a_digest_and_is_damaged_is_written_again(index):
    first = publish(index, "v1", {"segment": b"good"}, {})
    index.store.write(first.key("segment"), b"evil")
    assert "differs from its manifest" in first.damage()
    share(index.store, "indexes/i/v2/", "segment", b"good")
    assert first.damage() is None


def test_files_of_a_version_s_own_folder_are_not_named_by_others(index):
    first = publish(index, "v1", {}, {"note": b"1"})
    with pytest.raises(ValueError, match="does not share \\['note'\\]"):
        index.draft("v2").adopt(first, ["note"])
    with pytest.raises(NotFoundError, match="has no file 'other'"):
        index.draft("v2").adopt(first, ["other"])


HOSTILE = [
    {"name": "../v0/note"},
    {"name": "/etc/passwd"},
    {"name": "a/../../x"},
    {"name": "..\\x"},
    {"name": ""},
    {"name": "."},
    {"name": "no\0te"},
    {"name": "note", "size": "1"},
    {"name": "note", "size": -1},
    {"name": "note", "size": 10**40},
    {"name": "note", "sha256": [1]},
    {"name": "note", "path": "../../../secret"},
    {"name": "note", "path": "by-digest/../../x"},
    {"name": "../../x", "shared": True},
    {"name": "note", "shared": True, "path": "x"},
    {"name": "note", "shared": True, "sha256": "../../../x"},
]


@pytest.mark.parametrize("entry", HOSTILE, ids=str)
def test_a_manifest_leads_nowhere_else(index, entry):
    entry = {"sha256": "0" * 64, "size": 1, **entry}
    with pytest.raises(ValueError, match=r"is no name of a file of a version|is shared, so that|has no digest or no size"):
        FileDigest(**entry)
    manifest = {"kind": "indexes", "name": "i", "version": "v1", "files": [entry]}
    index.store.write("indexes/i/v1/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DamagedError, match="cannot be read"):
        index.at("v1")


def test_a_version_goes_on_from_the_current_one_or_not_at_all(index):
    first = publish(index, "v1", {}, {})
    publish(index, "v2", {}, {}, after=first)
    with pytest.raises(PublishConflictError, match="was changed to v2; run the command again"):
        index.draft("v3", after=first)
    assert index.current().version == "v2"


def test_going_back_wants_all_files(index):
    first = publish(index, "v1", {"segment": b"one"}, {})
    publish(index, "v2", {"segment": b"two"}, {})
    assert index.go_back("v1").version == index.current().version == "v1"
    index.go_back("v2")
    index.store.delete(first.key("segment"))
    with pytest.raises(DamagedError, match="segment has None bytes instead of 3; choose another version"):
        index.go_back("v1")
    with pytest.raises(NotFoundError):
        index.go_back("v0")
    assert index.current().version == "v2"


def test_what_no_version_names_is_swept(index):
    first = publish(index, "v1", {"segment": b"one"}, {"note": b"1"})
    broken = index.draft("v2", after=first)
    orphans = [broken.share("segment", b"two").key(broken.prefix), broken.write("note", b"2").key(broken.prefix)]
    index.store.write("indexes/i/lease", b"{}")
    index.store.write("indexes/it/v1/other", b"of another index")
    kept = set(index.store.list()) - set(orphans)
    assert index.sweep() == sorted(orphans)
    assert set(index.store.list()) == kept
    assert index.current().damage() is None
    assert index.sweep() == []


def test_what_killed_writers_left_half_written_is_swept(index, tmp_path):
    publish(index, "v1", {"segment": b"one"}, {})
    store = index.store
    if isinstance(store, LocalStore):
        half = Path(store.address("indexes/i/v2/.x.partial"))
        half.parent.mkdir()
        half.write_bytes(b"half")
        index.sweep()
        assert not half.parent.exists()
    else:
        assert isinstance(store, S3Store)
        index.sweep()
    assert index.current().damage() is None
