"""Every route in front of a real index version: what a client gets, in which form."""

from __future__ import annotations

import asyncio
import io
import json

import httpx
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from tests.unit.serve.served_index import COUNT, DIM, IDS, VECTORS
from tests.unit.serve.service_double import application_in


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    return application_in(tmp_path_factory.mktemp("served"))


@pytest.fixture
def ask(application):
    def asked(method, path, **request):
        async def sent():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://service") as client:
                return await client.request(method, path, **request)

        return asyncio.run(sent())

    return asked


def picture():
    sink = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(sink, "PNG")
    return {"image": ("a.png", sink.getvalue())}


def ids_of(answer):
    return [feature["id"] for feature in answer["features"]]


def nearest(vector, passing, count):
    return [IDS[number] for number in sorted(passing, key=lambda number: -float(VECTORS[number] @ vector))[:count]]


ALIVE = [number for number in range(COUNT) if number != 3]
SEARCH = {"positives": [{"tile_id": IDS[1]}], "limit": 3}


def test_a_search_is_geojson(ask):
    answer = ask("POST", "/v1/search", json=SEARCH)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/geo+json")
    found = answer.json()
    assert ids_of(found) == nearest(VECTORS[1], [number for number in ALIVE if number != 1], 3)
    assert (found["type"], found["index_version"], found["exact"], found["candidates"]) == ("FeatureCollection", "v1", True, COUNT - 2)


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"params": {"format": "csv"}}, "text/csv"),
        ({"headers": {"accept": "text/html, text/csv;q=0.9"}}, "text/csv"),
        ({"params": {"format": "parquet"}, "headers": {"accept": "text/csv"}}, "application/vnd.apache.parquet"),
        ({"headers": {"accept": "application/vnd.apache.parquet"}}, "application/vnd.apache.parquet"),
        ({"headers": {"accept": "*/*"}}, "application/geo+json"),
    ],
)
def test_hits_come_in_the_form_that_is_asked_for(ask, how, kind):
    answer = ask("POST", "/v1/search", json=SEARCH, **how)
    assert answer.headers["content-type"].partition(";")[0] == kind
    wanted = ids_of(ask("POST", "/v1/search", json=SEARCH).json())
    if kind == "text/csv":
        assert [line.split(",")[1].strip('"') for line in answer.text.splitlines()[1:]] == wanted
    elif kind == "application/geo+json":
        assert ids_of(answer.json()) == wanted
    else:
        assert pq.read_table(io.BytesIO(answer.content))["tile_id"].to_pylist() == wanted


def test_a_form_that_is_none_is_refused(ask):
    assert ask("POST", "/v1/search", json=SEARCH, params={"format": "xlsx"}).status_code == 422


def test_an_image_is_searched_with_the_filters_of_its_form(ask):
    ring = [[0, 39], [0.5, 39], [0.5, 41], [0, 41], [0, 39]]
    fields = {
        "limit": "2",
        "bbox": "0,39,0.9,41",
        "intersects": json.dumps({"type": "Polygon", "coordinates": [ring]}),
        "labels": ["field", "x"],
    }
    found = ask("POST", "/v1/search/image", files=picture(), data=fields | {"where": '{"scene_id": ["scene"]}'}).json()
    assert ids_of(found) == nearest(VECTORS[5], [0, 2, 4], 2)
    assert found["candidates"] == 3


def test_fields_that_a_form_does_not_have_are_refused(ask):
    for name, words in (("bboxx", "did you mean 'bbox'"), ("method", "there are bbox, datetime")):
        refused = ask("POST", "/v1/search/image", files=picture(), data={name: "1"})
        assert refused.status_code == 422
        assert name in refused.text
        assert words in refused.text


@pytest.mark.parametrize(
    ("method", "path", "name", "words"),
    [
        ("GET", "/v1/tiles", "boxx", "did you mean 'bbox'"),
        ("GET", "/v1/info", "verbose", "there are none"),
        ("POST", "/v1/search", "limit", "there are format"),
        ("GET", "/v1/tiles", "x" * 5000, "there are bbox"),
    ],
)
def test_query_parameters_that_a_route_does_not_have_are_refused(ask, method, path, name, words):
    refused = ask(method, path, params={name: "1"}, **({"json": SEARCH} if method == "POST" else {}))
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert name[:100] in refused.text
    assert words in refused.text
    assert len(refused.text) < 1000


def test_an_embedding_is_an_example_for_later(ask):
    made = ask("POST", "/v1/embed", files=picture()).json()
    np.testing.assert_allclose(made["embedding"], VECTORS[5], atol=1e-6)
    found = ask("POST", "/v1/search", json={"positives": [{"embedding": made["embedding"]}], "limit": 1}).json()
    assert (ids_of(found), found["encoder_fingerprint"]) == ([IDS[5]], made["encoder_fingerprint"])


def test_a_batch_has_the_answers_of_its_searches(ask):
    searches = [SEARCH, {"positives": [{"embedding": [1.0] * DIM}]}, {**SEARCH, "negatives": [{"tile_id": IDS[2]}], "index_version": "v1"}]
    answer = ask("POST", "/v1/search/batch", json={"searches": searches})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["answers"] == [ask("POST", "/v1/search", json=search).json() for search in searches]


def test_places_that_changed_and_their_dates(ask):
    found = ask("POST", "/v1/changes", json={"from": "2020-01-01/2020-01-07", "to": "2020-01-08/..", "limit": 1}).json()
    [change] = found["features"]
    assert change["id"] == change["properties"]["to_tile_id"]
    assert ids_of(ask("GET", f"/v1/tiles/{change['id']}/dates").json()) == [change["properties"]["from_tile_id"]]


def test_tiles_are_listed_and_described(ask):
    listed = ask("GET", "/v1/tiles", params={"bbox": "0,39,0.56,41", "limit": 2}).json()
    assert (ids_of(listed), listed["candidates"]) == (IDS[:2], 5)
    tile = ask("GET", f"/v1/tiles/{IDS[1]}").json()
    assert (tile["properties"]["place_id"], tile["geometry"]["type"]) == ("place-1", "Polygon")
    assert ask("GET", f"/v1/tiles/{IDS[1]}/thumbnail.png").headers["content-type"] == "image/png"


GETS = [
    f"/v1/tiles/{IDS[1]}",
    f"/v1/tiles/{IDS[1]}/dates",
    f"/v1/tiles/{IDS[1]}/thumbnail.png",
    "/v1/tiles?limit=1",
    "/page/place?lon=0.11&lat=40.01",
]


@pytest.mark.parametrize("path", GETS)
def test_what_is_looked_up_names_its_version_and_can_be_pinned(ask, path):
    join = "&" if "?" in path else "?"
    for pin in ("", f"{join}index_version=v1"):
        answer = ask("GET", path + pin)
        assert (answer.status_code, answer.headers["x-index-version"]) == (200, "v1")
    refused = ask("GET", f"{path}{join}index_version=v0")
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")


POSTS = {
    "/v1/search": {"json": SEARCH},
    "/v1/search?format=csv": {"json": SEARCH},
    "/v1/search/batch": {"json": {"searches": [SEARCH]}},
    "/v1/changes": {"json": {"from": "2020-01-01/2020-01-07", "to": "2020-01-08/.."}},
    "/page/heat": {"json": {**SEARCH, "bbox": [-1, 39, 2, 41]}},
    "/v1/search/image": {"files": picture()},
    "/v1/embed": {"files": picture()},
}


@pytest.mark.parametrize("path", POSTS)
def test_every_answer_names_its_version(ask, path):
    answer = ask("POST", path, **POSTS[path])
    assert (answer.status_code, answer.headers["x-index-version"]) == (200, "v1")


def test_similarity_can_be_pinned(ask):
    body = {**SEARCH, "bbox": [-1, 39, 2, 41]}
    assert ask("POST", "/page/heat", json={**body, "index_version": "v1"}).status_code == 200
    assert ask("POST", "/page/heat", json={**body, "index_version": "v0"}).status_code == 409


BOW = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"intersects": BOW}, 400, "Self-intersection"),
        ({"intersects": {"type": "Point", "coordinates": [0, 0]}}, 422, "intersects"),
        ({"where": {"lable": "x"}}, 400, "did you mean 'label'?"),
        ({"where": {"row": "x"}}, 400, "cannot be compared"),
        ({"positives": [{"embedding": [1.0, 2.0]}]}, 400, "2 numbers, the index 4"),
        ({"positives": [{"embedding": [float("nan")] * DIM}]}, 422, "embedding"),
        ({"negatives": [{"tile_id": IDS[1]}]}, 400, "a positive and a negative"),
        ({"negatives": [{"tile_id": IDS[2]}], "method": "mean"}, 400, "takes no negatives"),
        ({"limit": 101}, 400, "limit 101 is above the 100"),
        ({"offset": -1}, 422, "offset"),
        ({"spread_m": 0}, 422, "spread_m"),
        ({"threshold": 2}, 422, "threshold"),
        ({"index_version": "v0"}, 409, "'v0' is not served; v1 is"),
        ({"datetime": "2021/2020"}, 400, "2021/2020"),
    ],
)
def test_what_cannot_be_asked_is_a_problem(ask, fields, status, words):
    body = json.dumps({**SEARCH, **fields})  # with NaN, as some clients write it
    answer = ask("POST", "/v1/search", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert words in answer.json()["detail"]


def test_the_description_names_every_form_of_an_answer(application):
    paths = application.openapi()["paths"]
    assert set(paths["/v1/search"]["post"]["responses"]["200"]["content"]) == {
        "application/geo+json", "text/csv", "application/vnd.apache.parquet",
    }  # fmt: skip
    assert all("4XX" in operation["responses"] for path in paths.values() for operation in path.values())
