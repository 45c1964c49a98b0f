"""A server, of S3 or of maps, that misbehaves as it is told to: an HTTP proxy on loopback in front of a real one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchKey"),
    "expired": (400, "ExpiredToken"),
    "429": (429, "TooManyRequests"),
}
"""Faults that are an answer. Others: `reset` (the connection is closed without one), `cut` (half of the answer), a number (seconds of
waiting before the request is passed on)."""

Fault = str | float | None


@dataclass
class FaultyS3:
    """Where the proxy listens, and what it did."""

    endpoint: str = ""
    rule: Callable[[str, str], Fault] = lambda _method, _path: None
    """Says by method and path which fault befalls a request."""
    expired: set[str] = field(default_factory=set)
    """Access keys that are refused; whatever they ask for, the fault is `expired`."""
    faults: list[tuple[str, str, Fault]] = field(default_factory=list)
    """Method, path and fault of every request that had one."""
    requests: int = 0


@contextlib.contextmanager
def before(endpoint: str) -> Iterator[FaultyS3]:
    """Run a proxy in front of a server on 127.0.0.1 in a thread of its own until the block ends."""
    port = int(endpoint.rpartition(":")[2])
    loop = asyncio.new_event_loop()
    faulty = FaultyS3()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                await _one_request(reader, writer, port, faulty)
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0, limit=2**20))
    faulty.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(_end(server))
        loop.close()


async def _end(server: asyncio.Server) -> None:
    """Give up what is under way, and let the connections close."""
    server.close()
    under_way = asyncio.all_tasks() - {asyncio.current_task()}
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    await asyncio.sleep(0.05)


async def _one_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, faulty: FaultyS3) -> None:
    """Pass one request on, or not; each has a connection of its own, so that the end of an answer is the end of the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
    if fields.get("expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    method, path = first.split(" ")[:2]
    faulty.requests += 1
    signed = fields.get("authorization", "")
    fault = "expired" if any(f"Credential={key}/" in signed for key in faulty.expired) else faulty.rule(method, path)
    if fault is not None:
        faulty.faults.append((method, path, fault))
    if fault == "reset":
        writer.transport.abort()
        return
    if fault in ERRORS:
        writer.write(_refusal(fault))
        await writer.drain()
        return
    if isinstance(fault, float):
        await asyncio.sleep(fault)
    kept = [line for line in lines if line and line.partition(":")[0].lower() not in {"connection", "expect"}]
    passed_on = "\r\n".join([first, *kept, "Connection: close"]) + "\r\n\r\n"
    await _pass_on(passed_on.encode("latin-1") + body, writer, port, cut=fault == "cut")


def _refusal(fault: str) -> bytes:
    status, code = ERRORS[fault]
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"
    wait = "Retry-After: 0\r\n" if status == 429 else ""
    fields = f"Content-Type: application/xml\r\nContent-Length: {len(text)}\r\n{wait}Connection: close"
    head = f"HTTP/1.1 {status} {code}\r\n{fields}\r\n\r\n"
    return (head + text).encode()


async def _pass_on(request: bytes, writer: asyncio.StreamWriter, port: int, *, cut: bool) -> None:
    upstream, back = await asyncio.open_connection("127.0.0.1", port)
    try:
        back.write(request)
        await back.drain()
        answer = await upstream.read(-1)
    finally:
        back.close()
    head, mark, body = answer.partition(b"\r\n\r\n")
    writer.write(head + mark + (body[: len(body) // 2] if cut else body))
    await writer.drain()
