"""Pictures of a sweep: pure functions from plain values to PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayjobs.evaluate.pictures.look import BLUE, FAINT, INK, look, plain, png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    Json = Mapping[str, Any]

_MOST_NAMED = 12
"""Values of a key that are written beside its axis one by one."""


def parallel(trials: Sequence[Json], objective: str, best: str) -> bytes:
    """Draw parallel coordinates (Inselberg 1985): an axis for each key and one for the objective, a line for each trial.

    Args:
        trials: `run`, `values` by key, `value` and `ended` of each, as in `sweep.json`; each has a value.
        objective: its name.
        best: the run that is set off.

    Returns:
        PNG. A key that a trial does not have lies at the foot of its axis.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial["values"]))
    places = [_places([trial["values"].get(key) for trial in trials]) for key in keys]
    scores = np.array([trial["value"] for trial in trials], np.float64)
    low, high = float(scores.min()), float(scores.max())
    heights = [*(place for place, _ in places), (scores - low) / (high - low) if high > low else np.full(len(scores), 0.5)]
    colours = mpl.colormaps["viridis"](Normalize(low, high if high > low else low + 1)(scores))
    with look():
        figure = Figure(figsize=(1.8 + 1.7 * len(keys), 4.2), layout="constrained")
        axes = figure.subplots()
        for number in np.argsort(scores):  # the best on top
            chosen, pruned = trials[number]["run"] == best, trials[number]["ended"] != "finished"
            line = [height[number] for height in heights]
            axes.plot(
                line, color=colours[number], linewidth=3 if chosen else 1.3, linestyle="--" if pruned else "-", alpha=1 if chosen else 0.8
            )
        for number, (_, ticks) in enumerate(places):
            _axis(axes, number, ticks)
        _axis(axes, len(keys), {f"{low:.3f}": 0.0, f"{high:.3f}": 1.0})
        axes.set_xticks(range(len(keys) + 1), [*(plain(key) for key in keys), plain(objective)])
        axes.set(yticks=[], ylim=(-0.12, 1.08), xlim=(-0.25, len(keys) + 0.6))
        axes.spines[:].set_visible(False)
        axes.tick_params(axis="x", length=0)
        return png(figure)


def _axis(axes: Axes, place: int, ticks: Mapping[str, float]) -> None:
    axes.axvline(place, color=FAINT, linewidth=1, zorder=0)
    for text, height in ticks.items():
        axes.annotate(
            plain(text, 14), (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, color=INK, va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
        )  # fmt: skip


def _places(values: Sequence[Any]) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    """Return where each value lies on its axis, from 0 to 1, and what is written there; values that are absent lie below, at -0.08."""
    values = [value if value is None or _is_number(value) else str(value) for value in values]
    known = [value for value in values if value is not None]
    absent = {"none": -0.08} if len(known) < len(values) else {}
    distinct = list(dict.fromkeys(known))
    numbers = all(map(_is_number, known))
    if numbers and len(distinct) > _MOST_NAMED:
        low, high = min(known), max(known)
        log = low > 0 and high / low > 100  # noqa: PLR2004  two orders of magnitude
        scale = (lambda value: float(np.log(value))) if log else float
        at = [-0.08 if value is None else (scale(value) - scale(low)) / (scale(high) - scale(low)) for value in values]
        return np.array(at), {f"{low:.3g}": 0.0, f"{high:.3g}": 1.0, **absent}
    named = sorted(distinct) if numbers else sorted(distinct, key=str)
    step = {str(value): number / (len(named) - 1) if len(named) > 1 else 0.5 for number, value in enumerate(named)}
    return np.array([-0.08 if value is None else step[str(value)] for value in values]), {**step, **absent}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def importance_chart(shares: Mapping[str, float]) -> bytes:
    """Draw one bar for each key, the most important on top."""
    with look():
        figure = Figure(figsize=(6.5, 0.7 + 0.34 * len(shares)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(shares)), list(shares.values()), color=BLUE, height=0.62)
        for place, share in enumerate(shares.values()):
            axes.annotate(f"{share:.0%}", (share, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(shares)), [plain(key, 32) for key in shares])
        axes.set(ylim=(len(shares) - 0.5, -0.5), xlim=(0, 1.12 * max(shares.values())), xticks=[])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
        return png(figure)


def curves(trials: Sequence[Json], objective: str, best: str) -> bytes:
    """Draw the objective of each trial against the epochs done; the best in blue, those that were ended early dashed."""
    with look():
        figure = Figure(figsize=(6.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for trial in sorted(trials, key=lambda trial: trial["run"] == best):
            chosen = trial["run"] == best
            epochs, values = zip(*trial["history"], strict=True)
            style: Any = {"color": BLUE, "linewidth": 2.4, "zorder": 3} if chosen else {"color": "#9a9a9a", "linewidth": 1}
            axes.plot(
                epochs,
                values,
                marker="o",
                markersize=4 if chosen else 2.5,
                linestyle="-" if trial["ended"] == "finished" else "--",
                **style,
            )
        _settle(axes, "epochs", objective)
        return png(figure)


def best_so_far(trials: Sequence[Json], objective: str) -> bytes:
    """Draw what each trial found, and the best of it and those before it."""
    values = [trial["value"] for trial in trials]
    with look():
        figure = Figure(figsize=(6.5, 2.8), layout="constrained")
        axes = figure.subplots()
        numbers = [trial["number"] for trial in trials]
        axes.step(numbers, np.maximum.accumulate(values), where="post", color=BLUE, linewidth=2)
        axes.plot(numbers, values, linestyle="none", marker="o", markersize=4, color="#777777")
        _settle(axes, "trial", objective)
        return png(figure)


def _settle(axes: Axes, across: str, up: str) -> None:
    axes.set(xlabel=across, ylabel=plain(up, 40))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
