"""What a section asks of the tiles of a set, checked before any of them is embedded."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayjobs.errors import ConfigError
from rayjobs.geo import BoolArray, IntArray
from rayjobs.label import oracle
from rayjobs.label.known import numbered
from rayjobs.tiles.table import read_tiles

if TYPE_CHECKING:
    from rayjobs.label.section import LabelSection
    from rayjobs.labels.taxonomy import Taxonomy
    from rayjobs.storage import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What follows from a section, a taxonomy and tiles. Arrays are in the order of the tiles' ids, as an embedding table is."""

    tile_ids: list[str]
    """Sorted."""
    classes: tuple[str, ...]
    """Of the taxonomy."""
    sought: str
    """The class sought."""
    knows: dict[str, str]
    """Class of tiles, by id: what the oracle knows; empty where there is none."""
    truth: IntArray | None
    """(tiles,) the same as `knows`, by `numbered`; None where there is no oracle."""
    measured: BoolArray
    """(tiles,) whether the head is measured on it."""
    may_be_queued: BoolArray
    """(tiles,) whether people may be asked about it."""

    def tells_two_apart(self, labels: Mapping[str, str | None]) -> bool:
        """Whether labels, by tile id, are of two classes, so that a head can be trained."""
        ours = itertools.compress(self.tile_ids, self.may_be_queued.tolist())
        return len({labels[tile] for tile in ours if labels.get(tile) is not None}) > 1


def tiles_to_embed(source: Version, splits: Sequence[str] | None) -> pa.Table:
    """Return the tiles of a set that are embedded, sorted by id: those of some splits (None: all)."""
    tiles = read_tiles(source.read("tiles.parquet"))
    tiles = tiles if splits is None else tiles.filter(pc.is_in(tiles["split"], pa.array(list(splits), pa.string())))
    return tiles.sort_by("tile_id")


def asked_of(settings: LabelSection, taxonomy: Taxonomy, tiles: pa.Table) -> Asked:
    """Return what a section asks of tiles.

    Args:
        settings: the section.
        taxonomy: whose labels are given.
        tiles: sorted by id, with `tile_id`, `split` and `label`.

    Raises:
        ConfigError: the section asks for what the taxonomy, the tiles or the oracle have not.
    """
    classes = tuple(one.name for one in taxonomy.classes)
    sought = settings.sought or classes[0]
    if sought not in classes:
        raise ConfigError(f"label.sought: taxonomy {taxonomy.name} has no class {sought!r}, but {', '.join(classes)}")
    measured, may_be_queued = _parts(settings, np.array(tiles["split"].to_pylist(), object))
    knows = oracle.answers(settings, tiles, classes, sought)
    tile_ids: list[str] = tiles["tile_id"].to_pylist()
    return Asked(
        tile_ids=tile_ids,
        classes=classes,
        sought=sought,
        knows=knows,
        truth=numbered(tile_ids, knows, classes) if knows else None,
        measured=measured,
        may_be_queued=may_be_queued,
    )


def _parts(settings: LabelSection, split: np.ndarray[tuple[int], np.dtype[np.object_]]) -> tuple[BoolArray, BoolArray]:
    """Return (tiles,) which tiles are measured on, and about which people may be asked. Raises `ConfigError`: about none."""
    measured = split == settings.measured if settings.measured else np.zeros(len(split), bool)
    asked = ~measured if settings.splits is None else ~measured & np.isin(split, list(settings.splits))
    if not asked.any():
        raise ConfigError("no embedded tile may be labelled; widen label.splits, label.measured or index.splits")
    return measured, asked
