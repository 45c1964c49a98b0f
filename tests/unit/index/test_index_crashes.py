"""What a crash leaves: an action killed before any of its writes leaves the old version or the new one, whole, and the rest is swept."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from rayjobs.errors import PublishConflictError
from rayjobs.index.delete import delete
from rayjobs.index.versions import writing
from rayjobs.storage import open_store
from tests.unit.index.index_killed import act, opened
from tests.unit.index.index_made import searcher, tile_id, vector_of

KILLS = int(os.environ.get("RAYJOBS_KILLS", "8"))
"""Of each action on each kind of storage."""


@pytest.fixture(params=["file", "s3"])
def uri(request, tmp_path):
    if request.param == "file":
        return f"file:{tmp_path}/workspace"
    return request.getfixturevalue("s3").bucket(f"crash-{os.urandom(5).hex()}") + "/root"


@pytest.fixture
def environment(uri, request):
    return request.getfixturevalue("s3_server").environment if uri.startswith("s3") else {}


def whole(index, cache):
    """The current version's name; fails where it is not one version's throughout, or does not answer as that version must."""
    published = index.current()
    assert published.version.damage() is None
    action = published.version.manifest["action"]
    live = set(range(100 if action == "build" else 150)) - set(range(40 if action in {"delete", "compact"} else 0))
    found = searcher(published, cache)
    assert found.rows == len(live)
    for number in (7, 99):
        best = found.take(found.search(vector_of(number), 1, exact=True).rows)["tile_id"].to_pylist()
        assert (best == [tile_id(number)]) == (number in live)
    return published.version.version


def unnamed(index):
    """Files in folders of the index that no finished version names."""
    versions = [index.index.at(name) for name in index.index.finished()]
    named = {entry.key(version.prefix) for version in versions for entry in version.files}
    named |= {f"{version.prefix}manifest.json" for version in versions}
    return [key for key in index.store.list(index.index.prefix) if "/" in key.removeprefix(index.index.prefix) and key not in named]


@pytest.mark.parametrize(("action", "before"), [("append", []), ("delete", ["append"]), ("compact", ["append", "delete"])])
def test_an_action_that_is_killed_leaves_the_old_version_or_the_new_one(uri, environment, action, before, tmp_path):
    index = opened(uri)
    index.build(range(100))
    for earlier in before:
        assert act(uri, environment, earlier)
    old, seen, rng = whole(index, tmp_path), set(), random.Random(f"{uri[:2]} {action}")
    for _ in range(KILLS):
        act(uri, environment, action, rng.randrange(90))
        seen.add(whole(index, tmp_path))
        index.index.go_back(old)
    assert act(uri, environment, action)
    new = whole(index, tmp_path)
    assert new != old
    assert seen <= {old, new}, "what was cut off and what was not are one version"
    assert unnamed(index) == []
    if uri.startswith("file:"):
        assert list(Path(open_store(uri).address("indexes")).rglob("*.partial")) == []


def test_what_an_earlier_attempt_built_is_not_built_again(uri, monkeypatch):
    index = opened(uri)
    index.build(range(100))
    with monkeypatch.context() as broken:
        broken.setattr("rayjobs.index.append.publish", None)
        with pytest.raises(TypeError):
            index.append(range(150))
    monkeypatch.setattr("rayjobs.index.build.build_segment", None)
    assert searcher(index.append(range(150))).rows == 150


def test_of_two_writers_one_is_refused(uri):
    index = opened(uri)
    index.build(range(50))
    with writing(index.index), pytest.raises(PublishConflictError, match="is held by process"):
        index.delete([1])


def test_who_lost_the_lease_publishes_nothing(uri):
    """A writer that stood still until another could take over does not win, whatever it has written."""
    index = opened(uri)
    first = index.build(range(50))
    with writing(index.index) as lease:
        lease._lost = lease._lapsed()
        with pytest.raises(PublishConflictError, match=re.escape("could not be renewed")):
            delete(index.index, first, [tile_id(1)], index.experiment, lease, index.console)
    assert index.current().version.version == first.version.version
