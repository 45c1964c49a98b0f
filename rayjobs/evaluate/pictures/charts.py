"""Charts in small multiples: training curves, and metrics with their intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from rayjobs.evaluate.pictures.look import BLUE, INK, look, mark, plain, png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

_COLUMNS = 3
_DECADES = 3
_MARKED = 30


def curves(series: Mapping[str, Sequence[tuple[int, float]]], *, unit: str = "epoch", title: str = "") -> bytes:
    """Draw one panel per metric of a training run.

    Args:
        series: (step, value) in any order, by metric; values that are not finite are left out.
        unit: what a step is.
        title: above the picture.

    Returns:
        PNG. A metric that is positive and spans more than three decades has a logarithmic scale.
    """
    with look():
        figure, panels = _panels(len(series), 2.1, title)
        for axes, (name, points) in zip(panels, series.items(), strict=True):
            _curve(axes, name, sorted((step, value) for step, value in points if math.isfinite(value)), unit)
        return png(figure)


def rows_chart(rows: Sequence[Mapping[str, Any]], objective: str, *, ours: str = "trained", title: str = "") -> bytes:
    """Draw one panel per metric, with a dot and its interval per row; the objective comes first.

    Args:
        rows: `name` and `metrics` ({metric: {value, low, high}}) of each, as in a report; all have the same metrics.
        objective: the metric that counts.
        ours: the row that is set off from the others.
        title: above the picture.

    Returns:
        PNG. A value that is missing or not finite has no dot, and one without an interval no line.
    """
    names = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
    names.sort(key=lambda name: name != objective)
    with look():
        figure, panels = _panels(len(names), 0.55 + 0.24 * len(rows), title)
        for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for place, row in enumerate(rows):
                _whisker(axes, place, row["metrics"].get(name) or {}, ours=row["name"] == ours)
            axes.set_yticks(range(len(rows)), [plain(row["name"]) for row in rows] if number % _COLUMNS == 0 else [""] * len(rows))
            axes.set(ylim=(len(rows) - 0.5, -0.5))
            axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelsize=8)
            chosen = name == objective
            axes.set_title(f"{plain(name)} (objective)" if chosen else plain(name), loc="left", fontweight="bold" if chosen else "normal")
        return png(figure)


def ranks_chart(rows: Mapping[str, Sequence[float]], *, ours: str = "trained", title: str = "") -> bytes:
    """Draw precision against rank, a line for each row.

    Args:
        rows: precision at rank 1, 2, ... by row.
        ours: the row that is set off from the others.
        title: above the picture.

    Returns:
        PNG.
    """
    with look():
        figure, (axes,) = _panels(1, 3.2, title)
        figure.set_size_inches(6.4, 3.4)
        for number, (name, values) in enumerate(rows.items()):
            colour, marker = mark(number + 1)
            shade, width = (BLUE, 2.2) if name == ours else (colour, 1.2)
            ranks = np.arange(1, len(values) + 1)
            axes.plot(ranks, values, label=plain(name), color=shade, linewidth=width, marker=marker, markersize=3, markevery=0.1)
        axes.set(xlabel="rank n", ylabel="relevant among the first n", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.legend(fontsize=8, frameon=False)
        return png(figure)


def _panels(count: int, height: float, title: str) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, max(1, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(0.9 + 2.9 * columns, height * rows + (0.3 if title else 0)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
    panels: list[Axes] = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for empty in panels[count:]:
        empty.remove()
    return figure, panels[:count]


def _curve(axes: Axes, name: str, points: Sequence[tuple[int, float]], unit: str) -> None:
    axes.set_title(plain(name, 40), loc="left")
    axes.set_xlabel(unit)
    axes.tick_params(labelsize=8)
    if not points:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center")
        return
    steps, values = np.array([step for step, _ in points]), np.array([value for _, value in points])
    axes.plot(steps, values, color=BLUE, linewidth=1.4, marker="o" if len(points) <= _MARKED else "", markersize=3)
    if values.min() > 0 and values.max() / values.min() > 10**_DECADES:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if np.ptp(steps) < 1:
        axes.set_xticks(steps[:1])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="#e4e4e4", linewidth=0.6)


def _whisker(axes: Axes, place: int, entry: Mapping[str, Any], *, ours: bool) -> None:
    colour = BLUE if ours else INK
    low, high = entry.get("low"), entry.get("high")
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [place, place], color=colour, linewidth=2 if ours else 1.4, solid_capstyle="butt")
    value = entry.get("value")
    if value is not None and math.isfinite(value):
        axes.plot([value], [place], color=colour, marker="D" if ours else "o", markersize=6 if ours else 5)
