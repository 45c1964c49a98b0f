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
        (["--tile", TILE, "--negative", "abc"], "--negative abc: no tile id"),
        (["--tile", TILE, "--intersects", "nowhere.geojson"], "--intersects nowhere.geojson: No such file"),
        (["--tile", TILE, "--where", "cloud"], "--where cloud: write COLUMN=VALUE"),
        (["--tile", TILE, "--where", "cloud={"], "--where cloud={: the value is not valid YAML"),
        (["--tile", TILE, "--output", "hits.xlsx"], "--output hits.xlsx: name a file that ends in .geojson"),
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


SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}


@pytest.mark.parametrize(
    "wrapped",
    [SQUARE, {"type": "Feature", "geometry": SQUARE}, {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": SQUARE}]}],
)
def test_every_option_reaches_the_request(query, tmp_path, wrapped):
    ground = tmp_path / "ground.geojson"
    ground.write_text(json.dumps(wrapped))
    other = "f" * 20
    result, _ = query(
        "--tile", TILE, "--negative", other, "--method", "linear", "--intersects", str(ground), "--label", "pond", "--label", "field",
        "--scene", "s", "--where", "cloud=[1, 2]", "--where", "split=val", "--spread", "500", "--threshold", "0.5", "--offset", "3",
        "--exact", "--index-version", "v1", "--dry-run",
    )  # fmt: skip
    assert result["request"] == {
        "positives": [{"tile_id": TILE}], "negatives": [{"tile_id": other}], "method": "linear", "intersects": SQUARE,
        "labels": ["pond", "field"], "scenes": ["s"], "where": {"cloud": [1, 2], "split": "val"}, "spread_m": 500.0, "threshold": 0.5,
        "offset": 3, "exact": True, "limit": 10, "index_version": "v1",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content", ["{", "[]", json.dumps({"type": "Point", "coordinates": [0, 0]}), json.dumps({"type": "FeatureCollection", "features": []})]
)
def test_a_file_that_holds_no_polygon_is_refused(query, tmp_path, content):
    ground = tmp_path / "ground.geojson"
    ground.write_text(content)
    with pytest.raises(ConfigError, match="no GeoJSON with one Polygon or MultiPolygon"):
        query("--tile", TILE, "--intersects", str(ground), "--dry-run")


@pytest.mark.parametrize(("name", "form"), [("hits.csv", "csv"), ("hits.parquet", "parquet"), ("hits.geojson", "geojson")])
def test_hits_are_written_in_the_form_of_the_file_s_ending(query, tmp_path, name, form):
    def answers(request):
        assert request.url.params["format"] == form
        return httpx.Response(200, content=b"hits")

    result, out = query("--tile", TILE, "--output", str(tmp_path / name), answers=answers)
    assert (tmp_path / name).read_bytes() == b"hits"
    assert (result["bytes"], out) == (4, "")


def test_a_refusal_is_not_written(query, tmp_path):
    with pytest.raises(QueryError, match="no such column"):
        query("--tile", TILE, "--output", str(tmp_path / "a.csv"), answers=lambda _: httpx.Response(400, json={"detail": "no such column"}))
    assert not (tmp_path / "a.csv").exists()


def test_a_picture_beside_other_examples_is_embedded_first(query, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    asked = []

    def answers(request):
        asked.append((request.url.path, request.content))
        return httpx.Response(200, json={"embedding": [1.0, 0.0]} if request.url.path == "/v1/embed" else EMPTY)

    query("--image", str(picture), "--negative", TILE, answers=answers)
    assert [path for path, _ in asked] == ["/v1/embed", "/v1/search"]
    assert json.loads(asked[1][1]) == {"positives": [{"embedding": [1.0, 0.0]}], "negatives": [{"tile_id": TILE}], "limit": 10}


def test_a_picture_alone_is_one_form(query, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    asked = []

    def answers(request):
        asked.append(request)
        return httpx.Response(200, json=EMPTY)

    query("--image", str(picture), "--label", "a", "--label", "b", "--bbox", "0", "1", "2", "3", "--where", "cloud=[1]", answers=answers)
    assert [request.url.path for request in asked] == ["/v1/search/image"]
    for part in (b"0.0,1.0,2.0,3.0", b'{"cloud": [1]}', b'name="labels"\r\n\r\na', b'name="labels"\r\n\r\nb'):
        assert part in asked[0].content
