"""Stripes: whether tiles are alike because they stand in one row, or column, of a scene's grid of tiles, and not for what they show.

The statistic is an intraclass correlation. From each tile's vector the mean of the two beside it across the row is taken, which takes
away what the landscape makes alike over several rows. What is left of two tiles of one row that stand far apart has, in a landscape,
nothing in common; where rows differ as such (lines of a detector, seams of a mosaic, edges of strips), it has. The correlation is the
share of what is left that the whole row has in common: 0 for a landscape, 1 where rows alone decide.

The null: columns are put into narrow groups, and each group is shifted along itself by a random number of tiles, round its end. That
leaves each group's landscape as it is, and all that is alike over a few columns, but no row is one row any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]

GROUP = 3
"""Columns that are shifted together. Pairs within a group and of groups side by side do not count."""
LEAST_ROWS, LEAST_COLUMNS = 8, 12
_SHIFTS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The tiles of one scene."""

    vectors: Array
    """(rows, columns, dim)."""
    there: Array
    """(rows, columns) bool: True where there is a tile."""

    @property
    def turned(self) -> Grid:
        """The same with columns as rows."""
        return Grid(vectors=self.vectors.swapaxes(0, 1), there=self.there.T)


@dataclass(frozen=True, slots=True, kw_only=True)
class Striping:
    """How much rows have in common."""

    share: float
    """Intraclass correlation."""
    chance: float
    """The same after shifts: the mean of all."""
    p: float
    """Share of shifts, this one among them, that have as much in common."""
    tiles: int
    """That were compared with those beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    sums: Array
    """(groups, rows, dim) of what is left of tiles."""
    counts: Array
    """(groups, rows) tiles."""
    energy: float
    """Sum of squares of what is left."""


def striping(grids: Sequence[Grid], *, seed: int = 0) -> Striping | None:
    """Measure the rows of some scenes together; None where they are too few to tell."""
    groups = [_grouped(grid) for grid in grids if grid.there.shape[0] >= LEAST_ROWS and grid.there.shape[1] >= LEAST_COLUMNS]
    tiles, energy = sum(int(one.counts.sum()) for one in groups), sum(one.energy for one in groups)
    if tiles < LEAST_ROWS * LEAST_COLUMNS // 2 or energy <= 0:
        return None
    rng = np.random.default_rng(seed)
    still = [np.zeros(len(one.counts), np.int64) for one in groups]
    shifts = [[rng.integers(0, one.counts.shape[1], len(one.counts)) for one in groups] for _ in range(_SHIFTS)]
    found, *others = (_in_common(groups, moved, energy / tiles) for moved in (still, *shifts))
    if not np.isfinite(found):
        return None
    chance = np.array(others)
    return Striping(share=found, chance=float(np.nanmean(chance)), p=float((1 + (chance >= found).sum()) / (1 + len(chance))), tiles=tiles)


def left_over(grid: Grid) -> tuple[Array, Array]:
    """Return vectors without the mean of the two beside each across the row, and where there are all three: (rows, columns, dim), bool."""
    there = np.zeros_like(grid.there)
    there[1:-1] = grid.there[1:-1] & grid.there[:-2] & grid.there[2:]
    left = np.zeros(grid.vectors.shape)
    left[1:-1] = grid.vectors[1:-1] - (grid.vectors[:-2] + grid.vectors[2:]) / 2
    left[~there] = 0
    return left, there


def _grouped(grid: Grid) -> _Groups:
    left, there = left_over(grid)
    starts = np.arange(0, left.shape[1], GROUP)
    sums = np.add.reduceat(left, starts, axis=1).swapaxes(0, 1)
    counts = np.add.reduceat(there.astype(np.int64), starts, axis=1).T
    return _Groups(sums=sums, counts=counts, energy=float((left**2).sum()))


def _in_common(groups: Sequence[_Groups], shifts: Sequence[Array], energy: float) -> float:
    """Return the mean product of what is left of two tiles of a row, of groups that are not neighbours, over the energy."""
    products = pairs = 0.0
    for one, moved in zip(groups, shifts, strict=True):
        rows = (np.arange(one.counts.shape[1]) + moved[:, None]) % one.counts.shape[1]
        number = np.arange(len(moved))[:, None]
        products += _apart(one.sums[number, rows])
        pairs += _apart(one.counts[number, rows][:, :, None].astype(np.float64))
    return products / pairs / energy if pairs else float("nan")


def _apart(values: Array) -> float:
    """Return the sum over rows of the products of all pairs of groups that are not neighbours: (groups, rows, dim)."""
    whole = (values.sum(axis=0) ** 2).sum()
    return float(whole - (values**2).sum() - 2 * (values[1:] * values[:-1]).sum()) / 2
