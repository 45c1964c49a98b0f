"""A load of HTTP requests: some connections, each of which asks again as soon as it is answered, from a process of its own.

Plain asyncio protocols, so that the load costs the machine little beside what is measured.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a load."""

    per_second: float
    """Requests that were answered 200."""
    p50_ms: float
    p99_ms: float
    failed: int
    """Requests that were answered otherwise, or whose connection broke."""


class Connection(asyncio.Protocol):
    """Asks on one connection until told to stop."""

    def __init__(self, requests: list[bytes], first: int) -> None:
        """Take whole requests, of which this connection begins with the one numbered `first`."""
        self.requests, self.next = requests, first
        self.seconds: list[float] = []
        self.failed, self.going = 0, True
        self.done = asyncio.get_running_loop().create_future()
        self._read, self._whole = bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(self.requests[self.next % len(self.requests)])  # type: ignore[attr-defined]  # of every TCP transport
        self.next += 1

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self._read += data
        if not self._whole and (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._read[:end]).lower()
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            self._whole = end + 4 + int(length.partition(b":")[2])
        if self._whole and len(self._read) >= self._whole:
            self._answered()

    def _answered(self) -> None:
        self.seconds.append(time.perf_counter() - self.begun)
        self.failed += not self._read.startswith(b"HTTP/1.1 200")
        self._read.clear()
        self._whole = 0
        if self.going:
            self._ask()
        else:
            self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Count an answer that did not come."""
        self.failed += self.going
        self.done.set_result(None)


def requests_of(path: str, bodies: list[bytes]) -> list[bytes]:
    """Return whole POST requests of JSON bodies."""
    head = "POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
    return [head.format(path, len(body)).encode() + body for body in bodies]


async def put(port: int, requests: list[bytes], connections: int, seconds: float) -> Load:
    """Put a load on a server at 127.0.0.1."""
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    opened = [
        (await loop.create_connection(lambda number=number: Connection(requests, 7 * number), "127.0.0.1", port))[1]
        for number in range(connections)
    ]
    await asyncio.sleep(seconds)
    for connection in opened:
        connection.going = False
    taken = time.perf_counter() - begun
    await asyncio.gather(*(connection.done for connection in opened))
    latencies = 1e3 * np.concatenate([connection.seconds for connection in opened])
    failed = sum(connection.failed for connection in opened)
    p50, p99 = np.percentile(latencies, [50, 99])
    return Load(per_second=(len(latencies) - failed) / taken, p50_ms=float(p50), p99_ms=float(p99), failed=failed)


def load(port: int, requests_file: Path, *, connections: int, seconds: float) -> Load:
    """Put a load on a server from a process of its own; `requests_file` holds JSON, `[path, [body, ...]]`."""
    command = [sys.executable, "-m", "benchmarks.load", str(port), str(requests_file), str(connections), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return Load(**json.loads(done.stdout))


def main() -> None:
    """Run from the command line."""
    port, file, connections, seconds = sys.argv[1:]
    path, bodies = json.loads(Path(file).read_text())
    found = uvloop.run(put(int(port), requests_of(path, [body.encode() for body in bodies]), int(connections), float(seconds)))
    print(json.dumps({name: getattr(found, name) for name in Load.__slots__}))


if __name__ == "__main__":
    main()
