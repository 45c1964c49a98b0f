"""When to stop: what further labels would still change, and how much of what is sought is left to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayjobs.geo import FloatArray, IntArray

_STABLE = 0.99
_WINDOW = 3
"""Bloodgood and Vijay-Shanker's bound, and the agreements that it is a mean of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What is known of the next round's worth."""

    agreement: float | None
    """Cohen's kappa of this head's classes and the last one's over all tiles; None where there is none before, or of the same labels."""
    stable: bool
    """Whether the mean of the last three agreements reaches .99."""
    expected_left: float
    """Tiles of the class sought among those without a label: the sum of their probabilities, as good as these are calibrated."""
    expected_recall: float
    """Share of the class sought that has its label, by that sum; 1 where there is none."""

    @property
    def words(self) -> str:
        """What to say to people."""
        left = f"about {self.expected_left:.0f} left to find ({self.expected_recall:.0%} found)"
        return f"predictions are stable: stop, unless you want those that are left; {left}" if self.stable else f"go on; {left}"


def advise(before: Sequence[float], agreement: float | None, left: FloatArray, found: int) -> Advice:
    """Say whether to stop, by stabilising predictions (Bloodgood and Vijay-Shanker, 2009).

    Args:
        before: agreements of earlier rounds, the latest last.
        agreement: of this round; see `Advice`.
        left: (tiles,) probability of the class sought of the tiles without a label.
        found: tiles that have the label sought.
    """
    known = [*before, *([] if agreement is None else [agreement])][-_WINDOW:]
    expected = float(left.sum())
    return Advice(
        agreement=agreement,
        stable=len(known) == _WINDOW and float(np.mean(known)) >= _STABLE,
        expected_left=expected,
        expected_recall=found / (found + expected) if found + expected else 1.0,
    )


def kappa(ours: IntArray, theirs: IntArray) -> float:
    """Return how far two labellings of the same tiles agree beyond chance (Cohen, 1960): 1 wholly, 0 as by chance.

    Both saying one and the same class of every tile is 0: it tells nothing of what further labels would change.

    Args:
        ours: (tiles,) classes.
        theirs: (tiles,) classes.
    """
    names = np.union1d(ours, theirs)
    by_chance = sum(float((ours == name).mean() * (theirs == name).mean()) for name in names)
    return 0.0 if by_chance >= 1 else (float((ours == theirs).mean()) - by_chance) / (1 - by_chance)
