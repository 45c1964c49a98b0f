"""The real FastAPI application in front of a stand-in for the replica: what a client sees, faults included."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import tracemalloc

import httpx
import numpy as np
import PIL.Image
import pytest

from rayjobs.errors import PinnedVersionError, ServiceError, UnknownTileError
from rayjobs.rasters.uploads import UploadLimits
from rayjobs.serve import api as interface
from rayjobs.serve import routes
from rayjobs.serve.hits import Found
from rayjobs.serve.section import ServiceSection

LIMIT = 20_000
TILE = "0" * 20
ANSWER = Found(rows=None, scores=[], texts=[], index_version="v1", encoder_fingerprint="f", exact=True, candidates=0)


class Answers:
    version, encoder_fingerprint, window = "v1", "f", None

    def __init__(self):
        self.searched = []

    def is_quick(self, _):
        return True

    def query_vector(self, positives, negatives, **_):
        return np.zeros(4, np.float32), tuple(example.tile_id for example in (*positives, *negatives))

    def search(self, vector, filters, *, without):
        self.searched.append((vector.shape, filters.limit, without))
        return ANSWER

    def tile(self, tile_id):
        raise UnknownTileError(f"no tile {tile_id}")

    def info(self):
        raise ZeroDivisionError("a secret of the house")


class Service:
    versions, last_error = ["v1"], None

    def __init__(self):
        self.answers, self.embedded = Answers(), []

    def pinned(self, version):
        if version in {None, "v1"}:
            return self.answers
        raise PinnedVersionError(f"{version} is not served")

    def uploads_for(self, answers):
        assert answers is self.answers
        return UploadLimits(modalities=(("red", "green", "blue"),), dtype="uint8", max_pixels=10_000, max_bytes=30_000)

    async def embed(self, pixels, valid, answers):
        assert answers is self.answers
        assert valid.shape == pixels.shape[1:]
        self.embedded.append(pixels.shape)
        return np.zeros(4, np.float32)


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def application(service):
    made = interface.build_api(
        ServiceSection(max_json_mb=LIMIT / 2**20, max_upload_mb=LIMIT / 2**20, retry_after_s=2.5, cors_origins=("https://maps.example",))
    )
    made.dependency_overrides[interface.current_service] = lambda: service
    return made


def client_of(application):
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


def ask(application, method, path, **request):
    async def asked():
        async with client_of(application) as client:
            return await client.request(method, path, **request)

    return asyncio.run(asked())


async def in_chunks(data, size=1000):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def picture(*shape):
    sink = io.BytesIO()
    PIL.Image.fromarray(np.zeros(shape, np.uint8)).save(sink, "PNG")
    return {"image": ("chip.png", sink.getvalue())}


def boundary_body(data):
    body = b'--b\r\ncontent-disposition: form-data; name="image"; filename="x.png"\r\n\r\n' + data + b"\r\n--b--\r\n"
    return {"headers": {"content-type": "multipart/form-data; boundary=b"}, "content": in_chunks(body)}


JSON = {"content-type": "application/json"}
FAULTS = {
    "no such path": ("GET", "/nothing", {}, 404, "Not Found"),
    "no such method": ("DELETE", "/v1/info", {}, 405, "Method Not Allowed"),
    "no such tile": ("GET", f"/v1/tiles/{TILE}", {}, 404, f"no tile {TILE}"),
    "a tile id in a path that is none": ("GET", "/v1/tiles/abc", {}, 422, "'abc' is no tile id; these have 20 digits and letters"),
    "a tile id that is none": ("POST", "/v1/search", {"json": {"positives": [{"tile_id": "x"}]}}, 422, "tile_id: 'x' is no tile id; these"),
    "no JSON": ("POST", "/v1/search", {"headers": JSON, "content": b"{"}, 422, "EOF while parsing an object at line 1 column 1"),
    "JSON without its type": ("POST", "/v1/search", {"content": b"{}"}, 422, "content-type: application/json"),
    "no examples": ("POST", "/v1/search", {"json": {}}, 422, "positives: Field required"),
    "form that is none": (
        "POST", "/v1/search/image", {"headers": {"content-type": "multipart/form-data"}, "content": in_chunks(b"x")}, 400, "boundary",
    ),
    "body too large": ("POST", "/v1/search", {"headers": JSON, "content": b" " * (LIMIT + 1)}, 413, "larger than 20,000 bytes"),
    "JSON too large, in chunks": ("POST", "/v1/search", {"headers": JSON, "content": in_chunks(b" " * (LIMIT + 1))}, 413, "larger than"),
    "form too large, in chunks": ("POST", "/v1/search/image", boundary_body(b"x" * (LIMIT + 1)), 413, "larger than"),
    "image too large": ("POST", "/v1/search/image", {"files": picture(101, 100, 3)}, 413, "101"),
    "other bands": ("POST", "/v1/search/image", {"files": picture(8, 8)}, 400, "1 bands, the encoder takes 3 (red, green, blue)"),
    "no image": ("POST", "/v1/search/image", {"files": {"image": ("x", b"hello")}}, 415, "neither"),
    "another version": (
        "POST", "/v1/search", {"json": {"positives": [{"tile_id": TILE}], "index_version": "v0"}}, 409, "v0 is not served",
    ),
    "an image for another version": ("POST", "/v1/search/image", {"files": picture(8, 8, 3), "data": {"index_version": "v0"}}, 409, "v0"),
    "a batch of two versions": (
        "POST", "/v1/search/batch",
        {"json": {"searches": [{"positives": [{"tile_id": TILE}], "index_version": name} for name in ("v1", "v2")]}}, 400, "several",
    ),
    "a box that is none": ("POST", "/v1/search/image", {"files": picture(8, 8, 3), "data": {"bbox": "0,1,x,2"}}, 422, "bbox.2"),
    "no JSON in a form": ("POST", "/v1/search/image", {"files": picture(8, 8, 3), "data": {"where": "{"}}, 422, "JSON decode"),
    "a listing of no box": ("GET", "/v1/tiles?bbox=1,2,3", {}, 422, "bbox: List should have at least 4 items"),
    "our own fault": ("GET", "/v1/info", {}, 500, "a fault of the service"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_refusal_is_problem_json(application, service, name):
    method, path, request, status, words = FAULTS[name]
    answer = ask(application, method, path, **request)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert words in problem["detail"]
    assert service.embedded == service.answers.searched == []


def test_a_refused_method_names_those_that_are_taken(application):
    assert ask(application, "DELETE", "/v1/info").headers["allow"] == "GET"


def test_a_fault_of_ours_tells_no_secret(application):
    assert "secret" not in ask(application, "GET", "/v1/info").text


def test_a_fault_of_ours_reaches_the_log_of_the_server(application):
    async def asked():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://service") as client:
            await client.get("/v1/info")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(asked())


def test_a_fault_of_ours_is_answered_with_its_id_and_to_its_origin(application):
    given = ask(application, "GET", "/v1/info", headers={"origin": "https://maps.example"})
    assert given.status_code == 500
    assert len(given.headers["x-request-id"]) == 32
    assert given.headers["access-control-allow-origin"] == "https://maps.example"


def test_where_the_service_is_busy_the_setting_says_when_to_ask_again(application, service):
    def busy():
        raise ServiceError("no encoder is free")

    service.answers.info = busy
    given = ask(application, "GET", "/v1/info")
    assert (given.status_code, given.headers["retry-after"]) == (503, "3")


RING, BATCH = ('{"positives": [{}], "intersects": {"type": "Polygon", "coordinates": [[', "]]}}"), ('{"searches": [', "]}")
HOSTILE = {
    "positions": ("/v1/search", *RING, "0"),
    "empty positions": ("/v1/search", *RING, "[]"),
    "embedding": ("/v1/search", '{"positives": [{"embedding": [', "]}]}", "1"),
    "words as an embedding": ("/v1/search", '{"positives": [{"embedding": [', "]}]}", '"x"'),
    "examples": ("/v1/search", '{"positives": [', "]}", "{}"),
    "labels": ("/v1/search", '{"positives": [{}], "labels": [', "]}", "0"),
    "values": ("/v1/search", '{"positives": [{}], "where": {"x": [', "]}}", "[]"),
    "searches": ("/v1/search/batch", *BATCH, "{}"),
    "heat": ("/page/heat", *RING, "0"),
    "unknown fields": ("/v1/search", "{", "}", '"%d":0'),
    "unknown fields of an example": ("/v1/search", '{"positives": [{', "}]}", '"%d":0'),
    "columns": ("/v1/search", '{"positives": [{}], "where": {', "}}", '"%d":[]'),
    "one long name": ("/v1/search", '{"', '": 0}', "x"),
    "a long tag": ("/v1/search", '{"positives": [{}], "intersects": {"type": "', '"}}', "x"),
}


def hostile(name, size):
    """A path, and a body of about so many bytes that makes as many faults as can be."""
    path, before, after, piece = HOSTILE[name]
    numbered = "%" in piece
    pieces = (piece % number if numbered else piece for number in range(size // (len(piece) + 4 * numbered + 1)))
    return path, (before + ("" if piece == "x" else ",").join(pieces) + after).encode()


@pytest.fixture
def usual(service):
    made = interface.build_api(ServiceSection(access_log=False))
    made.dependency_overrides[interface.current_service] = lambda: service
    return made


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_makes_few_faults_and_a_short_answer(usual, name):
    path, body = hostile(name, 2 * 2**20)
    answer = ask(usual, "POST", path, headers=JSON, content=body)
    assert answer.status_code == 422
    assert len(answer.content) < 6000
    [faults] = re.findall(r"and ([\d,]+) more$", answer.json()["detail"]) or ["0"]
    assert int(faults) < 200


def test_a_hostile_body_takes_no_more_memory_than_reading_it(usual):
    path, body = hostile("positions", 2**19)
    ask(usual, "POST", path, headers=JSON, content=b"{}")  # what is loaded when it is first needed
    tracemalloc.start()
    ask(usual, "POST", path, headers=JSON, content=body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * len(body), "8 bytes for each of its numbers, and the body; a fault of each would be over 400"


def test_of_many_faults_the_first_are_told(application):
    where = {f"column{number}": [[]] for number in range(20)}
    detail = ask(application, "POST", "/v1/search", json={"positives": [{"tile_id": TILE}], "where": where}).json()["detail"]
    assert detail.count("; ") == 10
    assert re.search(r"; and \d+ more$", detail)


def test_an_image_is_embedded_and_searched(application, service):
    answer = ask(application, "POST", "/v1/search/image", files=picture(12, 10, 3), data={"limit": "3", "bbox": "0,0,1,1"})
    assert (answer.status_code, answer.json()["index_version"]) == (200, "v1")
    assert service.embedded == [(3, 12, 10)]
    assert service.answers.searched == [((4,), 3, ())]


def test_a_small_body_in_chunks_is_taken(application, service):
    body = b'{"positives": [{"tile_id": "%s"}]}' % TILE.encode()
    assert ask(application, "POST", "/v1/search", headers=JSON, content=in_chunks(body, size=7)).status_code == 200
    assert service.answers.searched == [((4,), 10, (TILE,))]


def test_health_answers_while_an_image_is_decoded(application, monkeypatch):
    decoding, healthy = threading.Event(), threading.Event()
    read = routes.read_upload

    def slow(data, limits, *, like):
        decoding.set()
        assert healthy.wait(10), "the event loop stood still"
        return read(data, limits, like=like)

    monkeypatch.setattr(routes, "read_upload", slow)

    async def asked():
        async with client_of(application) as client:
            searching = asyncio.create_task(client.post("/v1/search/image", files=picture(8, 8, 3)))
            await asyncio.to_thread(decoding.wait, 10)
            health = await client.get("/healthz")
            healthy.set()
            return health, await searching

    health, answer = asyncio.run(asked())
    assert (health.status_code, answer.status_code) == (200, 200)
