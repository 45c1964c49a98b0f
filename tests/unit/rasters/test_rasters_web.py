"""Politeness: pace, waits that grow, and what a service asks for. No test waits: time is told by the test."""

from __future__ import annotations

import datetime
import email.utils
import gzip
import http.server
import itertools
import threading

import pytest

from rayjobs.errors import ConfigError, NotFoundError, StorageError
from rayjobs.rasters import web
from rayjobs.rasters.web import Asker, LocalPace, Patience, fetched


class _Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with what the script holds next: status and header fields; at its end with `whole`."""

    body = b"whole"
    script: list[tuple[int, dict[str, str]]] = []  # noqa: RUF012  set by the test
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        status, fields = self.script.pop(0) if self.script else (200, {})
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def scripted():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Scripted) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

        def play(*script):
            _Scripted.script, _Scripted.asked = list(script), 0
            return f"http://127.0.0.1:{server.server_port}/"

        yield play
        server.shutdown()


def test_waits_grow_and_differ(scripted):
    waits = []
    with Asker(Patience(tries=6, backoff_s=1, longest_wait_s=6), sleep=waits.append) as asker:
        answer = asker.ask(scripted(*[(503, {})] * 5))
    assert (answer.body, answer.tries, len(answer.failures)) == (b"whole", 6, 5)
    after = [wait for wait in waits if wait]
    assert all(longest / 2 <= wait <= longest for wait, longest in zip(after, [1, 2, 4, 6, 6], strict=True))
    assert {failure.status for failure in answer.failures} == {503}


def test_what_a_service_asks_for_is_waited(scripted):
    waits = []
    then = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=40), usegmt=True)
    with Asker(Patience(backoff_s=0.1), sleep=waits.append) as asker:
        answer = asker.ask(scripted((429, {"Retry-After": "7"}), (503, {"Retry-After": then})))
    assert answer.body == b"whole"
    first, second = [wait for wait in waits if wait]
    assert first == 7
    assert 30 < second <= 40


def test_a_service_that_asks_for_an_hour_is_left_alone(scripted):
    with Asker(sleep=lambda _: None) as asker:
        answer = asker.ask(scripted((429, {"Retry-After": "3600"})))
    assert (answer.body, answer.tries) == (None, 1)
    assert "asks to wait 3600 s" in answer.failures[0].reason


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        (" 12 ", 12, 12),
        ("\u00b2", 0, 0),  # a digit, but no number
        ("\u0663", 0, 0),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("", 0, 0),
        (None, 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0, 0),
        ("Wed, 21 Oct 2095 07:28:00 +9999", 0, 0),
        ("Wed, 21 Oct 2095 07:28:00 -0000", 10**9, 10**10),
    ],
)
def test_odd_wishes_to_wait_are_none(text, least, most):
    assert least <= web._retry_after(text) <= most


def test_an_odd_wish_to_wait_is_outlived(scripted):
    script = [(503, {"Retry-After": "\u00b2"}), (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 -0000"})]
    with Asker(sleep=lambda _: None) as asker:
        assert asker.ask(scripted(*script)).body == b"whole"


@pytest.mark.parametrize(
    ("status", "given_up"), [(400, True), (401, True), (403, True), (302, True), (503, True), (404, False), (410, False), (204, False)]
)
def test_a_service_that_turns_us_away_is_given_up(scripted, status, given_up):
    """But not one that has nothing there, or says by a status that is accepted that a tile is empty."""
    pace = LocalPace(1000, 3)
    fields = {"Location": "ftp://x/"} if status == 302 else {}
    url = scripted(*[(status, fields)] * 9)
    with Asker(Patience(tries=1), pace, sleep=lambda _: None) as asker:
        for _ in range(5):
            answer = asker.ask(url)
    assert ("not asked for" in str(answer.failures)) == given_up
    assert _Scripted.asked == (3 if given_up else 5)


def test_refusals_that_are_accepted_are_answers(scripted):
    pace = LocalPace(1000, 2)
    with Asker(pace=pace, sleep=lambda _: None) as asker:
        url = scripted(*[(403, {})] * 9)
        answers = [asker.ask(url, check=lambda status, _: None if status == 403 else "no") for _ in range(5)]
    assert {(answer.body, answer.status, answer.tries) for answer in answers} == {(b"", 403, 1)}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_will_not_change_is_asked_once(scripted, status):
    with Asker(sleep=lambda _: None) as asker:
        assert asker.ask(scripted(*[(status, {})] * 3)).tries == 1
    assert _Scripted.asked == 1


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("text/xml", b"<?xml version='1.0'?><Error>\n <Text>Invalid\x1b[31m date</Text></Error>", ": Invalid[31m date"),
        ("text/plain; charset=utf-8", b"no such layer" + b"x" * 9999, ": no such layer" + "x" * 187),
        ("application/json", b"", ""),
        ("text/html", b"<h1>400</h1>nginx", ""),
        ("image/png", b"\x89PNG", ""),
    ],
)
def test_a_refusal_tells_what_the_service_said(scripted, monkeypatch, kind, body, said):
    monkeypatch.setattr(_Scripted, "body", body)
    with Asker(sleep=lambda _: None) as asker:
        answer = asker.ask(scripted((400, {"Content-Type": kind})))
    assert [failure.reason for failure in answer.failures] == [f"HTTP 400 Bad Request{said}"]


def test_what_is_a_refusal():
    assert [status for status in (None, 200, 204, 302, 400, 403, 404, 410, 429, 500, 503) if web.is_refusal(status)] == [
        302, 400, 403, 404, 410,
    ]  # fmt: skip


def test_an_answer_that_does_not_do_is_asked_for_again(scripted):
    seen = []

    def second(status, body):
        seen.append((status, body))
        return None if len(seen) == 2 else "not yet"

    with Asker(sleep=lambda _: None) as asker:
        answer = asker.ask(scripted(), check=second)
    assert (answer.body, [failure.reason for failure in answer.failures]) == (b"whole", ["not yet"])


def test_requests_are_evenly_spaced_and_held():
    now = [100.0]
    pace = LocalPace(4, 3, clock=lambda: now[0])
    assert [pace.reserve() for _ in range(4)] == [0, 0.25, 0.5, 0.75]
    now[0] += 10
    assert pace.reserve() == 0
    pace.hold(5)
    assert pace.reserve() == 5
    assert pace.reserve() == 5.25


def test_a_service_is_given_up_after_failures_in_a_row_only():
    pace = LocalPace(4, 2)
    for answered in (False, True, False):
        pace.note(answered=answered)
    assert pace.reserve() is not None
    pace.note(answered=False)
    assert pace.reserve() is None


def test_failures_to_read_metadata_are_errors_of_ours(scripted, monkeypatch):
    monkeypatch.setattr(web, "Asker", lambda _: Asker(Patience(tries=2, backoff_s=0.001)))
    assert fetched(scripted((500, {}))) == b"whole"
    with pytest.raises(NotFoundError, match="HTTP 404"):
        fetched(scripted((404, {})))
    with pytest.raises(StorageError, match=r"HTTP 503 .*2 tries.* check the address"):
        fetched(scripted((503, {}), (503, {})))


def test_an_answer_that_is_too_large_is_not_read_to_its_end(scripted, monkeypatch):
    monkeypatch.setattr(_Scripted, "body", gzip.compress(bytes(10_000_000)))
    with Asker(Patience(largest_bytes=1_000_000), sleep=lambda _: None) as asker:
        answer = asker.ask(scripted((200, {"Content-Encoding": "gzip"})))
    assert (answer.body, answer.tries) == (None, 1)
    assert "more than 1,000,000 bytes" in answer.failures[0].reason


def test_an_answer_that_takes_forever_is_given_up(scripted):
    now = itertools.count(step=100)  # the first answer begins at 0 and goes on at 100, the second at 200 and 300
    with Asker(Patience(timeout_s=20, tries=2), sleep=lambda _: None, clock=lambda: next(now)) as asker:
        answer = asker.ask(scripted())
    assert [failure.reason for failure in answer.failures] == ["ReadTimeout: the answer is not whole after 80 s"] * 2


def test_an_answer_that_cannot_be_unpacked_is_asked_for_again(scripted):
    with Asker(sleep=lambda _: None) as asker:
        answer = asker.ask(scripted((200, {"Content-Encoding": "gzip"})))
    assert (answer.body, answer.tries) == (b"whole", 2)
    assert "DecodingError" in answer.failures[0].reason


def test_what_is_no_address_of_the_web_is_not_asked(scripted):
    with pytest.raises(ConfigError, match="it is not of http"):
        fetched("ftp://x/WMTSCapabilities.xml")
    with Asker(sleep=lambda _: None) as asker:
        assert asker.ask(scripted((302, {"Location": "ftp://x/"}))).tries == 1
