"""What a person sees while a command works: stages, progress and figures on stderr, the result on stdout.

Everything else that writes to the two streams (Ray, GDAL, Python warnings) goes to a log file, unless asked for.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LINE_EVERY_S = 5.0
_REDRAW_EVERY_S = 0.1


class Console:
    """The two streams that belong to us."""

    def __init__(self, out: IO[str], err: IO[str], *, log: Path | None = None) -> None:
        """Take the stream of results, the stream of progress, and the file that takes the rest."""
        self._out, self._err, self.log = out, err, log

    def say(self, text: str) -> None:
        """Show one line of progress, in place of a bar that is drawn there."""
        print(f"\r\x1b[K{text}" if self._err.isatty() else text, file=self._err, flush=True)

    def result(self, text: str) -> None:
        """Show a line of the result."""
        print(text, file=self._out, flush=True)

    def result_table(self, value: Mapping[str, Any]) -> None:
        """Show the result as lines for people: a name and a value each."""
        for line in _lines(value, depth=0):
            self.result(line)

    def result_json(self, value: Mapping[str, Any]) -> None:
        """Show the result as one line of JSON, which has no word for NaN and infinity: these are null."""
        print(json.dumps(_finite(value), allow_nan=False), file=self._out, flush=True)

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        """Begin a stage of `total` units: a bar that redraws itself on a terminal, a line now and then elsewhere.

        Where only the workers know the total, it is None until `Stage.begin`.
        """
        return Stage(name, total, unit, self._err)


class Stage:
    """Progress of one stage; ends with the `with` block."""

    def __init__(self, name: str, total: int | None, unit: str, stream: IO[str]) -> None:
        """Take a path-like name, such as `sample/read`."""
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self._stream, self._terminal = stream, stream.isatty()
        self._begun = self._shown = time.monotonic()
        self._done_before = 0
        self._figures: dict[str, Any] = {}
        self._told = ""

    def __enter__(self) -> Self:
        """Show the empty bar."""
        self._show()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Show how far it came, unless the last line said so."""
        if self._terminal or self._state() != self._told:
            self._show()
        if self._terminal:
            print(file=self._stream, flush=True)

    def begin(self, total: int, done: int) -> None:
        """Learn the total, and how many units were done by an earlier run."""
        self.total, self.done, self._done_before = total, done, done
        self._begun = time.monotonic()

    def advance(self, count: int, **figures: Any) -> None:
        """Count `count` units as done and remember figures to show beside them."""
        self.reach(self.done + count, **figures)

    def reach(self, done: int, **figures: Any) -> None:
        """Say how many units are done in all, and remember figures to show beside them."""
        self.done = done
        self._figures |= figures
        if time.monotonic() - self._shown > (_REDRAW_EVERY_S if self._terminal else _LINE_EVERY_S):
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        elapsed = self._shown - self._begun
        fresh = self.done - self._done_before
        rate = f" · {_short(float(fresh / elapsed))} {self.unit}/s" if fresh and elapsed > 0.5 else ""  # noqa: PLR2004  before that it is noise
        self._told = self._state()
        text = f"{self.name:<16} {self._progress()}{rate}{self._figures_text()}"
        if self._terminal:
            print(f"\r{text}\x1b[K", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)

    def _state(self) -> str:
        return self._progress() + self._figures_text()

    def _figures_text(self) -> str:
        return "".join(f" · {name} {_short(value)}" for name, value in self._figures.items())

    def _progress(self) -> str:
        if self.total is None:
            return "starting"
        share = self.done / self.total if self.total else 1.0
        return f"{self.done:,}/{self.total:,} {self.unit} ({share:.0%})"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"  # noqa: PLR2004  three digits tell enough
    return str(value)


_NAME_WIDTH = 28
_WIDE = 160
"""Characters of a value that a terminal still shows well."""
_MOST_ENTRIES = 40


def _lines(entries: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield a line for each entry; what a line cannot hold stands below its name, further in."""
    width = max(_NAME_WIDTH - 2 * depth, 1 + max(map(len, entries), default=0))
    for name, value in entries.items():
        text = _in_line(name, value, depth)
        if text is not None:
            yield f"{'  ' * depth}{name:<{width}}{text}"
            continue
        yield f"{'  ' * depth}{name}"
        if isinstance(value, dict):
            yield from _lines(value, depth + 1)
        else:
            yield from (f"{'  ' * (depth + 1)}{_scalar(entry)}" for entry in value)


def _in_line(name: str, value: Any, depth: int) -> str | None:
    """Return a value as it follows its name, or None where it takes lines of its own."""
    if not isinstance(value, dict | list | tuple):
        return _mebibytes(value) if "bytes" in name.split("_") and isinstance(value, int) else _scalar(value)
    if not value:
        return "none"
    inner = list(value.values()) if isinstance(value, dict) else value
    flat = not any(isinstance(entry, dict | list | tuple) for entry in inner)
    if len(value) > _MOST_ENTRIES or not (flat or isinstance(value, dict)):
        return f"{len(value):,} entries; --json shows them"
    if not flat or (isinstance(value, dict) and depth == 0):
        return None
    parts = [f"{name} {_scalar(entry)}" for name, entry in value.items()] if isinstance(value, dict) else map(_scalar, value)
    text = ", ".join(parts)
    return text if len(text) <= _WIDE else None


def _scalar(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else _short(value)


def _mebibytes(size: int) -> str:
    return f"{size:,} ({size / 2**20:,.1f} MiB)"


def _log_file(verb: str) -> Path:
    folder = Path(os.environ.get("RAYJOBS_LOG_DIR", "~/.cache/rayjobs/logs")).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    return folder / f"{verb}-{now:%Y%m%d-%H%M%S}-{os.getpid()}.log"


@contextmanager
def taken(verb: str, *, verbose: bool) -> Iterator[Console]:
    """Keep stdout and stderr for ourselves, and send what others write there to a log file (on stderr if `verbose`).

    The streams are taken at the level of file descriptors, since Ray and GDAL write below Python's.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        yield Console(sys.stdout, sys.stderr)
        return
    log = _log_file(verb)
    sys.stdout.flush()
    sys.stderr.flush()
    ours = [os.dup(1), os.dup(2)]
    with log.open("ab") as file, os.fdopen(ours[0], "w") as out, os.fdopen(ours[1], "w") as err:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        try:
            yield Console(out, err, log=log)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(ours[0], 1)
            os.dup2(ours[1], 2)
