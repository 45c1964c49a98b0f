from __future__ import annotations

import asyncio
import json

import pytest

from rayjobs.serve.bodies import BodyLimits, BodyRefusedError
from rayjobs.serve.limits import PERSON, Gate
from rayjobs.serve.rates import Rate
from rayjobs.serve.tokens import tokens_of

BODY = BodyLimits(max_bytes=10, pause_s=5.0, whole_s=60.0)
UPLOADS = BodyLimits(max_bytes=20, pause_s=5.0, whole_s=60.0)
TOKENS = tokens_of(
    {
        "RAYJOBS_TOKEN": "s3cret",
        "RAYJOBS_READ_TOKENS": "reader, other",
        "RAYJOBS_WRITE_TOKENS": "writer",
        "RAYJOBS_LABEL_TOKENS": "anna:annas, ben:bens",
    },
    required=True,
)


def ask(
    path="/v1/search", *, method="POST", tokens=None, rate=None, headers=(), parts=(b"",), body=BODY, kind="http", behind=None, ends=True
):
    """Send one request through the gate; return its status, its body, and the bytes that the application took (None: never asked)."""
    sent, taken = [], []

    async def reading(scope, receive, send):
        taken.append(b"")
        if scope["type"] != "http":
            return
        more = True
        while more:
            message = await receive()
            taken[0] += message["body"]
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    last = len(parts) - 1
    queue = [{"type": "http.request", "body": part, "more_body": number < last or not ends} for number, part in enumerate(parts)]

    async def receive():
        return queue.pop(0) if queue else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    gate = Gate(behind or reading, body=body, uploads=UPLOADS, tokens=tokens, rate=rate)
    asyncio.run(gate({"type": kind, "method": method, "path": path, "headers": list(headers)}, receive, send))
    start = sent[0] if sent else {"status": None}
    return start["status"], sent[-1]["body"] if sent else b"", taken[0] if taken else None


def bearing(token, **more):
    return ask(tokens=TOKENS, headers=[(b"Authorization", b"Bearer " + token)], **more)


def test_a_small_body_passes():
    assert ask(headers=[(b"content-length", b"10")], parts=[b"12345", b"67890"]) == (200, b"{}", b"1234567890")


def test_a_large_body_is_refused_by_what_it_declares():
    status, body, taken = ask(headers=[(b"Content-Length", b"11")], parts=[b"x" * 11])
    assert (status, taken) == (413, None)
    assert json.loads(body)["detail"] == "the body is larger than 10 bytes"


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"3")], [(b"transfer-encoding", b"chunked")]])
def test_a_body_that_declares_nothing_or_lies_is_refused_when_it_grows(headers):
    status, _, taken = ask(headers=headers, parts=[b"12345"] * 3)
    assert status == 413
    assert len(taken) <= 10


@pytest.mark.parametrize(
    ("kind", "most"), [(b"multipart/form-data; boundary=b", 20), (b"Multipart/Form-Data", 20), (b"application/json", 10), (b"", 10)]
)
@pytest.mark.parametrize("over", [0, 1])
def test_forms_with_images_may_be_larger_than_other_bodies(kind, most, over):
    for headers in ([], [(b"Content-Length", str(most + over).encode())]):
        assert ask(headers=[(b"Content-Type", kind), *headers], parts=[b"x" * (most + over)])[0] == (413 if over else 200)


@pytest.mark.parametrize("length", [b"-1", b"1e9", b"", b"0x10", b"9" * 5000, "٣".encode()])
def test_a_length_that_is_no_number_is_refused(length):
    status, _, taken = ask(headers=[(b"content-length", length)])
    assert status == (413 if length.isdigit() else 400)
    assert taken is None


@pytest.mark.parametrize("shown", [None, b"Bearer", b"Bearer wrong", b"Basic s3cret", b"s3cret", b"\xff"])
def test_without_the_token_nobody_enters(shown):
    headers = [] if shown is None else [(b"authorization", shown)]
    status, body, taken = ask(tokens=TOKENS, headers=headers)
    assert (status, taken) == (401, None)
    assert json.loads(body)["status"] == 401
    assert b"s3cret" not in body


def test_with_the_token_one_enters():
    assert bearing(b"s3cret")[0] == 200


def test_health_needs_no_token_but_its_neighbours_do():
    assert ask("/healthz", tokens=TOKENS)[0] == 200
    assert ask("/healthz/../v1/search", tokens=TOKENS)[0] == 401
    assert ask("/healthz/", tokens=TOKENS)[0] == 401


def test_start_and_end_of_the_server_pass():
    assert ask(kind="lifespan", tokens=TOKENS) == (None, b"", b"")


async def receive_all(receive):
    while (await receive())["more_body"]:
        pass


async def answers_itself(scope, receive, send):
    """As FastAPI does: an error of its own in place of the one that ended the reading."""
    try:
        await receive_all(receive)
    except BodyRefusedError:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"no body"})


async def fails_itself(scope, receive, send):
    try:
        await receive_all(receive)
    except BodyRefusedError:
        raise ZeroDivisionError from None


@pytest.mark.parametrize("behind", [answers_itself, fails_itself])
def test_whatever_the_application_makes_of_it_a_large_body_is_413(behind):
    status, body, _ = ask(parts=[b"12345"] * 3, behind=behind)
    assert (status, json.loads(body)["status"]) == (413, 413)


def test_faults_that_are_no_large_bodies_pass():
    async def fails(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(parts=[b"12345"], behind=fails)


def test_an_answer_that_has_begun_is_not_begun_again():
    async def hasty(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive_all(receive)

    with pytest.raises(BodyRefusedError):
        ask(parts=[b"12345"] * 3, behind=hasty)


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        (b"reader", "POST", "/v1/labels", 403),
        (b"reader", "POST", "/v1/labels/ponds/events", 403),
        (b"reader", "GET", "/v1/labels/ponds/events", 200),
        (b"annas", "POST", "/v1/labels/ponds/events", 200),
        (b"annas", "POST", "/v1/search", 200),
        (b"annas", "POST", "/v1/refresh", 403),
        (b"writer", "POST", "/v1/labels", 200),
        (b"reader", "POST", "/v1/search", 200),
        (b"other", "GET", "/v1/info", 200),
        (b"reader", "DELETE", "/v1/search", 403),
        (b"writer", "DELETE", "/v1/search", 200),
        (b"writer", "GET", "/v1/search", 200),
        (b"writer", "POST", "/v1/refresh", 403),
        (b"s3cret", "POST", "/v1/refresh", 200),
    ],
)
def test_a_token_opens_what_its_scope_says(token, method, path, status):
    found, body, _ = bearing(token, method=method, path=path)
    assert found == status
    if status == 403:
        assert "asks for a token with the scope" in json.loads(body)["detail"]


def test_a_token_with_a_name_tells_who_asks():
    people = []

    async def noting(scope, receive, send):
        people.append(scope["state"].get(PERSON))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    for token in (b"annas", b"bens", b"s3cret"):
        bearing(token, path="/v1/labels/ponds/next", behind=noting)
    assert people == ["anna", "ben", None]


def test_who_asks_too_often_waits(monkeypatch):
    rate = Rate("2/minute")
    assert [bearing(b"reader", rate=rate)[0] for _ in range(3)] == [200, 200, 429]
    assert bearing(b"other", rate=rate)[0] == 200, "each for itself"
    assert bearing(b"reader", rate=rate, path="/healthz")[0] == 200, "load balancers ask as often as they like"
    detail = json.loads(bearing(b"reader", rate=rate)[1])["detail"]
    assert detail.startswith("more than 2 per 1 minute; ask again in ")


def test_nobody_without_a_token_uses_up_the_rate_of_others():
    rate = Rate("1/minute")
    assert [ask(tokens=TOKENS, rate=rate)[0] for _ in range(3)] == [401] * 3
    assert bearing(b"reader", rate=rate)[0] == 200


@pytest.mark.parametrize(
    "body", [BodyLimits(max_bytes=10, pause_s=0.01, whole_s=60), BodyLimits(max_bytes=10, pause_s=60, whole_s=0.01)], ids=["pause", "whole"]
)
@pytest.mark.parametrize("parts", [(), (b"123", b"45")])
def test_a_body_that_does_not_come_is_408(parts, body):
    status, answer, taken = ask(parts=parts, body=body, ends=False)
    assert (status, taken) == (408, b"".join(parts))
    assert "of the body" in json.loads(answer)["detail"]


def test_once_the_body_is_whole_waiting_for_the_client_to_leave_has_no_limit():
    async def waits(scope, receive, send):
        assert not (await receive())["more_body"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.05)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    assert ask(behind=waits, body=BodyLimits(max_bytes=10, pause_s=0.01, whole_s=0.01))[0] == 200
