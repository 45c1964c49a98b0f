"""A TCP proxy on loopback that counts what a client fetches, and can hold each of its requests back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 18


@dataclass(slots=True, kw_only=True)
class Counter:
    """What went through since the last `reset`."""

    port: int
    """Where the proxy listens on 127.0.0.1."""
    delay_s: float = 0.0
    """Added before each request is passed on."""
    fetched: int = field(default=0)
    """Bytes from the server to clients, headers included."""
    requests: int = field(default=0)
    """GET and HEAD requests; GDAL sends each in one piece and never two at once on one connection."""

    def reset(self, *, delay_s: float) -> None:
        """Begin to count anew."""
        self.delay_s, self.fetched, self.requests = delay_s, 0, 0


@contextlib.contextmanager
def counting(target_port: int) -> Iterator[Counter]:
    """Run a proxy in front of a server on 127.0.0.1 in a thread of its own until the block ends."""
    loop = asyncio.new_event_loop()
    counter = Counter(port=0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, back = await asyncio.open_connection("127.0.0.1", target_port)
        await asyncio.gather(_up(reader, back, counter), _down(upstream, writer, counter))

    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0))
    counter.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Counter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            requests = data.count(b"GET /") + data.count(b"HEAD /")
            counter.requests += requests
            if requests and counter.delay_s:
                await asyncio.sleep(counter.delay_s)
            writer.write(data)
            await writer.drain()
    writer.close()


async def _down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Counter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            counter.fetched += len(data)
            writer.write(data)
            await writer.drain()
    writer.close()
