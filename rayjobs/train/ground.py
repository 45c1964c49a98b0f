"""What is known of the training tiles apart from their pixels, and what follows from it: who is alike, who is no negative of whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial.distance import cdist

from rayjobs.errors import ConfigError, TrainingError
from rayjobs.metric.guards import (
    ROUNDING,
    BeyondPositivesGuard,
    DateGuard,
    DistanceGuard,
    Guard,
    LabelGuard,
    OverlapGuard,
    PlaceGuard,
    ProportionGuard,
    SceneGuard,
    SimilarityGuard,
)
from rayjobs.tiles import places
from rayjobs.tiles.neighbours import Neighbourhood, distances, positive_pairs
from rayjobs.tiles.positions import positions, reaches, sizes
from rayjobs.tiles.table import read_tiles
from rayjobs.train.batches import ByGeography, ByLabel, ByProportion, ByView, Supervision
from rayjobs.train.given_labels import labelled

if TYPE_CHECKING:
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version

IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Fractions = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is known of the training tiles apart from their pixels; rows sorted by tile id."""

    tile_ids: list[str]
    positions: FloatArray
    """(tiles, 3) as `rayjobs.tiles.positions`."""
    sizes: FloatArray
    """(tiles,) side of each tile, in the unit of `positions`."""
    reaches: FloatArray
    """(tiles,) from the centre of each tile to its farthest corner, likewise."""
    places: IntArray
    """(tiles,) place, numbered from 0: equal for tiles that show the same ground on whichever date."""
    scenes: IntArray
    """(tiles,) scene, numbered from 0."""
    dates: IntArray
    """(tiles,) day, numbered from 0; tiles of a scene without a date have one of their own."""
    labels: IntArray
    """(tiles,) class, numbered from 0; -1 where unknown."""
    fractions: Fractions
    """(tiles, classes of the label map) share of each class among the labelled pixels; 0 throughout where unknown, and no columns where the
    set has none."""

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max(initial=-1)) + 1

    def of(self, rows: IntArray) -> Ground:
        """Return the ground of some tiles alone: (these tiles,) their indices, ascending."""
        if len(rows) == len(self.tile_ids):
            return self
        return Ground(
            tile_ids=[self.tile_ids[row] for row in rows.tolist()],
            positions=self.positions[rows],
            sizes=self.sizes[rows],
            reaches=self.reaches[rows],
            places=self.places[rows],
            scenes=self.scenes[rows],
            dates=self.dates[rows],
            labels=self.labels[rows],
            fractions=self.fractions[rows],
        )


def training_tiles(source: Version, experiment: Experiment) -> pa.Table:
    """Return the rows of the training split that are in the pool, sorted by tile id.

    Raises:
        TrainingError: none is.
    """
    tiles = read_tiles(source.read("tiles.parquet"))
    tiles = labelled(tiles.filter(pc.equal(tiles["split"], "train")).sort_by("tile_id"), experiment)
    pool = experiment.train.pool
    if pool.everything:
        return tiles
    kept = tiles.take(_pooled(_classes(tiles, experiment), pool.per_class, pool.min_per_class))
    if not kept.num_rows:
        raise TrainingError(f"no class has train.pool.min_per_class {pool.min_per_class} training tiles; lower it, or sample more tiles")
    return kept


def target_tiles(target: Version) -> pa.Table:
    """Return the rows of the training split of the set that is adapted to, sorted by tile id.

    Raises:
        ConfigError: it has none.
    """
    tiles = read_tiles(target.read("tiles.parquet"))
    tiles = tiles.filter(pc.equal(tiles["split"], "train")).sort_by("tile_id")
    if not tiles.num_rows:
        raise ConfigError("the set of adaptation.target has no tile in its train split, and no others are shown; sample it with a share")
    return tiles


def _classes(tiles: pa.Table, experiment: Experiment) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (tiles,) the class by which tiles are pooled, -1 where unknown."""
    if experiment.train.supervision == "labels":
        return _numbered(tiles["label"])
    fractions = _fractions(tiles, experiment.tiles.min_label_coverage)
    classes = np.full(tiles.num_rows, -1, np.int64)
    known = fractions.any(axis=1)
    classes[known] = fractions[known].argmax(axis=1) if known.any() else -1
    return classes


def _pooled(classes: np.ndarray[Any, Any], most: int | None, fewest: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows of the pool, ascending; the first ones of each class, which is a choice by chance since tile ids are hashes."""
    of_class = [np.flatnonzero(classes == name) for name in np.unique(classes[classes >= 0])]
    return np.sort(np.concatenate([np.empty(0, np.int64), *(rows[:most] for rows in of_class if len(rows) >= fewest)]))


def ground_of(tiles: pa.Table, experiment: Experiment) -> Ground:
    """Return what is known of tiles apart from their pixels."""
    return Ground(
        tile_ids=tiles["tile_id"].to_pylist(),
        positions=positions(tiles),
        sizes=sizes(tiles),
        reaches=reaches(tiles),
        places=_numbered(tiles["place_id"]),
        scenes=_numbered(tiles["scene_id"]),
        dates=np.unique(places.dates(tiles), return_inverse=True)[1],
        labels=_numbered(tiles["label"]),
        fractions=_fractions(tiles, experiment.tiles.min_label_coverage),
    )


def _numbered(labels: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (tiles,) the position of each label among all, sorted; -1 where there is none."""
    names = sorted(set(labels.drop_null().to_pylist()))
    found = pc.index_in(labels, value_set=pa.array(names, labels.type)).fill_null(-1)
    return np.asarray(found.to_numpy(), np.int64)


def _fractions(tiles: pa.Table, min_coverage: float) -> Fractions:
    """Return `Ground.fractions`; of tiles that a label map covers less than `min_coverage`, they count as unknown."""
    rows = np.flatnonzero(tiles["label_coverage"].to_numpy() >= min_coverage)  # null is not a number here
    values = pc.list_flatten(tiles["label_fractions"].take(rows)).to_numpy()
    found = np.zeros((tiles.num_rows, len(values) // max(len(rows), 1)), np.float32)
    found[rows] = values.reshape(len(rows), found.shape[1])
    return found


def supervise(experiment: Experiment, ground: Ground) -> Supervision:
    """Return what says which tiles are alike.

    Raises:
        TrainingError: nothing is.
    """
    if experiment.train.supervision == "labels":
        return ByLabel(ground.labels)
    if experiment.train.supervision == "proportions":
        return ByProportion(ground.fractions, min_shared=experiment.train.min_pos_shared)
    if experiment.train.supervision == "views":
        return ByView(len(ground.tile_ids))
    tiles = experiment.tiles
    if experiment.train.supervision == "places":
        pairs = places.across_dates(ground.positions, ground.sizes, ground.dates, tiles.place_tolerance)
        remedy = "no training tile has its place on another date within tiles.place_tolerance; widen it, or sample all dates on one grid"
    else:
        pairs = positive_pairs(ground.positions, ground.sizes, tiles.min_pos_dist, tiles.max_pos_dist)
        remedy = "no training tile has another between tiles.min_pos_dist and tiles.max_pos_dist; widen them, or sample on a grid"
    if not len(pairs):
        raise TrainingError(remedy)
    return ByGeography(Neighbourhood.from_pairs(pairs, len(ground.tile_ids)))


def guards_of(experiment: Experiment, ground: Ground) -> list[Guard]:
    """Return the mining guards that the experiment switches on, in the order in which they are asked.

    Labels guard only what labels supervise: a training that is said to need none must not be told by them what is no negative.
    """
    mining, tiles, supervision = experiment.mining, experiment.tiles, experiment.train.supervision
    guards: list[Guard] = []
    if mining.place:
        guards.append(PlaceGuard(ground.places))
    if mining.date and supervision == "places":
        guards.append(DateGuard(ground.dates))
    if mining.overlap:
        guards.append(OverlapGuard(ground.positions, ground.reaches))
    if mining.distance:
        guards.append(DistanceGuard(ground.positions, ground.sizes, min_dist=tiles.min_neg_dist, max_dist=tiles.max_neg_dist))
    if mining.label and supervision == "proportions":
        guards.append(ProportionGuard(ground.fractions, max_shared=experiment.train.max_neg_shared))
    if mining.label and supervision == "labels":
        guards.append(LabelGuard(ground.labels))
    if mining.max_similarity is not None:
        guards.append(SimilarityGuard(most=mining.max_similarity))
    if mining.beyond_positives:
        guards.append(BeyondPositivesGuard())
    if mining.max_per_scene is not None:
        guards.append(SceneGuard(ground.scenes, most=mining.max_per_scene))
    return guards


def forbidden_pairs(
    experiment: Experiment, ground: Ground, first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (n, m) bool: True where two tiles are no negatives of each other.

    They are none if their centres lie within a tile size; for `geography`, if they are too near or (with `max_neg_dist`) too far; for
    `proportions`, if they share too much. For `views` none is forbidden.

    Args:
        experiment: its distances and shares.
        ground: of the training tiles.
        first: (n,) indices of tiles.
        second: (m,) indices of tiles.
    """
    tiles, supervision = experiment.tiles, experiment.train.supervision
    if supervision == "views":
        return np.zeros((len(first), len(second)), bool)
    nearest = max(1.0, tiles.min_neg_dist) if supervision == "geography" else 1.0
    distance = distances(ground.positions, ground.sizes, first[:, None], second[None, :])
    forbidden: np.ndarray[Any, np.dtype[np.bool_]] = distance < nearest
    if tiles.max_neg_dist is not None and supervision == "geography":
        forbidden |= distance > tiles.max_neg_dist
    if supervision == "proportions":
        forbidden |= _shared(ground.fractions[first], ground.fractions[second]) > experiment.train.max_neg_shared + ROUNDING
    return forbidden


def _shared(first: Fractions, second: Fractions) -> FloatArray:
    """Return (n, m) the proportion that tiles share, from min(a, b) = (a + b - |a - b|) / 2."""
    sums = first.sum(axis=1)[:, None] + second.sum(axis=1)[None, :]
    shared: FloatArray = (sums - cdist(first, second, "cityblock")) / 2
    return shared
