"""Queries and what was found for them, right and wrong told apart by colour, line and sign."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rayjobs.evaluate.pictures.look import BLUE, DPI, INK, VERMILLION, look, plain, png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from rayjobs.evaluate.pictures.look import Image

    Images = np.ndarray[Any, np.dtype[np.uint8]]
    BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

_SIDE, _GAP, _CAPTION, _NAMES, _HEAD, _FOOT = (pixels / DPI for pixels in (128, 14, 24, 204, 66, 48))
"""Inches, of whole pixels, so that those of a thumbnail of 64 or 128 pixels stay squares."""

RIGHT = (BLUE, "solid", "✓")
WRONG = (VERMILLION, (0, (2.5, 1.2)), "✗")
"""Colour, line and sign of a hit."""


def sheet(
    queries: Images,
    neighbours: Images,
    right: BoolArray,
    titles: Sequence[str],
    *,
    captions: Sequence[Sequence[str]] | None = None,
    title: str = "",
) -> bytes:
    """Draw a row per query: its name, the query, its neighbours from the most similar on.

    Args:
        queries: (queries, height, width, 3) uint8.
        neighbours: (queries, k, height, width, 3) uint8.
        right: (queries, k), True where the neighbour is relevant.
        titles: (queries,) what each query is: its class or its id.
        captions: (queries, k) what each neighbour is, or None.
        title: above the picture.

    Returns:
        PNG.
    """
    count, depth = right.shape
    row = _SIDE + _GAP + (_CAPTION if captions else 0)
    width, height = _left(depth), _HEAD + count * row + _FOOT
    with look():
        figure = Figure(figsize=(width, height), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.set_axis_off()
        _head(axes, depth, title)
        for number in range(count):
            top = _HEAD + number * row
            axes.text(_NAMES - _GAP, top + _SIDE / 2, plain(titles[number], 22), ha="right", va="center")
            _place(axes, queries[number], _NAMES, top)
            for rank in range(depth):
                left = _left(rank)
                _place(axes, neighbours[number, rank], left, top)
                _judge(axes, left, top, RIGHT if right[number, rank] else WRONG)
                if captions:
                    axes.text(left + _SIDE / 2, top + _SIDE + 0.05, plain(captions[number][rank], 15), ha="center", va="top", fontsize=7)
        _key(axes, height - _FOOT / 2)
        return png(figure)


def contact_sheet(query: Image, found: Images, right: BoolArray, *, title: str = "") -> bytes:
    """Draw one query, and beside it what was found as a square of pictures, row by row from the most similar on.

    Args:
        query: (height, width, 3) uint8.
        found: (k, height, width, 3) uint8, at least one.
        right: (k,) True where it is relevant.
        title: above the picture.

    Returns:
        PNG.
    """
    across = math.ceil(math.sqrt(len(found)))
    step, left = _SIDE / 2 + _GAP / 2, _SIDE + 4 * _GAP
    rows = -(-len(found) // across)
    width, height = left + max(across * step, 5.0), _HEAD + max(rows * step, _SIDE) + _FOOT
    with look():
        figure = Figure(figsize=(width, height), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.set_axis_off()
        axes.text(_GAP, 0.15, plain(title, 150), fontweight="bold", fontsize=10, va="center")
        axes.text(_GAP + _SIDE / 2, _HEAD - 0.1, "query", ha="center", fontweight="bold")
        _place(axes, query, _GAP, _HEAD)
        for rank, picture in enumerate(found):
            at = left + rank % across * step, _HEAD + rank // across * step
            _place(axes, picture, *at, side=_SIDE / 2)
            _judge(axes, *at, RIGHT if right[rank] else WRONG, side=_SIDE / 2)
        _key(axes, height - _FOOT / 2)
        return png(figure)


def _left(rank: int) -> float:
    return _NAMES + _SIDE + 3 * _GAP + rank * (_SIDE + _GAP)


def _head(axes: Axes, depth: int, title: str) -> None:
    axes.text(_GAP, 0.15, title, fontweight="bold", fontsize=10, va="center")
    axes.text(_NAMES + _SIDE / 2, _HEAD - 0.1, "query", ha="center", fontweight="bold")
    for rank in range(depth):
        axes.text(_left(rank) + _SIDE / 2, _HEAD - 0.1, "1, most similar" if rank == 0 else str(rank + 1), ha="center", fontsize=8)


def _place(axes: Axes, picture: Image, left: float, top: float, side: float = _SIDE) -> None:
    axes.imshow(picture, extent=(left, left + side, top + side, top), interpolation="nearest", aspect="auto")


def _judge(axes: Axes, left: float, top: float, verdict: tuple[str, Any, str], side: float = _SIDE) -> None:
    colour, line, sign = verdict
    axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=3 * side / _SIDE, linestyle=line))
    badge = 0.12 + 0.1 * (side / _SIDE)
    axes.add_patch(Rectangle((left + side - badge, top), badge, badge, facecolor=colour, edgecolor="white", linewidth=0.8))
    axes.text(left + side - badge / 2, top + badge / 2, sign, color="white", ha="center", va="center_baseline", fontsize=45 * badge)


def _key(axes: Axes, middle: float) -> None:
    for number, (verdict, word) in enumerate(((RIGHT, "relevant"), (WRONG, "not relevant"))):
        left, (colour, line, sign) = _NAMES + 1.4 * number, verdict
        axes.add_patch(Rectangle((left, middle - 0.1), 0.2, 0.2, fill=False, edgecolor=colour, linewidth=2, linestyle=line))
        axes.text(left + 0.28, middle, f"{sign} {word}", color=INK, va="center")
