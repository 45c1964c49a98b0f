"""Reading in a process of its own, for files that may kill the process that reads them: the tile that did is left out, the others are read.

A faulty driver of GDAL ends the process, where a well-behaved one raises. This way costs a process and the sharing of raster blocks, so it
is taken only for shards whose first reader died.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Self

from rayjobs.errors import UnreadableTileError
from rayjobs.geo import Window
from rayjobs.rasters.reader import REPLACE, RasterReader

if TYPE_CHECKING:
    from rayjobs.geo import IntArray
    from rayjobs.rasters.reader import Pixels
    from rayjobs.rasters.scenes import Scene

TRIES = 2
"""Processes that a tile may kill."""
_PATIENCE = 2
"""After so many tiles of one scene that killed theirs, its further tiles are not tried."""
_CHILD = "import sys; from rayjobs.sample.careful import serve; serve(int(sys.argv[1]))"


class CarefulReader:
    """Reads tile by tile in a process of its own, which is started anew when it dies."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._child: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._killers: Counter[str] = Counter()

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process; the reader may be used again."""
        if self._line is not None:
            self._line.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._child = self._line = None

    def read(self, scene: Scene, window: Window) -> Pixels:
        """Return a window's pixels. Raises `UnreadableTileError`, also where its file kills the process that reads it."""
        if self._killers[scene.scene_id] >= _PATIENCE:
            raise UnreadableTileError(f"{_files(scene)} killed {TRIES * _PATIENCE} processes that read other tiles; {REPLACE}")
        ended = None
        for _ in range(TRIES):
            answer = self._ask(scene, window)
            if isinstance(answer, UnreadableTileError):
                raise answer
            if not isinstance(answer, int):
                return answer
            ended = answer
        self._killers[scene.scene_id] += 1
        how = signal.Signals(-ended).name if ended and ended < 0 else f"exit code {ended}"
        raise UnreadableTileError(f"{window} of {_files(scene)} killed {TRIES} processes that read it ({how}); {REPLACE}")

    def read_many(self, scene: Scene, windows: IntArray) -> list[Pixels | UnreadableTileError]:
        """Return, in their order, what `read` gives for windows (n, 4: row, col, height, width), or the error that it raises."""
        answers: list[Pixels | UnreadableTileError] = []
        for row, col, height, width in windows.tolist():
            try:
                answers.append(self.read(scene, Window(row=row, col=col, height=height, width=width)))
            except UnreadableTileError as error:
                answers.append(error)
        return answers

    def _ask(self, scene: Scene, window: Window) -> Pixels | UnreadableTileError | int:
        """Return the process's answer, or, where it died, how it ended."""
        if self._line is None or self._child is None:
            self._line, self._child = _started()
        try:
            self._line.send((scene, window))
            answer: Pixels | UnreadableTileError = self._line.recv()
        except (EOFError, OSError):
            ended = self._child.wait()
            self.close()
            return ended
        return answer


def _files(scene: Scene) -> str:
    return f"scene {scene.scene_id} ({', '.join(dict.fromkeys(asset.uri for asset in scene.assets.values()))})"


def _started() -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(  # noqa: S603  our own interpreter, with code of ours
            [sys.executable, "-c", _CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    return Connection(ours.detach()), child


def serve(descriptor: int) -> None:
    """Answer, in the process of its own, until the other end is closed."""
    line = Connection(descriptor)
    with RasterReader() as reader:
        while True:
            try:
                scene, window = line.recv()
            except EOFError:
                return
            try:
                line.send(reader.read(scene, window))
            except UnreadableTileError as error:
                line.send(error)
