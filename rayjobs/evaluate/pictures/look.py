"""How all pictures of a report look: colours that colour-blind people tell apart, text taken as it is written, PNG out."""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    Image = np.ndarray[Any, np.dtype[np.uint8]]
    """(height, width, 3) red, green, blue."""

DPI = 120
INK = "#222222"
FAINT = "#b8b8b8"
BLUE, VERMILLION = "#0072b2", "#d55e00"

COLOURS = (BLUE, VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c2a")
"""The colours of Okabe and Ito (2008), a brown in place of their yellow, which is too pale for dots on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_LONGEST = 24


def mark(number: int) -> tuple[str, str]:
    """Return colour and marker of the n-th class: 49 pairs, the first seven of which differ in both; then they repeat."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


DISTINCT = len(COLOURS) * len(MARKERS)
"""Classes that `mark` tells apart."""


def plain(text: str, longest: int = _LONGEST) -> str:
    """Return a name on one line, without what cannot be printed, and cut to `longest` characters."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split()) or "(no name)"
    return line if len(line) <= longest else line[: longest - 1] + "…"


@contextmanager
def look() -> Iterator[None]:
    """Draw the block's figures alike. A dollar in a name is a dollar, and a letter that the font lacks is a box, not a warning."""
    settings = {
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "text.parse_math": False,
        "text.color": INK,
        "axes.edgecolor": "#888888",
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "svg.fonttype": "none",
    }
    with mpl.rc_context(settings), warnings.catch_warnings():  # type: ignore[arg-type]  # keys are a literal type that a dict loses
        warnings.filterwarnings("ignore", message=r"Glyph \d+", category=UserWarning)
        yield


def png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Return a figure as PNG, cropped to what is drawn, equal for equal figures."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(
        buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.1, facecolor="white", metadata={"Software": None}
    )
    return buffer.getvalue()
