"""The picture of `rayjobs index report`: what compression costs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.index.comparison import Measured

_LEAST_BYTES = 1.0
"""Where the exact kind stands, which has no compressed index, on an axis of logarithms: at its vectors' bytes."""


def drawn(found: Sequence[Measured], *, title: str, wanted: float) -> bytes:
    """Return a PNG: queries per second over bytes per vector, and the recall of each kind.

    Args:
        found: the kinds.
        title: says which vectors.
        wanted: the recall that was asked for; kinds that do not reach it are drawn hollow.
    """
    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for entry in found:
        size = max(entry.bytes_per_vector or entry.mapped_bytes_per_vector, _LEAST_BYTES)
        axes.scatter(size, entry.queries_per_second, s=70, facecolors="C0" if entry.enough else "none", edgecolors="C0")
        axes.annotate(
            f"{entry.kind}\n{entry.recall:.3f}", (size, entry.queries_per_second), xytext=(7, 5), textcoords="offset points", fontsize=8
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="bytes per vector of what is searched (flat: its exact vectors)",
        ylabel="queries/s of one thread",
    )
    axes.margins(0.2)
    axes.set_title(f"{title}\nnumbers: recall@10; hollow: below {wanted:g}", fontsize=10)
    axes.grid(visible=True, which="both", alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
