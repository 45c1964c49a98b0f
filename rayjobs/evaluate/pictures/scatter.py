"""The embedding in a plane: as dots, and as the tiles themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rayjobs.evaluate.pictures.look import BLUE, DISTINCT, DPI, FAINT, look, mark, plain, png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from rayjobs.evaluate.pictures.look import Image
    from rayjobs.evaluate.pictures.projections import Projection

    IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]
    Images = np.ndarray[Any, np.dtype[np.uint8]]

_COLUMNS, _ROWS, _CELL = 26, 20, 44
_FRAME = 2
_MARGIN = 0.04
_LEGEND_ROWS = 25
_FAMOUS = DISTINCT - 1


def scatter(
    projection: Projection, *, labels: IntArray | None = None, classes: Sequence[str] = (), kind: str = "class", title: str = ""
) -> bytes:
    """Draw every tile as a dot, coloured and shaped by its class.

    Args:
        projection: of the tiles.
        labels: (tiles,) number of each tile's class, or of its block of ground; negative where unknown. None draws all alike.
        classes: names of the classes. Without names the colours repeat and there is no legend: fit for blocks, which are too many to name.
        kind: what the colours stand for, in one word.
        title: above the picture.

    Returns:
        PNG. Of more classes than 49, the largest 48 have marks of their own.
    """
    with look():
        figure, axes = _canvas(projection, title)
        groups = _groups(_known(labels, projection), classes)
        size = float(np.clip(14000 / len(projection.points), 8, 45))
        for group in groups:
            points = projection.points[group.members]
            axes.scatter(points[:, 0], points[:, 1], s=size, c=group.colour, marker=group.marker, alpha=0.8, linewidths=0)
        _legend(axes, groups, kind, labels)
        return png(figure)


def scatter_thumbnails(
    projection: Projection,
    thumbnails: Images,
    *,
    labels: IntArray | None = None,
    classes: Sequence[str] = (),
    kind: str = "class",
    title: str = "",
) -> bytes:
    """Draw tiles as themselves, on a grid so that they do not hide each other: of the tiles in a cell, the most central.

    Args:
        projection: of the tiles.
        thumbnails: (tiles, height, width, 3) uint8.
        labels: as for `scatter`; the colour of the frame and the mark in its corner.
        classes: as for `scatter`.
        kind: as for `scatter`.
        title: above the picture.

    Returns:
        PNG.
    """
    with look():
        shown, cells = _thinned(projection)
        note = f"{len(shown):,} of {len(thumbnails):,} tiles shown"
        figure, axes = _canvas(projection, f"{title}\n{note}" if title else note)
        groups = _groups(_known(labels, projection), classes)
        left, right, bottom, top = _window(projection)
        sheet, centres = _paste(thumbnails[shown], cells, [to_rgb(colour) for colour in _colours(groups, shown)])
        axes.imshow(sheet, extent=(left, right, bottom, top), interpolation="nearest", aspect="auto")
        step = np.array([(right - left) / _COLUMNS, (top - bottom) / _ROWS])
        corners = np.array([left, bottom]) + (centres - 0.3) * step
        for group in groups:
            at = corners[np.isin(shown, group.members)]
            axes.scatter(at[:, 0], at[:, 1], s=30, c=group.colour, marker=group.marker, edgecolors="white", linewidths=0.8)
        _legend(axes, groups, kind, labels)
        return png(figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Tiles that are drawn alike."""

    name: str | None
    members: IntArray
    """(members,) indices of tiles."""
    colour: str
    marker: str


def _known(labels: IntArray | None, projection: Projection) -> IntArray:
    return np.full(len(projection.points), -1) if labels is None else labels


def _groups(labels: IntArray, classes: Sequence[str]) -> list[_Group]:
    """Return the groups, those without a mark of their own first, so that the others lie on top."""
    numbers, counts = np.unique(labels[labels >= 0], return_counts=True)
    if not len(numbers):
        return [_Group(name=None, members=np.arange(len(labels)), colour=BLUE, marker="o")]
    by_size = numbers[np.argsort(-counts, kind="stable")]
    own = np.sort(by_size if len(numbers) <= DISTINCT or not classes else by_size[:_FAMOUS])
    small = np.flatnonzero((labels >= 0) & ~np.isin(labels, own))
    groups = [
        _Group(name="unknown", members=np.flatnonzero(labels < 0), colour=FAINT, marker="."),
        _Group(name=f"{len(numbers) - len(own)} smaller", members=small, colour=FAINT, marker="o"),
    ]
    for place, number in enumerate(own.tolist()):
        colour, marker = mark(place)
        name = plain(classes[number]) if classes else None
        groups.append(_Group(name=name, members=np.flatnonzero(labels == number), colour=colour, marker=marker))
    return [group for group in groups if len(group.members)]


def _canvas(projection: Projection, title: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes, which hold a whole number of cells of whole pixels and one scale in both directions."""
    width, height = _COLUMNS * _CELL / DPI, _ROWS * _CELL / DPI
    figure = Figure(figsize=(width + 3, height + 1), dpi=DPI)
    axes = figure.add_axes((0.6 / (width + 3), 0.5 / (height + 1), width / (width + 3), height / (height + 1)))
    left, right, bottom, top = _window(projection)
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel=projection.axes[0], ylabel=projection.axes[1], autoscale_on=False)
    axes.set_title(title, loc="left", fontweight="bold")
    if projection.shares is None:
        axes.set(xticks=[], yticks=[])
    return figure, axes


def _window(projection: Projection) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of what is shown: all points, in the proportions of the axes."""
    low, high = projection.points.min(0).astype(float), projection.points.max(0).astype(float)
    middle, span = (low + high) / 2, np.maximum((high - low) * (1 + 2 * _MARGIN), 1e-9)
    unit = max(span[0] / _COLUMNS, span[1] / _ROWS)
    half = np.array([unit * _COLUMNS, unit * _ROWS]) / 2
    return middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]


def _thinned(projection: Projection) -> tuple[IntArray, IntArray]:
    """Return the tiles that are shown and the (column, row) of each, counted from the lower left."""
    left, right, bottom, top = _window(projection)
    scaled = (projection.points - [left, bottom]) / [right - left, top - bottom] * [_COLUMNS, _ROWS]
    cells = np.clip(scaled.astype(int), 0, [_COLUMNS - 1, _ROWS - 1])
    from_middle = np.linalg.norm(scaled - cells - 0.5, axis=1)
    order = np.lexsort((from_middle, cells[:, 1], cells[:, 0]))
    first = np.unique(cells[order], axis=0, return_index=True)[1]
    shown = order[first]
    return shown, cells[shown]


def _colours(groups: Sequence[_Group], shown: IntArray) -> list[str]:
    colour = {member: group.colour for group in groups for member in group.members.tolist()}
    return [colour[number] for number in shown.tolist()]


def _paste(thumbnails: Images, cells: IntArray, colours: Sequence[tuple[float, float, float]]) -> tuple[Images, Any]:
    """Return the framed thumbnails in their cells (height, width, 4), and their centres in cells."""
    sheet = np.zeros((_ROWS * _CELL, _COLUMNS * _CELL, 4), np.uint8)
    for thumbnail, (column, row), colour in zip(thumbnails, cells.tolist(), colours, strict=True):
        top, left = (_ROWS - 1 - row) * _CELL, column * _CELL
        cell = sheet[top + 1 : top + _CELL - 1, left + 1 : left + _CELL - 1]
        cell[...] = [*(round(255 * part) for part in colour), 255]
        inner = cell[_FRAME:-_FRAME, _FRAME:-_FRAME]
        inner[..., :3] = resized(thumbnail, inner.shape[0])
    return sheet, cells + 0.5


def resized(thumbnail: Image, side: int) -> Image:
    """Return a picture as a square: pixels averaged where it shrinks, repeated where it grows."""
    return np.asarray(PIL.Image.fromarray(thumbnail).resize((side, side), PIL.Image.Resampling.BOX))


def _legend(axes: Axes, groups: Sequence[_Group], kind: str, labels: IntArray | None) -> None:
    named = [group for group in groups if group.name]
    unnamed = len(groups) - len(named)
    if named and not unnamed:
        handles = [Line2D([], [], linestyle="", marker=group.marker, color=group.colour, label=group.name) for group in named]
        axes.legend(
            handles=handles,
            title=kind,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0,
            frameon=False,
            alignment="left",
            ncols=-(-len(handles) // _LEGEND_ROWS),
            fontsize=8,
        )
    elif labels is not None and unnamed > 1:
        axes.text(1, 1.01, f"colour: {kind}, {unnamed} in all; colours repeat", transform=axes.transAxes, ha="right", fontsize=8)
