from __future__ import annotations

import asyncio
import json

import pytest

from rayjobs.errors import ConfigError
from rayjobs.serve.limits import Gate, _BodyTooLargeError, token_of


def ask(path="/v1/search", *, token=None, headers=(), parts=(b"",), limit=10, kind="http", behind=None):
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

    queue = [{"type": "http.request", "body": part, "more_body": number < len(parts) - 1} for number, part in enumerate(parts)]

    async def receive():
        return queue.pop(0)

    async def send(message):
        sent.append(message)

    gate = Gate(behind or reading, max_body_bytes=limit, token=token)
    asyncio.run(gate({"type": kind, "path": path, "headers": list(headers)}, receive, send))
    status = sent[0]["status"] if sent else None
    return status, sent[-1]["body"] if sent else b"", taken[0] if taken else None


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


@pytest.mark.parametrize("length", [b"-1", b"1e9", b"", b"0x10", b"9" * 5000, "٣".encode()])
def test_a_length_that_is_no_number_is_refused(length):
    status, _, taken = ask(headers=[(b"content-length", length)])
    assert status == (413 if length.isdigit() else 400)
    assert taken is None


@pytest.mark.parametrize("shown", [None, b"Bearer", b"Bearer wrong", b"Basic s3cret", b"s3cret", b"\xff"])
def test_without_the_token_nobody_enters(shown):
    headers = [] if shown is None else [(b"authorization", shown)]
    status, body, taken = ask(token="s3cret", headers=headers)
    assert (status, taken) == (401, None)
    assert json.loads(body)["status"] == 401
    assert b"s3cret" not in body


def test_with_the_token_one_enters():
    assert ask(token="s3cret", headers=[(b"Authorization", b"Bearer s3cret")])[0] == 200


def test_health_needs_no_token_but_its_neighbours_do():
    assert ask("/healthz", token="s3cret")[0] == 200
    assert ask("/healthz/../v1/search", token="s3cret")[0] == 401
    assert ask("/healthz/", token="s3cret")[0] == 401


def test_start_and_end_of_the_server_pass():
    assert ask(kind="lifespan", token="s3cret") == (None, b"", b"")


async def receive_all(receive):
    while (await receive())["more_body"]:
        pass


async def answers_itself(scope, receive, send):
    """As FastAPI does: an error of its own in place of the one that ended the reading."""
    try:
        await receive_all(receive)
    except _BodyTooLargeError:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"no body"})


async def fails_itself(scope, receive, send):
    try:
        await receive_all(receive)
    except _BodyTooLargeError:
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

    with pytest.raises(_BodyTooLargeError):
        ask(parts=[b"12345"] * 3, behind=hasty)


def test_a_required_token_must_be_there():
    assert token_of({"RAYJOBS_TOKEN": "s3cret"}, required=True) == "s3cret"
    assert token_of({}, required=False) is None
    with pytest.raises(ConfigError, match="not set where it runs"):
        token_of({}, required=True)


@pytest.mark.parametrize("required", [True, False])
def test_an_empty_token_lets_nobody_in_by_accident(required):
    with pytest.raises(ConfigError, match="RAYJOBS_TOKEN is empty"):
        token_of({"RAYJOBS_TOKEN": ""}, required=required)
