from __future__ import annotations

import asyncio
import json

import pytest

from rayjobs.serve.limits import Gate


def ask(path="/v1/search", *, token=None, headers=(), parts=(b"",), limit=10, kind="http"):
    """Send one request through the gate; return its status, its body, and the bytes that the application took (None: never asked)."""
    sent, taken = [], []

    async def application(scope, receive, send):
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

    gate = Gate(application, max_body_bytes=limit, token=token)
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
