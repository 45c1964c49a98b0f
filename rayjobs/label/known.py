"""What a round knows: the tiles, their embeddings, and what has been said of them. Arrays; no storage, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from rayjobs.errors import ConfigError
from rayjobs.geo import BoolArray, IntArray
from rayjobs.labels.acquisition.diversity import Vectors

UNSURE, NOTHING = -1, -2
"""In place of a class: somebody looked and could not tell; nobody has said anything."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """All embedded tiles, sorted by id."""

    table: pa.Table
    """The tiles' columns."""
    vectors: Vectors
    """(tiles, dim) float32."""
    classes: tuple[str, ...]
    """Of the taxonomy."""
    sought: int
    """Place in `classes` of the class sought."""
    said: IntArray
    """(tiles,) class of each, `UNSURE` or `NOTHING`."""
    may_be_queued: BoolArray
    """(tiles,) whether people may be asked about it."""
    truth: IntArray
    """(tiles,) class of tiles that are measured on, and negative for all others."""

    @cached_property
    def tile_ids(self) -> list[str]:
        """Their ids."""
        found: list[str] = self.table["tile_id"].to_pylist()
        return found

    @property
    def labelled(self) -> BoolArray:
        """(tiles,) whether it has a class and trains."""
        return np.asarray((self.said >= 0) & self.may_be_queued)

    @property
    def left(self) -> IntArray:
        """Indices of tiles that can be queued: nobody has said anything of them."""
        return np.flatnonzero(self.may_be_queued & (self.said == NOTHING))

    @property
    def counts(self) -> dict[str, int]:
        """Tiles of each class that train, by its name."""
        found = np.bincount(self.said[self.labelled], minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))

    def trained_on(self) -> str:
        """Return what the labels that train hash to: which tiles, and the class of each."""
        labels = [(self.tile_ids[place], self.classes[self.said[place]]) for place in np.flatnonzero(self.labelled).tolist()]
        return hashlib.sha256(repr(labels).encode()).hexdigest()[:12]

    def digest(self) -> str:
        """Return what all of it hashes to, but for the vectors, which the version of the embedding table names."""
        digest = hashlib.sha256(repr((self.classes, self.sought)).encode())
        for array in (self.said, self.may_be_queued, self.truth):
            digest.update(array.tobytes())
        return digest.hexdigest()


def numbered(tile_ids: list[str], labels: Mapping[str, str | None], classes: tuple[str, ...]) -> IntArray:
    """Return (tiles,) the class of each by its place, `UNSURE` where its label is None, `NOTHING` where it has none.

    Raises:
        ConfigError: a label is no class.
    """
    places: dict[str | None, int] = {None: UNSURE, **{name: place for place, name in enumerate(classes)}}
    unknown = sorted({str(label) for label in labels.values() if label not in places})
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is no class of the taxonomy, which has {', '.join(classes)}; correct it, or name what is sought "
            "with label.oracle_class"
        )
    return np.array([places[labels[tile]] if tile in labels else NOTHING for tile in tile_ids], np.int64)
