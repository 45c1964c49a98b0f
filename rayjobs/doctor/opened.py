"""An index version as it is looked at: what of it can be opened, what is damaged, and a sample of its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.errors import DamagedError, IndexCorruptError, NotFoundError
from rayjobs.retrieval.kinds import sample_rows
from rayjobs.retrieval.manifest import IndexManifest, read_tombstones
from rayjobs.retrieval.segments import Segment, load_segment, load_table
from rayjobs.storage import Artefact, Version
from rayjobs.tiles.chips import Chip, read_chips, shard_name

if TYPE_CHECKING:
    from pathlib import Path

    from rayjobs.retrieval.metadata import Metadata

Array = np.ndarray[Any, Any]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

_DRAWN = 4096
"""Tiles of which those are taken whose pixels lie together."""
_SHARDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Some tiles of an index."""

    segment: Rows
    """(n,) number of the segment among those that were opened."""
    row: Rows
    """(n,) row within it."""
    vectors: Vectors
    """(n, dim) as the index holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What of an index version can be opened."""

    version: Version
    manifest: IndexManifest
    segments: tuple[Segment, ...]
    tables: tuple[Metadata, ...]
    """What is known of the segments' rows, in their order."""
    alive: tuple[Rows, ...]
    """Rows of each segment that are not deleted."""
    damage: tuple[str, ...]
    """What is wrong with files; the segments that they belong to are left out."""

    @property
    def tiles(self) -> int:
        """Tiles that can be found, of the segments that were opened."""
        return sum(map(len, self.alive))

    def drawn(self, count: int, *, seed: int = 0) -> Tiles:
        """Return some tiles, drawn evenly from all segments; all where there are fewer."""
        return self._taken(sample_rows(self.tiles, count, seed=seed))

    def _taken(self, numbers: Rows) -> Tiles:
        ends = np.cumsum([len(rows) for rows in self.alive])
        segment = np.searchsorted(ends, numbers, side="right").astype(np.int64)
        row = np.concatenate(self.alive)[numbers]
        parts = [self.segments[one].vectors_of(row[segment == one]) for one in np.unique(segment)]
        return Tiles(segment=segment, row=row, vectors=np.concatenate(parts))

    def known(self, tiles: Tiles, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return some columns of tiles, in their order. Raises `IndexCorruptError` where a segment lacks one."""
        for table in self.tables:
            if absent := [name for name in columns if name not in table.columns.names]:
                raise IndexCorruptError(f"the index does not say {', '.join(absent)} of its tiles; publish it again with `rayjobs index`")
        parts = [self.tables[one].take(tiles.row[tiles.segment == one], columns=columns) for one in np.unique(tiles.segment)]
        return [known for part in parts for known in part.to_pylist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Pixels of some tiles, and what the index holds of them."""

    chips: list[Chip]
    vectors: Vectors
    """(n, dim) stored, in the order of `chips`."""
    band_std: Array
    """(bands,) of the set that most of them come from."""


def open_index(version: Version, manifest: IndexManifest, cache: Path) -> Opened:
    """Read every file of a version, compare it with its digest, and open what is whole.

    Args:
        version: the index version.
        manifest: its manifest.
        cache: folder for copies of what lies in a bucket, as large as the index.
    """
    damage: list[str] = []
    pairs: list[tuple[Segment, Metadata]] = []
    for entry in manifest.segments:
        try:
            pairs.append((load_segment(version, entry, manifest, cache), load_table(version, entry, cache)))
        except (IndexCorruptError, NotFoundError, DamagedError) as error:
            damage.append(str(error))
    of_segments = tuple(f"{entry.name}." for entry in manifest.segments)
    for file in version.files:
        if not file.name.startswith(of_segments):
            damage += _damage_of(version, file.name)
    try:
        dead: tuple[str, ...] = read_tombstones(version, manifest)
    except (IndexCorruptError, NotFoundError, DamagedError) as error:
        damage += [] if str(error) in damage else [str(error)]
        dead = ()
    alive = [np.setdiff1d(np.arange(table.rows), table.rows_of(dead)) for _, table in pairs]
    return Opened(
        version=version,
        manifest=manifest,
        segments=tuple(segment for segment, _ in pairs),
        tables=tuple(table for _, table in pairs),
        alive=tuple(alive),
        damage=tuple(damage),
    )


def _damage_of(version: Version, name: str) -> list[str]:
    try:
        version.read(name)
    except (NotFoundError, DamagedError) as error:
        return [str(error)]
    return []


def pixels_of(opened: Opened, count: int) -> Pixels:
    """Return the pixels of some tiles, out of a few shards from all over the index.

    Raises:
        StorageError: a set is gone, or damaged.
        IndexCorruptError: the index does not say where its tiles' pixels are, or says it wrongly.
    """
    tiles = opened.drawn(_DRAWN)
    known = opened.known(tiles, ("tile_id", "set", "shard"))
    groups: dict[tuple[str, int], list[int]] = {}
    for number, one in enumerate(known):
        groups.setdefault((one["set"], one["shard"]), []).append(number)
    names = sorted(groups)
    chosen = [names[place] for place in np.unique(np.linspace(0, len(names) - 1, _SHARDS).round().astype(int))]
    chips: list[Chip] = []
    wanted: dict[str, int] = {}
    for name in chosen:
        wanted |= {known[number]["tile_id"]: number for number in groups[name][: -(-count // len(chosen))]}
        source = _set_of(opened, name[0])
        chips += read_chips(source.read(shard_name(name[1])), wanted.keys() & {known[number]["tile_id"] for number in groups[name]})
    if len(chips) < len(wanted):
        raise IndexCorruptError(
            f"{len(wanted) - len(chips)} of {len(wanted)} tiles are not in the sets that the index names; "
            "publish it again with `rayjobs index`"
        )
    rows = np.array([wanted[chip.tile_id] for chip in chips], np.int64)
    return Pixels(chips=chips, vectors=tiles.vectors[rows], band_std=np.array(_set_of(opened, chosen[0][0]).manifest["band_std"]))


def _set_of(opened: Opened, named: str) -> Version:
    name, _, version = named.partition("/")
    return Artefact(opened.version.store, "sets", name).at(version)
