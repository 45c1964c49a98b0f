"""Taking up versions: whole or not at all, the one before kept, no failure let out."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest

from rayjobs.errors import IndexCorruptError, PinnedVersionError
from rayjobs.serve.held import Held


@dataclass(frozen=True, eq=False)
class Index:
    version: str


class Shelf:
    def __init__(self):
        self.loaded, self.broken = [], set()

    def load(self, version):
        self.loaded.append(version)
        if version in self.broken:
            raise IndexCorruptError(f"{version} is cut short")
        return Index(version)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def held(shelf):
    return Held(shelf.load)


def follow(held, *versions, **more):
    async def one_after_the_other():
        for version in versions:
            await held.follow({"index_version": version, **more})

    asyncio.run(one_after_the_other())


def test_the_version_before_is_kept_for_those_who_pin_it(held):
    follow(held, "v1", "v2")
    assert (held.current.version, held.versions) == ("v2", ["v2", "v1"])
    assert held.pinned(None) is held.current
    assert held.pinned("v1").version == "v1"
    follow(held, "v3")
    with pytest.raises(PinnedVersionError, match="'v1' is not served; v3 is"):
        held.pinned("v1")


def test_going_back_loads_nothing_anew(held, shelf):
    follow(held, "v1", "v2", "v1")
    assert (held.versions, shelf.loaded) == (["v1", "v2"], ["v1", "v2"])


def test_what_others_ask_for_moves_nothing_that_is_served(held, shelf):
    """A process that is ahead, or behind, or tries a version that will be refused."""

    async def asked():
        for version in ("v9", "v8", "v9", "v2"):
            assert (await held.ensure(version)).version == version
        await held.follow({"index_version": "v8"})

    follow(held, "v1", "v2")
    asyncio.run(asked())
    assert (held.versions, shelf.loaded) == (["v8", "v2"], ["v1", "v2", "v9", "v8"])
    shelf.broken.add("bad")
    with pytest.raises(IndexCorruptError):
        asyncio.run(held.ensure("bad"))
    assert (held.versions, held.last_error) == (["v8", "v2"], None)


def test_the_same_version_again_changes_nothing(held, shelf):
    follow(held, "v1", "v1")
    assert (held.versions, shelf.loaded) == (["v1"], ["v1"])


@pytest.mark.parametrize("user_config", [{"index_version": "bad"}, {}, {"index_version": 3}, {"index_version": "v2", "colour": "red"}])
def test_whatever_is_wrong_the_version_that_is_served_stays(held, shelf, user_config):
    shelf.broken.add("bad")
    follow(held, "v1")
    asyncio.run(held.follow(user_config))
    assert held.versions == ["v1"]
    assert held.last_error.startswith(f"refused {user_config.get('index_version')}: ")
    follow(held, "v3")
    assert (held.current.version, held.last_error) == ("v3", None)


def test_what_the_watcher_found_wrong_is_shown(held):
    follow(held, "v1", last_error="refused v2: cut short")
    assert (held.current.version, held.last_error) == ("v1", "refused v2: cut short")


def test_the_first_version_must_be_sound(held, shelf):
    shelf.broken.add("v1")
    with pytest.raises(IndexCorruptError):
        follow(held, "v1")


def test_what_is_served_goes_on_being_served_while_another_is_loaded(shelf):
    loading, go_on = threading.Event(), threading.Event()

    def slow(version):
        if version == "v2":
            loading.set()
            assert go_on.wait(10), "the event loop stood still"
        return shelf.load(version)

    held = Held(slow)

    async def swap():
        await held.follow({"index_version": "v1"})
        swapping = asyncio.create_task(held.follow({"index_version": "v2"}))
        await asyncio.to_thread(loading.wait, 10)
        mine = held.current
        assert mine.version == "v1"
        go_on.set()
        await swapping
        assert (mine.version, held.current.version) == ("v1", "v2")

    asyncio.run(swap())


def test_two_at_once_are_taken_up_one_after_the_other(held, shelf):
    async def both():
        await asyncio.gather(held.follow({"index_version": "v1"}), held.follow({"index_version": "v1"}))

    asyncio.run(both())
    assert shelf.loaded == ["v1"]
