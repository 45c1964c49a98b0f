"""The client of the service: what it refuses by itself, and what it makes of answers."""

from __future__ import annotations

import functools
import io
import json

import httpx
import pytest

from rayjobs.console import Console
from rayjobs.errors import ConfigError, QueryError, ServiceError
from rayjobs.query import job

TILE = "0123456789abcdef0123"
EMPTY = {"type": "FeatureCollection", "features": [], "index_version": "v1", "exact": True, "candidates": 1234}


@pytest.fixture
def query(tmp_path, monkeypatch):
    """Run `rayjobs query` in this process; `answers` says what stands at the other end."""
    config = tmp_path / "experiment.yaml"
    config.write_text("name: small\nrasters: {sources: [{kind: images, root: pictures}]}\n")

    def run(*arguments, answers=None):
        monkeypatch.setattr(httpx, "Client", functools.partial(_CLIENT, transport=httpx.MockTransport(answers or _nobody)))
        options, overrides = job.parser().parse_known_args(["--config", str(config), *arguments])
        out = io.StringIO()
        result = job.run(options, overrides, Console(out, io.StringIO()))
        return result, out.getvalue()

    return run


_CLIENT = httpx.Client


def _nobody(request):
    raise httpx.ConnectError("nobody there", request=request)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--point", "-25.6", "-155.2"], "--point -25.6 -155.2: no place; give LON"),
        (["--point", "nan", "0"], "--point nan 0.0: no place"),
        (["--tile", TILE, "--limit", "0"], "--limit 0: ask for at least 1 hit"),
        (["--tile", "abc"], "--tile abc: no tile id; these have 20 digits and letters"),
        (["--image", "nowhere.png"], "--image nowhere.png: there is no such file"),
        (["--tile", TILE, "--bbox", "0", "5", "1", "4"], "--bbox 0.0 5.0 1.0 4.0: the bounding box"),
        (["--tile", TILE, "--url", "localhost:8000"], "--url localhost:8000: no address of a service; write http://HOST:PORT"),
        (["--tile", TILE, "--serve.prot", "1"], "unknown key 'serve.prot'; did you mean 'serve.port'?"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_what_no_service_could_answer_is_refused_before_one_is_asked(query, arguments, words, how):
    with pytest.raises(ConfigError) as caught:
        query(*arguments, *how)
    assert words in str(caught.value)


def test_a_plan_shows_what_would_be_sent(query, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    result, _ = query("--image", str(picture), "--limit", "3", "--dry-run")
    assert result == {"url": "http://127.0.0.1:8000", "request": {"limit": 3}, "image": str(picture)}


def test_where_nobody_answers_the_remedy_fits_what_was_given(query):
    with pytest.raises(ServiceError, match=r"no service answers at http://127\.0\.0\.1:8000 .*start one with `rayjobs serve`"):
        query("--tile", TILE)
    with pytest.raises(ServiceError, match=r"no service answers at http://elsewhere:1 .*check --url") as caught:
        query("--tile", TILE, "--url", "http://elsewhere:1")
    assert "rayjobs serve" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (404, json.dumps({"detail": "the index holds no tile"}), QueryError, "the index holds no tile"),
        (500, json.dumps({"detail": "a fault of the service"}), ServiceError, "a fault of the service"),
        (404, "<html>", ServiceError, "answered 404, and not as a service of ours; check --url"),
        (200, "<html>", ServiceError, "answered 200, and not as a service of ours"),
        (200, "[]", ServiceError, "answered 200, and not as a service of ours"),
        (408, "timed out", ServiceError, "took longer than serve.request_timeout_s allows"),
        (503, "no replica", ServiceError, "has no replica up"),
    ],
)
def test_refusals_are_the_services_own_words_and_strangers_are_told(query, status, body, kind, words):
    with pytest.raises(kind) as caught:
        query("--tile", TILE, answers=lambda _: httpx.Response(status, text=body))
    assert words in str(caught.value)


def test_hits_are_lines_for_people(query):
    place = {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]]}
    hit = {"geometry": place, "properties": {"score": 0.5, "tile_id": TILE, "scene_id": "s", "label": "pond"}}
    result, out = query("--tile", TILE, answers=lambda _: httpx.Response(200, json={**EMPTY, "features": [hit]}))
    assert out == f"  1  0.5000  {TILE}  s at 1.0000, 0.5000  pond\n"
    assert result == {"answered by": "index v1, exact, of 1,234 candidates"}
