"""Politeness: pace, waits that grow, and what a service asks for. No test waits: time is told by the test."""

from __future__ import annotations

import datetime
import email.utils
import http.server
import threading

import pytest

from rayjobs.errors import NotFoundError, StorageError
from rayjobs.rasters import web
from rayjobs.rasters.web import Asker, LocalPace, Patience, fetched


class _Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with what the script holds next: status and header fields; at its end with `whole`."""

    script: list[tuple[int, dict[str, str]]] = []  # noqa: RUF012  set by the test
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        status, fields = self.script.pop(0) if self.script else (200, {})
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"whole")

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


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_will_not_change_is_asked_once(scripted, status):
    with Asker(sleep=lambda _: None) as asker:
        assert asker.ask(scripted(*[(status, {})] * 3)).tries == 1
    assert _Scripted.asked == 1


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
    monkeypatch.setattr(web, "Asker", lambda: Asker(Patience(tries=2, backoff_s=0.001)))
    assert fetched(scripted((500, {}))) == b"whole"
    with pytest.raises(NotFoundError, match="HTTP 404"):
        fetched(scripted((404, {})))
    with pytest.raises(StorageError, match=r"HTTP 503 .*2 tries.* check the address"):
        fetched(scripted((503, {}), (503, {})))
