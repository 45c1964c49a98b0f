"""What is known of the training tiles apart from their pixels, and what follows from it: who is alike, who is no negative of whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from rayjobs.metric.mining import DistanceGuard, Guard, LabelGuard, OverlapGuard
from rayjobs.tiles.neighbours import Neighbourhood, distances, positive_pairs
from rayjobs.tiles.positions import positions, reaches, sizes
from rayjobs.tiles.table import read_geoparquet
from rayjobs.train.batches import ByGeography, ByLabel, Supervision

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


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
    labels: np.ndarray[Any, np.dtype[np.int64]]
    """(tiles,) class, numbered from 0; -1 where unknown."""

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max(initial=-1)) + 1


def training_tiles(source: Version) -> pa.Table:
    """Return the rows of the training split, sorted by tile id."""
    tiles = read_geoparquet(source.read("tiles.parquet"))
    return tiles.filter(pc.equal(tiles["split"], "train")).sort_by("tile_id")


def ground_of(tiles: pa.Table) -> Ground:
    """Return what is known of tiles apart from their pixels."""
    classes = sorted({label for label in tiles["label"].to_pylist() if label is not None})
    code = {label: number for number, label in enumerate(classes)} | {None: -1}
    return Ground(
        tile_ids=tiles["tile_id"].to_pylist(),
        positions=positions(tiles),
        sizes=sizes(tiles),
        reaches=reaches(tiles),
        labels=np.array([code[label] for label in tiles["label"].to_pylist()], np.int64),
    )


def supervise(experiment: Experiment, ground: Ground) -> Supervision:
    """Return what says which tiles are alike.

    Raises:
        TrainingError: nothing is.
    """
    if experiment.train.supervision == "labels":
        return ByLabel(ground.labels)
    tiles = experiment.tiles
    pairs = positive_pairs(ground.positions, ground.sizes, tiles.min_pos_dist, tiles.max_pos_dist)
    return ByGeography(Neighbourhood.from_pairs(pairs, len(ground.tile_ids)))


def guards_of(experiment: Experiment, ground: Ground) -> list[Guard]:
    """Return the mining guards that the experiment switches on, in the order in which they are asked."""
    mining, tiles = experiment.mining, experiment.tiles
    guards: list[Guard] = []
    if mining.overlap:
        guards.append(OverlapGuard(ground.positions, ground.reaches))
    if mining.distance:
        guards.append(DistanceGuard(ground.positions, ground.sizes, min_dist=tiles.min_neg_dist, max_dist=tiles.max_neg_dist))
    if mining.label:
        guards.append(LabelGuard(ground.labels))
    return guards


def forbidden_pairs(
    experiment: Experiment, ground: Ground, first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (n, m) bool: True where two tiles are no negatives of each other, being too near (or, with max_neg_dist, too far).

    Args:
        experiment: its distances.
        ground: of the training tiles.
        first: (n,) indices of tiles.
        second: (m,) indices of tiles.
    """
    tiles = experiment.tiles
    nearest = max(1.0, tiles.min_neg_dist) if experiment.train.supervision == "geography" else 1.0
    distance = distances(ground.positions, ground.sizes, first[:, None], second[None, :])
    forbidden: np.ndarray[Any, np.dtype[np.bool_]] = distance < nearest
    if tiles.max_neg_dist is not None and experiment.train.supervision == "geography":
        forbidden |= distance > tiles.max_neg_dist
    return forbidden
