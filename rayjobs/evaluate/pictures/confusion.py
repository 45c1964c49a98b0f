"""The confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rayjobs.evaluate.pictures.look import look, plain, png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]

_CELL = 0.34
_CELL_OF_MANY = 0.26
_MANY = 20
_MOST_COUNTS = 60
_DARK = 0.55


def confusion(matrix: IntArray, classes: Sequence[str], *, title: str = "") -> bytes:
    """Draw which class is taken for which: colour is the share of the true class, numbers are tiles.

    Args:
        matrix: (classes, classes) tiles by true class (row) and predicted class (column).
        classes: names.
        title: above the picture.

    Returns:
        PNG. A class without tiles has a grey row; above 60 classes the numbers are left out.
    """
    count = len(classes)
    side = count * (_CELL if count <= _MANY else _CELL_OF_MANY)
    with look():
        figure = Figure(figsize=(side + 3.6, side + 2.6))
        axes = figure.add_axes((2.2 / (side + 3.6), 0.4 / (side + 2.6), side / (side + 3.6), side / (side + 2.6)))
        totals = np.asarray(matrix).sum(1)
        shares = np.divide(matrix, totals[:, None], out=np.full(np.shape(matrix), np.nan), where=totals[:, None] > 0)
        colours = mpl.colormaps["Blues"].with_extremes(bad="#dddddd")
        image = axes.imshow(shares, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        if count <= _MOST_COUNTS:
            _write_counts(axes, np.asarray(matrix), shares)
        _name(axes, classes, totals, title)
        bar = figure.add_axes((1 - 1.1 / (side + 3.6), 0.4 / (side + 2.6), 0.15 / (side + 3.6), min(side, 3.0) / (side + 2.6)))
        figure.colorbar(image, cax=bar, label="share of the true class")
        return png(figure)


def _write_counts(axes: Axes, matrix: IntArray, shares: np.ndarray[Any, Any]) -> None:
    size = 8 if len(matrix) <= _MANY else 6
    for row, column in np.argwhere(matrix > 0).tolist():
        ink = "white" if shares[row, column] > _DARK else "black"
        number = int(matrix[row, column])
        digits = len(str(number))
        axes.text(column, row, str(number), ha="center", va="center", color=ink, fontsize=size if digits < 4 else size * 3.2 / digits)  # noqa: PLR2004  four digits no longer fit


def _name(axes: Axes, classes: Sequence[str], totals: IntArray, title: str) -> None:
    small = 8 if len(classes) <= _MANY else 7
    places = np.arange(len(classes))
    rows = [f"{plain(name)} ({total:,})" for name, total in zip(classes, totals.tolist(), strict=True)]
    axes.set_yticks(places, rows, fontsize=small)
    axes.set_xticks(places, [plain(name) for name in classes], fontsize=small, rotation=90)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (tiles)")
    axes.set_xticks(places[:-1] + 0.5, minor=True)
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold", pad=10)
