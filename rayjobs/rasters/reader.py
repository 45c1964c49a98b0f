"""Pixels of a window of a scene: exactly what the files hold, with the mask of what is valid."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from rayjobs.errors import UnreadableTileError
from rayjobs.geo import BoolArray, IntArray, Window
from rayjobs.rasters.blocks import ReadGroup, plan_reads
from rayjobs.rasters.gdal import environment, is_remote
from rayjobs.rasters.handles import FAULTS, Handle, Handles, explained
from rayjobs.rasters.masks import mark_missing, usable
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.rasters.tiled import SCHEME

_WAITS_SECONDS = (0.1, 0.5, 1.0, 2.0, 2.0, 4.0, 4.0)
"""Before the second try, on the same handle, and before the further ones, with the file opened anew. Where a tenth of all answers breaks
off, four tries lose a window in two hundred, eight one in tens of thousands."""
_PATIENCE = 3
"""After so many windows of one scene that failed for good, its further windows are tried once only."""

REPLACE = "replace the file or leave it out"
"""What to do about a file that cannot be read."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """What a window holds."""

    values: np.ndarray[Any, Any]
    """(bands, height, width), raw, in the scene's dtype."""
    valid: BoolArray
    """(height, width) True = valid in every band."""


class Reader(Protocol):
    """The seam to imagery: whatever gives the pixels of a window."""

    def read(self, scene: Scene, window: Window) -> Pixels:
        """Return a window's pixels. Raises `UnreadableTileError`."""

    def read_many(self, scene: Scene, windows: IntArray) -> list[Pixels | UnreadableTileError]:
        """Return, in their order, what `read` gives for windows (n, 4: row, col, height, width), or the error that it raises."""

    def close(self) -> None:
        """Let go of what is open; may be called again."""


class RasterReader:
    """Reads with rasterio; keeps files open, so that each thread needs a reader of its own.

    A pixel is valid where each band is: not nodata, a finite number, not masked by the file (alpha, internal or side mask), and not refused
    by the scene's quality layer. Of a picture in tiles nodata is a colour: a pixel is missing where all the picture's bands have it. Remote
    files are tried eight times, later with fresh credentials, since GDAL does not repeat a request whose answer was cut short.
    """

    def __init__(self, *, max_open: int = 64) -> None:
        """Keep at most `max_open` files open."""
        self._max_open = max_open
        self._handles = Handles(max_open)
        self._failures: Counter[str] = Counter()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel without open files."""
        return _make_reader, (self._max_open,)

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close all files; the reader may be used again."""
        self._handles.close()

    def read(self, scene: Scene, window: Window) -> Pixels:
        """Return a window's pixels, exactly as stored.

        Raises:
            UnreadableTileError: the files cannot be read there; says which file and why.
        """
        with environment():
            return self._patiently(scene, window)

    def read_many(self, scene: Scene, windows: IntArray) -> list[Pixels | UnreadableTileError]:
        """Return the pixels of many windows, fetching and decoding each stored block once.

        Args:
            scene: whose pixels.
            windows: (n, 4) int: row, col, height, width.

        Returns:
            For each window, in the order of `windows`, what `read` returns or raises.
        """
        windows = np.asarray(windows, np.int64).reshape(-1, 4)
        answers: list[Pixels | UnreadableTileError | None] = [None] * len(windows)
        inside = (windows[:, :2] + windows[:, 2:] <= (scene.grid.height, scene.grid.width)).all(axis=1) & (windows[:, :2] >= 0).all(axis=1)
        for position in np.flatnonzero(~inside):
            answers[position] = _outside(scene, windows[position])
        positions = np.flatnonzero(inside)
        with environment():
            for group in plan_reads(windows[positions], scene.block, (scene.grid.height, scene.grid.width)):
                members = positions[group.members]
                found = self._read_group(scene, group, windows[members])
                for position, answer in zip(members, found, strict=True):
                    answers[position] = answer
        return [answer for answer in answers if answer is not None]

    def _read_group(self, scene: Scene, group: ReadGroup, windows: IntArray) -> list[Pixels | UnreadableTileError]:
        try:
            whole = self._load(scene, group.window)
        except (*FAULTS, UnreadableTileError):
            return [self._answer(scene, window) for window in windows]
        return [_cut(whole, group.window, window) for window in windows.tolist()]

    def _answer(self, scene: Scene, window: IntArray) -> Pixels | UnreadableTileError:
        row, col, height, width = window.tolist()
        try:
            return self._patiently(scene, Window(row=row, col=col, height=height, width=width))
        except UnreadableTileError as error:
            return error

    def _patiently(self, scene: Scene, window: Window) -> Pixels:
        if not window.inside(scene.grid.height, scene.grid.width):
            raise _outside(scene, window)
        fault: Exception
        try:
            return self._load(scene, window)
        except FAULTS as error:
            fault = error
        for number, wait in enumerate(self._waits(scene)):
            time.sleep(wait)
            if number > 0:
                self._forget(scene)
            try:
                return self._load(scene, window, fresh=number > 0)
            except FAULTS as error:
                fault = error
        self._forget(scene)
        self._failures[scene.scene_id] += 1
        raise UnreadableTileError(_unreadable(scene, window, fault)) from fault

    def _waits(self, scene: Scene) -> tuple[float, ...]:
        patient = self._failures[scene.scene_id] < _PATIENCE and any(is_remote(uri) for uri in _uris(scene))
        return _WAITS_SECONDS if patient else ()

    def _forget(self, scene: Scene) -> None:
        for uri in _uris(scene):
            self._handles.drop(uri)

    def _load(self, scene: Scene, window: Window, *, fresh: bool = False) -> Pixels:
        files = _by_file(scene)
        values: np.ndarray[Any, Any] | None = None
        valid = np.ones((window.height, window.width), np.bool_)
        for uri, members in files.items():
            handle = self._opened(uri, scene, members, fresh=fresh)
            part = _file_values(handle, [asset for _, asset in members], window, scene.dtype, valid)
            if len(files) == 1:
                values = part
            else:
                values = np.empty((len(scene.assets), *part.shape[1:]), scene.dtype) if values is None else values
                values[[position for position, _ in members]] = part
        if scene.quality is not None:
            valid &= usable(scene.quality, self._handles.get(scene.quality.uri, fresh=fresh), scene.grid, window)
        if values is None:
            raise AssertionError("a scene has a file")
        return Pixels(values=values, valid=valid)

    def _opened(self, uri: str, scene: Scene, members: list[tuple[int, Asset]], *, fresh: bool) -> Handle:
        handle = self._handles.get(uri, fresh=fresh)
        dataset = handle.dataset
        planned, bands = (scene.grid.height, scene.grid.width), max(asset.band_index for _, asset in members)
        if dataset.shape != (planned[::-1] if members[0][1].turns % 2 else planned) or dataset.count < bands:
            raise UnreadableTileError(
                f"{uri} is now {dataset.height} x {dataset.width} with {dataset.count} bands, not what it was when scene "
                f"{scene.scene_id} was planned; sample again, or put the file back"
            )
        return handle


def _make_reader(max_open: int) -> RasterReader:
    return RasterReader(max_open=max_open)


def _uris(scene: Scene) -> list[str]:
    uris = [asset.uri for asset in scene.assets.values()]
    return list(dict.fromkeys([*uris, scene.quality.uri] if scene.quality else uris))


def _by_file(scene: Scene) -> dict[str, list[tuple[int, Asset]]]:
    """Return the assets of each file, with their positions among the bands."""
    files: dict[str, list[tuple[int, Asset]]] = {}
    for position, asset in enumerate(scene.assets.values()):
        files.setdefault(asset.uri, []).append((position, asset))
    return files


def _file_values(handle: Handle, assets: list[Asset], window: Window, dtype: str, valid: BoolArray) -> np.ndarray[Any, Any]:
    """Read one file's bands (k, h, w), and set `valid` to False where they are not; in place."""
    turns = assets[0].turns  # those of one file
    stored_window = _before_turns(window, handle.dataset.shape, turns)
    values = np.rot90(handle.read([asset.band_index for asset in assets], stored_window, dtype), -turns, (1, 2))
    in_tiles = assets[0].uri.startswith(SCHEME)
    if in_tiles and assets[0].nodata is not None:
        every = values if len(assets) == handle.dataset.count else handle.read(list(handle.dataset.indexes), stored_window, dtype)
        np.logical_and(valid, (every != assets[0].nodata).any(axis=0), out=valid)
    for band, asset in enumerate(assets):
        if not in_tiles:
            mark_missing(valid, values[band], asset.nodata)
        if asset.palette is not None and handle.palette is not None:
            codes = values[band]
            np.logical_and(valid, handle.palette[codes, 3] != 0, out=valid)
            values[band] = handle.palette[codes, asset.palette]
    stored = handle.read_mask(stored_window)
    if stored is not None:
        valid &= np.rot90(stored, -turns)
    return values


def _before_turns(window: Window, shape: tuple[int, int], turns: int) -> Window:
    """Return the window of a file of a shape (height, width) that quarter turns clockwise bring onto a window."""
    for turn in range(turns, 0, -1):
        height = shape[(turn - 1) % 2]  # of the file before this turn
        window = Window(row=height - window.col - window.width, col=window.row, height=window.width, width=window.height)
    return window


def _cut(whole: Pixels, around: Window, window: list[int]) -> Pixels:
    row, col, height, width = window[0] - around.row, window[1] - around.col, window[2], window[3]
    values = whole.values[:, row : row + height, col : col + width]
    valid = whole.valid[row : row + height, col : col + width]
    # copies, so that one tile that is kept does not keep the whole read
    return Pixels(values=values.copy(), valid=valid.copy())


def _outside(scene: Scene, window: Window | IntArray) -> UnreadableTileError:
    grid = scene.grid
    return UnreadableTileError(f"{window} leaves scene {scene.scene_id} of {grid.height} x {grid.width} pixels; sample again")


def _unreadable(scene: Scene, window: Window, error: Exception) -> str:
    place = f"rows {window.row} to {window.row + window.height}, columns {window.col} to {window.col + window.width}"
    return f"cannot read {place} of scene {scene.scene_id} ({', '.join(_uris(scene))}): {explained(error)}; {REPLACE}"
