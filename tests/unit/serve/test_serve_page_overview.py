"""Pictures of the map: each of the set that its address names, however many index versions are served."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from rayjobs.serve import api
from rayjobs.serve.page import router


class Answers:
    def __init__(self, version, source):
        self.version, self.source = version, SimpleNamespace(version=source)


class Service:
    """The deployment while a process serves an index version and the one before it."""

    def __init__(self, *held):
        self._held = {answers.version: answers for answers in held}

    @property
    def versions(self):
        return list(self._held)

    @property
    def answers(self):
        return next(iter(self._held.values()))

    def pinned(self, version):
        return self.answers if version is None else self._held[version]


class Overviews:
    def __init__(self, answers):
        self._set = answers.source.version
        self.outlines = [SimpleNamespace(scene=SimpleNamespace(scene_id="a", datetime=None), bounds=(0.0, 0.0, 1.0, 1.0))]

    def png(self, number):
        return f"{self._set} {number}".encode()


@pytest.fixture
def ask(monkeypatch):
    monkeypatch.setattr(router, "_overviews", Overviews)
    application = api.build_api()
    held = Service(Answers("v3", "new set"), Answers("v2", "old"))
    application.dependency_overrides[api.current_service] = lambda: held

    def ask(path):
        async def sent():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://service") as client:
                return await client.get(path)

        return asyncio.run(sent())

    return ask


def test_the_list_leads_to_pictures_of_its_own_set(ask):
    for pin, picture in (("", b"new set 0"), ("?index_version=v2", b"old 0")):
        listed = ask(f"/page/overview{pin}")
        answer = ask(f"/{listed.json()['pictures'][0]['url']}")
        assert (answer.status_code, answer.content) == (200, picture)
        assert answer.headers["x-index-version"] == listed.headers["x-index-version"] == ("v2" if pin else "v3")
        assert "max-age=86400" in answer.headers["cache-control"]


def test_a_set_of_which_nothing_is_served_has_no_picture(ask):
    answer = ask("/page/overview/0.png?set=gone")
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert "no index version that is served was made from set 'gone'" in answer.json()["detail"]


def test_a_picture_of_no_named_set_is_not_kept(ask):
    answer = ask("/page/overview/0.png")
    assert (answer.content, answer.headers["cache-control"]) == (b"new set 0", "no-cache")


@pytest.mark.parametrize("path", ["/page/overview/1.png?set=old", "/page/overview/1.png"])
def test_a_number_that_is_none_is_not_found(ask, path):
    assert ask(path).status_code == 404
