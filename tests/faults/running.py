"""A command under way: what it says and when, and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time

from tests.three_nodes import Done


class Running:
    """Reads both streams of a command as it goes."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.lines: list[tuple[float, str]] = []
        """When, in seconds of `time.monotonic`, and what it said on stderr."""
        self._out: list[str] = []
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_err, self._read_out)]
        for thread in self._threads:
            thread.start()

    def _read_err(self) -> None:
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def _read_out(self) -> None:
        self._out.extend(self.process.stdout)

    @property
    def err(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def said(self, pattern: str) -> list[tuple[float, re.Match]]:
        """Every line that matches, with its time."""
        found = [(when, re.search(pattern, line)) for when, line in list(self.lines)]
        return [(when, match) for when, match in found if match]

    def wait_for(self, pattern: str, *, count: int = 1, seconds: float = 180) -> tuple[float, re.Match]:
        """Wait until so many lines match; return the last of them and its time."""
        self.wait_until(lambda: len(self.said(pattern)) >= count, f"{count} lines of {pattern!r}", seconds=seconds)
        return self.said(pattern)[count - 1]

    def wait_until(self, is_true, what: str, *, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not is_true():
            assert time.monotonic() < deadline, f"{what} did not come in {seconds:.0f} s:\n{self.err}"
            if self.process.poll() is not None:
                for thread in self._threads:
                    thread.join()
                assert is_true(), f"the command ended before {what}:\n{self.err}"
            time.sleep(0.05)

    def ended(self, seconds: float = 400) -> Done:
        """Wait for the end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {seconds:.0f} s:\n{self.err}") from None
        self._close()
        return Done(self.process.returncode, "".join(self._out), self.err)

    def signal(self, number: int) -> float:
        """Send the command alone a signal, and return when."""
        now = time.monotonic()
        os.kill(self.process.pid, number)
        return now

    def kill(self) -> float:
        """SIGKILL the command and what it started, and return when."""
        now = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close()
        return now

    def _close(self) -> None:
        for thread in self._threads:
            thread.join()
        self.process.stdout.close()
        self.process.stderr.close()
