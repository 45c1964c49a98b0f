"""Asking web services politely: paced, with retries that wait longer each time, and with an account of what failed, when and why."""

from __future__ import annotations

import datetime
import email.utils
import functools
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import httpx

from rayjobs.errors import ConfigError, NotFoundError, StorageError

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})
"""Statuses after which the same request may succeed."""
_WHOLE = 4
"""Timeouts after which an answer that still comes in is given up, so that none takes forever byte by byte."""
_DOCUMENT_BYTES = 512 * 2**20
"""Largest capabilities or page of items."""
_NOTHING_THERE = frozenset({404, 410})
"""Statuses of a service that is well: it answers, and has nothing at that address. Other refusals are of whoever asks."""
NOT_ASKED = "not asked for: the requests before it had all failed"
"""Reason of a request that was not made, since the service was given up."""
_MARKUP = re.compile(r"<[^>]*>")
_SHOWN = 200
"""Characters of an answer that a message shows."""


class Pace(Protocol):
    """The seam to what keeps all requests of a job together from being too many."""

    def reserve(self) -> float | None:
        """Return how many seconds to wait before the next request; None where the service was given up."""

    def hold(self, seconds: float) -> None:
        """Have everybody wait, as the service asks."""

    def note(self, *, answered: bool) -> None:
        """Learn whether a request got an answer in the end, or was refused or failed in all its tries."""


class LocalPace:
    """The pace of requests in one process; may be shared by threads."""

    def __init__(self, per_second: float, give_up_after: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the requests per second, evenly spaced, how many may fail in a row, and what tells the time."""
        self._gap, self._most, self._clock = 1 / per_second, give_up_after, clock
        self._next, self._failed, self._lock = clock(), 0, threading.Lock()

    def reserve(self) -> float | None:
        """Return how many seconds to wait before the next request; None where too many failed in a row."""
        with self._lock:
            if self._failed >= self._most:
                return None
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._gap
            return turn - now

    def hold(self, seconds: float) -> None:
        """Let no request begin within so many seconds, but those that have their turn already."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)

    def note(self, *, answered: bool) -> None:
        """Count the requests that were refused or failed since the last one that got an answer."""
        with self._lock:
            self._failed = 0 if answered else self._failed + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often and for how long a request is tried."""

    tries: int = 6
    timeout_s: float = 30.0
    """Without a byte."""
    backoff_s: float = 0.5
    """Longest wait before the second try; doubled before each further one. The wait itself is drawn between half of that and all."""
    longest_wait_s: float = 60.0
    """Before any try; a service that asks for more is not asked again."""
    largest_bytes: int = 64 * 2**20
    """Of an answer, unpacked; a larger one is not read to its end, and not asked for again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One try that failed."""

    at: datetime.datetime
    """When the answer, or what came instead, was there; UTC."""
    status: int | None
    """Of HTTP; None where no answer came."""
    reason: str
    """In one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a request."""

    body: bytes | None
    """None where every try failed."""
    status: int | None
    """Of the last try."""
    at: datetime.datetime
    """Of the last try, UTC."""
    tries: int
    failures: tuple[Failure, ...]
    """In their order; of a request that succeeded, those before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """What one try came to."""

    status: int | None = None
    """Of HTTP; None where no answer came."""
    body: bytes = b""
    fault: str | None
    """What is wrong with it, in one line; None: nothing."""
    retry: bool
    """Whether the same request may succeed."""
    wait_s: float = 0.0
    """How long the service asks to wait before that."""


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Return whom to trust, read once: each client would read all certificates anew, which takes longer than many a request."""
    return httpx.create_ssl_context()


class Asker:
    """Asks one service; for many threads. Use it in a `with` block, or close it."""

    def __init__(
        self,
        patience: Patience | None = None,
        pace: Pace | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take how patient and how fast to be (None: as fast as it goes), what waits, and what tells the time."""
        self._patience, self._pace, self._sleep, self._clock = patience or Patience(), pace, sleep, clock
        headers = {"User-Agent": "rayjobs", "Accept-Encoding": "gzip, deflate"}
        self._client = httpx.Client(follow_redirects=True, timeout=self._patience.timeout_s, headers=headers, verify=_trusted())

    def __enter__(self) -> Self:
        """Return the asker."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def ask(self, url: str, *, json: Mapping[str, Any] | None = None, check: Callable[[int, bytes], str | None] | None = None) -> Answer:
        """Ask until there is an answer that will do, or patience ends.

        Args:
            url: to get, or with `json` to post to.
            json: body of the request.
            check: says by an answer's status and body what is wrong with it, None where nothing is; what is wrong may be right next time.
        """
        failures: list[Failure] = []
        while True:
            turn = self._pace.reserve() if self._pace is not None else 0.0
            if turn is None:
                return _lost([*failures, Failure(at=_now(), status=None, reason=NOT_ASKED)], tries=len(failures))
            self._sleep(turn)
            attempt = self._try(url, json, check)
            if attempt.fault is None:
                self._note(answered=True)
                return Answer(body=attempt.body, status=attempt.status, at=_now(), tries=len(failures) + 1, failures=tuple(failures))
            failures.append(Failure(at=_now(), status=attempt.status, reason=attempt.fault))
            if not attempt.retry or len(failures) >= self._patience.tries or attempt.wait_s > self._patience.longest_wait_s:
                self._note(answered=attempt.status in _NOTHING_THERE)
                return _lost(failures, tries=len(failures))
            longest = min(self._patience.backoff_s * 2 ** (len(failures) - 1), self._patience.longest_wait_s)
            self._sleep(max(attempt.wait_s, longest * random.uniform(0.5, 1)))  # noqa: S311  so that those who failed together do not return together

    def _note(self, *, answered: bool) -> None:
        if self._pace is not None:
            self._pace.note(answered=answered)

    def _try(self, url: str, json: Mapping[str, Any] | None, check: Callable[[int, bytes], str | None] | None) -> _Attempt:
        """Ask once; where the service asks to wait, have everybody wait."""
        try:
            with self._client.stream("GET" if json is None else "POST", url, json=json) as answer:
                content = self._content(answer)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            passing = isinstance(error, httpx.TransportError | httpx.DecodingError) and not isinstance(error, httpx.UnsupportedProtocol)
            return _Attempt(fault=f"{type(error).__name__}: {error}".rstrip(": "), retry=passing)
        if answer.is_success:
            wrong = check(answer.status_code, content) if check else None
            return _Attempt(status=answer.status_code, body=content, fault=wrong, retry=True)
        retry = answer.status_code in _AGAIN
        if not retry and check is not None and check(answer.status_code, b"") is None:
            return _Attempt(status=answer.status_code, fault=None, retry=False)
        asked = _retry_after(answer.headers.get("Retry-After"))
        if retry and asked and self._pace is not None and asked <= self._patience.longest_wait_s:
            self._pace.hold(asked)
        told = f"; asks to wait {asked:g} s" if asked else ""
        fault = f"HTTP {answer.status_code} {answer.reason_phrase}{told}{_said(answer, content)}"
        return _Attempt(status=answer.status_code, fault=fault, retry=retry, wait_s=asked)

    def _content(self, answer: httpx.Response) -> bytes:
        """Return the body of an answer as it comes in.

        Raises:
            httpx.ReadTimeout: it is not whole after several timeouts.
            httpx.RequestError: it is too large.
        """
        most, end = self._patience.largest_bytes, self._clock() + _WHOLE * self._patience.timeout_s
        parts, size = [], 0
        for part in answer.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > most:
                raise httpx.RequestError(f"the answer has more than {most:,} bytes")
            if self._clock() > end:
                raise httpx.ReadTimeout(f"the answer is not whole after {_WHOLE * self._patience.timeout_s:g} s")
        return b"".join(parts)


def is_refusal(status: int | None) -> bool:
    """Whether a status says that the same request will not succeed; None: no answer came."""
    return status is not None and not httpx.codes.is_success(status) and status not in _AGAIN


def _said(answer: httpx.Response, content: bytes) -> str:
    """Return what a service says of a refusal, in one line, without markup; nothing where it shows a page, or no text."""
    kind = answer.headers.get("Content-Type", "").lower()
    if "html" in kind or not any(form in kind for form in ("xml", "json", "text/")):
        return ""
    words = _MARKUP.sub(" ", content[: 16 * _SHOWN].decode(errors="replace")).split()
    text = "".join(letter for letter in " ".join(words) if letter.isprintable())
    return f": {text[:_SHOWN]}" if text else ""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _lost(failures: Sequence[Failure], *, tries: int) -> Answer:
    return Answer(body=None, status=failures[-1].status, at=failures[-1].at, tries=tries, failures=tuple(failures))


def _retry_after(text: str | None) -> float:
    """Return the seconds that a header asks to wait, written as such or as a date; 0 for none, and for what is neither."""
    told = (text or "").strip()
    if told.isascii() and told.isdecimal():
        return float(told)
    try:
        then = email.utils.parsedate_to_datetime(told)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if then.tzinfo is None:  # of the zone -0000
        then = then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - _now()).total_seconds())


def fetched(url: str, *, json: Mapping[str, Any] | None = None) -> bytes:
    """Return what a service answers, after some patience.

    Raises:
        NotFoundError: nothing lies there.
        StorageError: it does not answer, or refuses.
        ConfigError: the address is not of http(s).
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url} cannot be asked: it is not of http(s); correct the source's `url`")
    with Asker(Patience(largest_bytes=_DOCUMENT_BYTES)) as asker:
        answer = asker.ask(url, json=json)
    if answer.body is not None:
        return answer.body
    reason = answer.failures[-1].reason
    kind = NotFoundError if answer.status == httpx.codes.NOT_FOUND else StorageError
    raise kind(f"cannot read {url}: {reason[:_SHOWN]} ({answer.tries} tries); check the address and the network")
