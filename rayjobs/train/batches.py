"""Which tiles meet in a batch. Arithmetic on indices: knows no pixels, no model and no Ray.

The batches of an epoch are a function of seed, epoch and mined table, the same on every worker and after every restart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.spatial

from rayjobs.errors import TrainingError
from rayjobs.metric.guards import ROUNDING, Fractions, shared_proportion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayjobs.tiles.neighbours import Neighbourhood

IntArray = np.ndarray[Any, np.dtype[np.int64]]

NOBODY: IntArray = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The batches of one epoch."""

    members: IntArray
    """(steps, batch) index of each tile among the training tiles."""
    groups: IntArray
    """(steps, batch) what each tile is alike with: tiles of equal numbers are positives, in this batch and in any other."""
    clusters: IntArray | None = None
    """(steps, batch) cluster of each tile, where clusters of the training set plan the batches."""
    joined_share: float | None = None
    """Of the places kept for mined negatives, the share that one took: below 1 where anchors have too few; None where none are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardTiles:
    """What mining found for each training tile; see `rayjobs.train.mine`."""

    negatives: IntArray
    """(tiles, negatives) most similar first; -1 where there are fewer."""
    positives: IntArray
    """(tiles, positives) least similar first; -1 where there are fewer; no columns where none were mined."""


class Supervision(Protocol):
    """Says which tiles are alike."""

    @property
    def anchors(self) -> IntArray:
        """Indices of the tiles that have a tile alike."""

    def draw_anchors(self, rng: np.random.Generator, steps: int, groups: int) -> IntArray:
        """Draw the anchors of one epoch: (steps, groups)."""

    def group_of(self, rng: np.random.Generator, anchor: int, size: int, partners: IntArray = NOBODY) -> IntArray:
        """Return `size` tiles that are alike, the anchor first, then one of `partners` (tiles alike with it) if there are any."""

    def known_positives(self, anchor: int, most: int) -> IntArray:
        """Return tiles alike with one, ascending, at most so many: of more, those that follow the anchor, so that each has others."""

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

    def draw_anchors(self, rng: np.random.Generator, steps: int, groups: int) -> IntArray:
        """Go through all anchors before any comes again."""
        return _in_turn(rng, self.anchors, steps, groups)

    def group_of(self, rng: np.random.Generator, anchor: int, size: int, partners: IntArray = NOBODY) -> IntArray:
        """Draw neighbours; they repeat where there are fewer than needed."""
        return _drawn(rng, anchor, self._near.of(anchor), size, partners)

    def known_positives(self, anchor: int, most: int) -> IntArray:
        """Return neighbours."""
        return _following(self._near.of(anchor), anchor, most)

    def number(self, anchor: int, count: int) -> int:  # noqa: ARG002  each place is its own kind
        """Each group is its own kind."""
        return count


class ByLabel:
    """Tiles of one class are alike; classes come equally often, however many tiles they have: batches of P classes x K tiles."""

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

    def draw_anchors(self, rng: np.random.Generator, steps: int, groups: int) -> IntArray:
        """Go through the classes in turn, each time in another order: the P classes of a batch differ as long as there are P."""
        return _of_classes_in_turn(rng, self._members, steps, groups)

    def group_of(self, rng: np.random.Generator, anchor: int, size: int, partners: IntArray = NOBODY) -> IntArray:
        """Draw tiles of the anchor's class."""
        others = self._members[int(self._labels[anchor])]
        return _drawn(rng, anchor, others[others != anchor], size, partners)

    def known_positives(self, anchor: int, most: int) -> IntArray:
        """Return tiles of the anchor's class."""
        others = self._members.get(int(self._labels[anchor]), NOBODY)
        return _following(others[others != anchor], anchor, most)

    def number(self, anchor: int, count: int) -> int:  # noqa: ARG002  two groups of one class are alike too
        """The group's number is its class."""
        return int(self._labels[anchor])


class ByView:
    """Versions of one tile are alike, as augmentation makes them; other tiles are not (Chen et al., SimCLR, 2020)."""

    def __init__(self, tiles: int) -> None:
        """Take the number of tiles."""
        self.anchors: IntArray = np.arange(tiles)

    def draw_anchors(self, rng: np.random.Generator, steps: int, groups: int) -> IntArray:
        """Go through all tiles before any comes again."""
        return _in_turn(rng, self.anchors, steps, groups)

    def group_of(self, rng: np.random.Generator, anchor: int, size: int, partners: IntArray = NOBODY) -> IntArray:  # noqa: ARG002  nothing is drawn
        """Return the tile as often as wanted."""
        return np.full(size, anchor, np.int64)

    def known_positives(self, anchor: int, most: int) -> IntArray:  # noqa: ARG002  it has none
        """Return nobody: no other tile is alike."""
        return NOBODY

    def number(self, anchor: int, count: int) -> int:  # noqa: ARG002  two groups of one tile are alike too
        """The group's number is its tile."""
        return anchor


class ByProportion:
    """Tiles that share most of their classes are alike; dominant classes come equally often, however many tiles they have.

    Whatever two tiles of a group are taken, they share at least `min_shared`. Tiles of two groups may share as much: that they are no
    negatives of each other is for `rayjobs.train.ground.forbidden_pairs` to say. Partners are looked for when they are needed, in a tree
    of the different mixtures, so that memory grows with the number of tiles alone.
    """

    def __init__(self, fractions: Fractions, *, min_shared: float) -> None:
        """Take what the tiles show.

        Args:
            fractions: (tiles, classes) share of each class, 0 throughout where unknown.
            min_shared: least `shared_proportion` of two tiles that are alike.

        Raises:
            TrainingError: no two tiles of one dominant class are alike, or only those of one class are.
        """
        known = np.flatnonzero(fractions.any(axis=1))
        self._mixtures, of_tile, counts = np.unique(fractions[known], axis=0, return_inverse=True, return_counts=True)
        of_tile = of_tile.ravel()
        self._of_tile = np.full(len(fractions), -1, np.int64)
        self._of_tile[known] = of_tile
        self._tiles = known[np.argsort(of_tile, kind="stable")]
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._min_shared = min_shared - ROUNDING
        self._tree = scipy.spatial.cKDTree(self._mixtures, balanced_tree=False) if len(known) else None
        self.anchors: IntArray = known[self._have_partners(counts)[of_tile]]
        dominant = fractions[self.anchors].argmax(axis=1) if len(self.anchors) else self.anchors
        self._members = {int(name): self.anchors[dominant == name] for name in np.unique(dominant)}
        if len(self._members) <= 1:
            raise TrainingError(
                f"of {len(known)} training tiles with proportions, {len(self.anchors)} share {min_shared:g} with another, in "
                f"{len(self._members)} dominant classes, and two are needed; lower train.min_pos_shared, or label more tiles"
            )

    @property
    def _reach(self) -> float:
        """Greatest sum of differences of mixtures that are alike: of shares that sum to 1, two share 1 - sum |one - other| / 2."""
        return 2 * (1 - self._min_shared)

    def _have_partners(self, counts: IntArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Tell which of the mixtures, of so many tiles each, are alike with another or have several tiles."""
        found: np.ndarray[Any, np.dtype[np.bool_]] = counts > 1
        alone = np.flatnonzero(~found)
        if self._tree is not None and len(alone):
            apart, _ = self._tree.query(self._mixtures[alone], k=[2], p=1, distance_upper_bound=self._reach)  # the first is itself
            found[alone] = np.isfinite(np.ravel(apart))
        return found

    def _alike(self, anchor: int) -> IntArray:
        """Return all tiles alike with one, without itself."""
        if self._tree is None:
            return np.empty(0, np.int64)
        near = np.array(self._tree.query_ball_point(self._mixtures[self._of_tile[anchor]], self._reach, p=1), np.int64)
        first, count = self._offsets[near], self._offsets[near + 1] - self._offsets[near]
        places = np.arange(count.sum()) + np.repeat(first - (count.cumsum() - count), count)
        alike: IntArray = self._tiles[places[self._tiles[places] != anchor]]
        return alike

    def draw_anchors(self, rng: np.random.Generator, steps: int, groups: int) -> IntArray:
        """Go through the dominant classes in turn; see `ByLabel`."""
        return _of_classes_in_turn(rng, self._members, steps, groups)

    def group_of(self, rng: np.random.Generator, anchor: int, size: int, partners: IntArray = NOBODY) -> IntArray:
        """Draw tiles one by one, each alike with all before it; they repeat where there are fewer than needed."""
        alike = self._alike(anchor)
        drawn: list[int] = []
        while len(drawn) < size - 1 and len(alike):
            drawn.append(int(rng.choice(alike if drawn or not len(partners) else partners)))
            shared = shared_proportion(self._mixtures[self._of_tile[alike]], self._mixtures[self._of_tile[drawn[-1]]])
            alike = alike[(shared >= self._min_shared) & (alike != drawn[-1])]
        again = rng.choice(drawn or [anchor], size - 1 - len(drawn))
        return np.array([anchor, *drawn, *again], np.int64)

    def known_positives(self, anchor: int, most: int) -> IntArray:
        """Return tiles whose mixture is alike."""
        if self._of_tile[anchor] < 0:
            return NOBODY
        return _following(np.sort(self._alike(anchor)), anchor, most)

    def number(self, anchor: int, count: int) -> int:  # noqa: ARG002  each mixture is its own kind
        """Each group is its own kind."""
        return count


def _drawn(rng: np.random.Generator, anchor: int, others: IntArray, size: int, partners: IntArray) -> IntArray:
    """Return a group of an anchor: first one of the partners, if there are any, then others, which repeat where there are too few."""
    if not len(partners) or size == 1:
        return np.concatenate([[anchor], rng.choice(others, size - 1, replace=len(others) < size - 1)])
    partner = rng.choice(partners)
    rest = others[others != partner] if len(others) > 1 else others
    return np.concatenate([[anchor, partner], rng.choice(rest, size - 2, replace=len(rest) < size - 2)])


def _following(alike: IntArray, anchor: int, most: int) -> IntArray:
    """Return at most so many of some tiles (ascending): of more, those that follow the anchor, the first after the last."""
    if len(alike) <= most:
        return alike
    begin = int(np.searchsorted(alike, anchor))
    return np.sort(np.take(alike, np.arange(begin, begin + most), mode="wrap"))


def _in_turn(rng: np.random.Generator, anchors: IntArray, steps: int, groups: int) -> IntArray:
    """Draw (steps, groups) of some tiles, all before any comes again."""
    rounds = -(-steps * groups // len(anchors))
    return np.concatenate([rng.permutation(anchors) for _ in range(rounds)])[: steps * groups].reshape(steps, groups)


def _of_classes_in_turn(rng: np.random.Generator, members: Mapping[int, IntArray], steps: int, groups: int) -> IntArray:
    """Draw (steps, groups) tiles, each class as often as any other, in the epoch and, but for one, in each batch.

    Args:
        rng: seeded.
        members: tiles of each class.
        steps: batches.
        groups: tiles drawn for each: of different classes, if there are enough.
    """
    classes = np.array(list(members))
    drawn: list[int] = []
    while len(drawn) < steps * groups:
        begun = drawn[len(drawn) - len(drawn) % groups :]  # of the batch that the last round left incomplete
        drawn += sorted(rng.permutation(classes).tolist(), key=begun.count)
    return np.array([rng.choice(members[name]) for name in drawn[: steps * groups]]).reshape(steps, groups)


def plan_epoch(
    supervision: Supervision,
    rng: np.random.Generator,
    *,
    steps: int,
    batch: int,
    group: int,
    mined: HardTiles | None,
    mined_share: float,
    joined: int = 1,
    before: int = 0,
) -> EpochPlan:
    """Plan the batches of one epoch.

    Args:
        supervision: says which tiles are alike.
        rng: seeded with the run's seed and the epoch.
        steps: batches.
        batch: tiles per batch.
        group: tiles per group of tiles that are alike: K of P = batch / K groups.
        mined: what was mined of each training tile; None before the first mining.
        mined_share: of the anchors, how many are joined in the batch by their mined negatives; and of the groups, in how many one of the
            mined positives joins its anchor, where such were mined. The same anchors come first for both.
        joined: how many of its mined negatives join an anchor that is joined: each takes the place of another anchor, so that of P groups
            int(P x share / (1 + share x joined)) have anchors that are joined, and `joined` times as many have mined ones.
        before: steps of earlier epochs, so that groups of different batches have different numbers.
    """
    per_batch = batch // group
    hosts = int(per_batch * mined_share / (1 + mined_share * joined)) if mined is not None else 0
    paired = int(per_batch * mined_share) if mined is not None else 0
    drawn = supervision.draw_anchors(rng, steps, per_batch)
    eligible = np.zeros(int(supervision.anchors.max()) + 1, bool)
    eligible[supervision.anchors] = True
    members = np.empty((steps, per_batch, group), np.int64)
    groups = np.empty((steps, per_batch), np.int64)
    placed = 0
    for step in range(steps):
        anchors = drawn[step]
        if mined is not None:
            anchors, taken = _join_mined(anchors, mined.negatives, eligible, (hosts, joined), rng)
            placed += taken
        for position, anchor in enumerate(anchors.tolist()):
            partners = NOBODY if mined is None or position >= paired else mined.positives[anchor]
            members[step, position] = supervision.group_of(rng, anchor, group, partners[partners >= 0])
            groups[step, position] = supervision.number(anchor, (before + step) * per_batch + position)
    share = placed / (steps * hosts * joined) if steps * hosts else None
    return EpochPlan(members=members.reshape(steps, batch), groups=np.repeat(groups, group, axis=1), joined_share=share)


def dealt(plan: EpochPlan, group: int) -> EpochPlan:
    """Order the tiles of each batch so that neighbours are of different groups.

    Workers and micro-batches take consecutive tiles, and batch norms see those alone: were they of one or two groups, what tells groups
    apart would be what the norm takes away, and nothing would be learned.

    Args:
        plan: group after group.
        group: tiles of each.
    """
    order = np.arange(plan.members.shape[1]).reshape(-1, group).T.ravel()
    clusters = None if plan.clusters is None else plan.clusters[:, order]
    return replace(plan, members=plan.members[:, order], groups=plan.groups[:, order], clusters=clusters)


def _join_mined(
    anchors: IntArray, mined: IntArray, eligible: np.ndarray[Any, Any], places: tuple[int, int], rng: np.random.Generator
) -> tuple[IntArray, int]:
    """Replace the last anchors by mined negatives of the first ones, so that hard pairs meet in one batch.

    Args:
        anchors: (groups,) of the batch.
        mined: (tiles, negatives) of `HardTiles`.
        eligible: (tiles,) bool, True for those that may be anchors.
        places: how many anchors are joined, and by how many mined negatives each.
        rng: seeded.

    Returns:
        the anchors, and how many of them are mined negatives.
    """
    hosts, joined = places
    result, first, placed = anchors.copy(), len(anchors) - hosts * joined, 0
    present = set(anchors[:first].tolist())
    for host in range(hosts):
        admitted = [tile for tile in mined[anchors[host]].tolist() if 0 <= tile < len(eligible) and eligible[tile]]
        for place in range(first + host * joined, first + (host + 1) * joined):
            candidates = [tile for tile in admitted if tile not in present]
            if candidates:
                result[place] = rng.choice(candidates)
                present.add(int(result[place]))
                placed += 1
    return result, placed
