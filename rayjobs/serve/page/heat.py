"""How alike the ground in view is to what is searched for: scores of tiles laid on a grid of web Mercator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from rayjobs.serve.page.overview import MERCATOR_LATITUDE

if TYPE_CHECKING:
    from rayjobs.geo import BBox

Floats = np.ndarray[Any, np.dtype[np.float64]]

_LONGER = 128
"""Cells along the grid's longer side."""
_LEVELS = 255


class Heat(pydantic.BaseModel):
    """A grid of scores, north up, row by row."""

    bounds: list[float]
    """west, south, east, north in degrees; east above 180 where the grid crosses the antimeridian."""
    columns: int
    rows: int
    """Of equal height in web Mercator, not in degrees."""
    cells: list[int | None]
    """Greatest score of the tiles that touch a cell, from 0 (`least`) to 255 (`greatest`); null where there is none."""
    least: float
    greatest: float
    tiles: int
    """Whose scores these are."""


def heat(boxes: Floats, scores: Floats, view: BBox) -> Heat:
    """Lay tiles on a grid over those of them that are in view.

    Args:
        boxes: (n, 4) west, south, east, north of each tile in degrees; west greater than east crosses the antimeridian.
        scores: (n,) of each tile.
        view: what is looked at.
    """
    edges = _edges(boxes, view)
    frame = _frame(edges, view)
    if not len(boxes) or frame is None:
        return Heat(bounds=list(view), columns=0, rows=0, cells=[], least=0.0, greatest=0.0, tiles=0)
    west, bottom, east, top = frame
    cell = max(east - west, top - bottom) / _LONGER
    columns, rows = max(1, round((east - west) / cell)), max(1, round((top - bottom) / cell))
    grid = _splat(edges, scores, frame, (rows, columns))
    least, greatest = float(scores.min()), float(scores.max())
    levels = np.round((grid - least) / max(greatest - least, 1e-9) * _LEVELS)
    return Heat(
        bounds=[west, _latitude(bottom), east, _latitude(top)],
        columns=columns,
        rows=rows,
        cells=[None if np.isnan(level) else int(level) for level in levels.ravel().tolist()],
        least=least,
        greatest=greatest,
        tiles=len(boxes),
    )


def _edges(boxes: Floats, view: BBox) -> Floats:
    """Return (n, 4) left, bottom, right, top in Mercator degrees, longitudes turned to where the view is."""
    west, south, east, north = boxes.T
    turn = 360 * np.floor((west - view.west + 180) / 360)
    width = np.mod(east - west, 360)
    return np.stack([west - turn, _northing(south), west - turn + width, _northing(north)], axis=1)


def _frame(edges: Floats, view: BBox) -> tuple[float, float, float, float] | None:
    """Return the part of the view that tiles cover, in Mercator degrees; None where there is none."""
    width = (view.east - view.west) % 360 or 360
    seen = (view.west, float(_northing(np.array(view.south))), view.west + width, float(_northing(np.array(view.north))))
    if not len(edges):
        return None
    least, greatest = edges.min(axis=0), edges.max(axis=0)
    west, bottom = max(seen[0], float(least[0])), max(seen[1], float(least[1]))
    east, top = min(seen[2], float(greatest[2])), min(seen[3], float(greatest[3]))
    return (west, bottom, east, top) if west < east and bottom < top else None


def _splat(edges: Floats, scores: Floats, frame: tuple[float, float, float, float], shape: tuple[int, int]) -> Floats:
    """Return (rows, columns) the greatest score of the tiles whose box touches each cell's middle, at least the cell of its own middle."""
    west, bottom, east, top = frame
    rows, columns = shape
    across, down = columns / (east - west), rows / (top - bottom)
    left, right = _cells((edges[:, 0] - west) * across, (edges[:, 2] - west) * across, columns)
    upper, lower = _cells((top - edges[:, 3]) * down, (top - edges[:, 1]) * down, rows)
    grid = np.full(shape, np.nan)
    for index in np.argsort(scores, kind="stable"):  # the greatest last: it stays
        grid[upper[index] : lower[index], left[index] : right[index]] = scores[index]
    return grid


def _cells(first: Floats, last: Floats, count: int) -> tuple[Any, Any]:
    """Return the range of cells whose middles lie between two positions; never empty for what is in view."""
    start = np.clip(np.ceil(first - 0.5), 0, count).astype(np.int64)
    stop = np.clip(np.ceil(last - 0.5), 0, count).astype(np.int64)
    middle = np.clip(np.floor((first + last) / 2), 0, count - 1).astype(np.int64)
    empty = stop <= start
    return np.where(empty, middle, start), np.where(empty, middle + 1, stop)


def _northing(latitude: Floats) -> Floats:
    """Return northings of web Mercator, in degrees of the equator."""
    clipped = np.radians(np.clip(latitude, -MERCATOR_LATITUDE, MERCATOR_LATITUDE))
    return np.degrees(np.arcsinh(np.tan(clipped)))


def _latitude(northing: float) -> float:
    return float(np.degrees(np.arctan(np.sinh(np.radians(northing)))))
