"""Which tiles meet in a batch. Arithmetic on indices: knows no pixels, no model and no Ray.

The batches of an epoch are a function of seed, epoch and mined table, the same on every worker and after every restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rayjobs.errors import TrainingError

if TYPE_CHECKING:
    from rayjobs.tiles.neighbours import Neighbourhood

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The batches of one epoch."""

    members: IntArray
    """(steps, batch) index of each tile among the training tiles."""
    groups: IntArray
    """(steps, batch) what each tile is alike with: tiles of equal numbers are positives, in this batch and in any other."""
    clusters: IntArray | None = None
    """(steps, batch) cluster of each tile, where clusters of the training set plan the batches."""


class Supervision(Protocol):
    """Says which tiles are alike."""

    @property
    def anchors(self) -> IntArray:
        """Indices of the tiles that have a tile alike."""

    def draw_anchors(self, rng: np.random.Generator, count: int) -> IntArray:
        """Draw `count` anchors for one epoch."""

    def group_of(self, rng: np.random.Generator, anchor: int, size: int) -> IntArray:
        """Return `size` tiles that are alike, the anchor first."""

    def number(self, anchor: int, count: int) -> int:
        """Return the group's number, given its anchor and how many groups the run has had before."""


class ByGeography:
    """Near tiles are alike (Jean et al. 2019, Tile2Vec)."""

    def __init__(self, near: Neighbourhood) -> None:
        """Take each tile's neighbours on the ground.

        Raises:
            TrainingError: no tile has one.
        """
        self._near = near
        self.anchors: IntArray = np.flatnonzero(np.diff(near.offsets) > 0)
        if not len(self.anchors):
            raise TrainingError(
                "no training tile has another between tiles.min_pos_dist and tiles.max_pos_dist; widen them, or sample on a grid"
            )

    def draw_anchors(self, rng: np.random.Generator, count: int) -> IntArray:
        """Go through all anchors before any comes again."""
        rounds = -(-count // len(self.anchors))
        return np.concatenate([rng.permutation(self.anchors) for _ in range(rounds)])[:count]

    def group_of(self, rng: np.random.Generator, anchor: int, size: int) -> IntArray:
        """Draw neighbours; they repeat where there are fewer than needed."""
        near = self._near.of(anchor)
        drawn = rng.choice(near, size - 1, replace=len(near) < size - 1)
        return np.concatenate([[anchor], drawn])

    def number(self, anchor: int, count: int) -> int:  # noqa: ARG002  each place is its own kind
        """Each group is its own kind."""
        return count


class ByLabel:
    """Tiles of one class are alike; classes come equally often, however many tiles they have."""

    def __init__(self, labels: IntArray) -> None:
        """Take each tile's class, -1 where unknown.

        Raises:
            TrainingError: fewer than two classes have two tiles.
        """
        self._labels = labels
        members = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])}
        self._members = {label: tiles for label, tiles in members.items() if len(tiles) > 1}
        if len(self._members) <= 1:
            raise TrainingError(f"labels of {len(self._members)} classes with two training tiles cannot be told apart; label more tiles")
        self.anchors: IntArray = np.concatenate(list(self._members.values()))

    def draw_anchors(self, rng: np.random.Generator, count: int) -> IntArray:
        """Go through the classes in turn, each time in another order."""
        classes = np.array(list(self._members))
        rounds = -(-count // len(classes))
        order = np.concatenate([rng.permutation(classes) for _ in range(rounds)])[:count]
        return np.array([rng.choice(self._members[int(label)]) for label in order])

    def group_of(self, rng: np.random.Generator, anchor: int, size: int) -> IntArray:
        """Draw tiles of the anchor's class."""
        others = self._members[int(self._labels[anchor])]
        others = others[others != anchor]
        return np.concatenate([[anchor], rng.choice(others, size - 1, replace=len(others) < size - 1)])

    def number(self, anchor: int, count: int) -> int:  # noqa: ARG002  two groups of one class are alike too
        """The group's number is its class."""
        return int(self._labels[anchor])


def plan_epoch(
    supervision: Supervision,
    rng: np.random.Generator,
    *,
    steps: int,
    batch: int,
    group: int,
    mined: IntArray | None,
    mined_share: float,
    before: int = 0,
) -> EpochPlan:
    """Plan the batches of one epoch.

    Args:
        supervision: says which tiles are alike.
        rng: seeded with the run's seed and the epoch.
        steps: batches.
        batch: tiles per batch.
        group: tiles per group of tiles that are alike.
        mined: (tiles, negatives) hard negatives of each training tile, -1 where there are fewer; None before the first mining.
        mined_share: of the anchors, how many are joined in the batch by one of their mined negatives.
        before: steps of earlier epochs, so that groups of different batches have different numbers.
    """
    per_batch = batch // group
    joined = int(per_batch * mined_share / (1 + mined_share)) if mined is not None else 0
    drawn = supervision.draw_anchors(rng, steps * per_batch).reshape(steps, per_batch)
    eligible = np.zeros(int(supervision.anchors.max()) + 1, bool)
    eligible[supervision.anchors] = True
    members = np.empty((steps, per_batch, group), np.int64)
    groups = np.empty((steps, per_batch), np.int64)
    for step in range(steps):
        anchors = drawn[step]
        if mined is not None:
            anchors = _join_mined(anchors, mined, eligible, joined, rng)
        for position, anchor in enumerate(anchors.tolist()):
            members[step, position] = supervision.group_of(rng, anchor, group)
            groups[step, position] = supervision.number(anchor, (before + step) * per_batch + position)
    return EpochPlan(members=members.reshape(steps, batch), groups=np.repeat(groups, group, axis=1))


def _join_mined(anchors: IntArray, mined: IntArray, eligible: np.ndarray[Any, Any], joined: int, rng: np.random.Generator) -> IntArray:
    """Replace the last anchors by mined negatives of the first ones, so that hard pairs meet in one batch."""
    result = anchors.copy()
    present = set(anchors[: len(anchors) - joined].tolist())
    for position in range(joined):
        candidates = [
            tile for tile in mined[anchors[position]].tolist() if 0 <= tile < len(eligible) and eligible[tile] and tile not in present
        ]
        if candidates:
            chosen = int(rng.choice(candidates))
            result[len(anchors) - joined + position] = chosen
            present.add(chosen)
    return result
