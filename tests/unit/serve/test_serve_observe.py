"""What is told of requests: ids, one line of the log each, metrics; and what is never told."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from rayjobs.serve import observe
from rayjobs.serve.hits import Found
from rayjobs.serve.observe import Observed, searched, stage


class Recorder:
    """A metric that remembers."""

    def __init__(self):
        self.values = []

    def observe(self, value, tags):
        self.values.append((value, tags))

    inc = observe


@pytest.fixture
def metrics(monkeypatch):
    made = {name: Recorder() for name in ("REQUESTS", "STAGES", "SEARCHES", "BATCHES")}
    for name, recorder in made.items():
        monkeypatch.setattr(observe, name, recorder)
    return made


ANSWER = Found(rows=None, scores=[], texts=[], index_version="v1", encoder_fingerprint="f", exact=False, candidates=9)


async def working(scope, receive, send):
    with stage("search"):
        searched([ANSWER, ANSWER, dataclasses.replace(ANSWER, exact=True)])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"{}"})


def ask(behind=working, headers=(), **more):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/info", "query_string": b"key=s3cret", "headers": list(headers)}
    asyncio.run(Observed(behind, **more)(scope, None, send))
    return dict(sent[0]["headers"]).get(b"x-request-id") if sent else None


@pytest.fixture
def lines(monkeypatch):
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    logger = logging.getLogger("ray.serve.rayjobs")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    return told


def test_a_request_without_an_id_gets_one(metrics, lines):
    first, second = ask(), ask()
    assert len(first) == 32
    assert first != second
    assert [line.rayjobs_request_id for line in lines] == [first.decode(), second.decode()]


def test_a_sane_id_is_taken_and_left_to_ray_serve_to_send_back(metrics, lines):
    assert ask(headers=[(b"X-Request-Id", b"abc-1")]) is None
    assert lines[0].rayjobs_request_id == "abc-1"


@pytest.mark.parametrize("given", [b"", b"a b", b"a\r\nset-cookie: x", b"x" * 129, b"\xff", b"{}"])
def test_an_id_that_is_none_is_replaced(metrics, lines, given):
    assert len(ask(headers=[(b"x-request-id", given)])) == 32
    assert len(lines[0].rayjobs_request_id) == 32


def test_a_line_tells_what_was_done_and_no_secret(metrics, lines):
    ask(headers=[(b"authorization", b"Bearer s3cret"), (b"cookie", b"s3cret")])
    [line] = lines
    assert (line.method, line.path, line.status, line.index_version, line.queries, line.exact) == ("GET", "/v1/info", 200, "v1", 3, 1)
    assert line.ms >= line.search_ms >= 0
    assert "s3cret" not in repr(vars(line))


def test_lines_may_be_left_out(metrics, lines):
    ask(log=False)
    assert not lines
    assert len(metrics["REQUESTS"].values) == 1


def test_metrics_tell_stage_mode_version_and_batch(metrics):
    ask()
    assert [tags for _, tags in metrics["STAGES"].values] == [{"stage": "search"}]
    assert metrics["SEARCHES"].values == [
        (2, {"mode": "approximate", "index_version": "v1"}), (1, {"mode": "exact", "index_version": "v1"}),
    ]  # fmt: skip
    assert metrics["BATCHES"].values == [(3, {"of": "search"})]
    assert [tags for _, tags in metrics["REQUESTS"].values] == [{"route": "none", "status": "200"}]


def test_a_fault_is_told_as_500_and_goes_on(metrics, lines):
    async def fails(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(fails)
    assert lines[0].status == 500


def test_what_is_no_request_passes_untold(metrics, lines):
    passed = []

    async def behind(scope, receive, send):
        passed.append(scope["type"])

    asyncio.run(Observed(behind)({"type": "lifespan"}, None, None))
    assert passed == ["lifespan"]
    assert not lines
