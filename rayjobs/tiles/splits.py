"""Which tiles train, which choose and which measure: splits that share no ground.

The globe is divided into square blocks, and each block belongs to one split by a hash of its own name, so that adding imagery never
moves a block. A tile belongs to the split of the blocks that it touches, if they agree; otherwise to none. Two tiles of different splits
therefore have no block in common, hence no ground, whatever their scenes, dates and projections.

Labelled images can be divided by class instead: then the splits share no class, which tells whether an encoder has learned to compare or
only to recognise (Musgrave et al., A metric learning reality check, 2020). Images cut from few observations are divided by these, and
imagery of several dates by these, whatever ground they share.

Where balance counts for more than that nothing ever moves, folds take the place of hashes: the largest block, scene, observation or class
is dealt first, each to the fold that has the fewest tiles.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from rayjobs.errors import ConfigError, NoTilesError
from rayjobs.geo import EARTH_RADIUS_M, BoolArray, FloatArray, IntArray, cells, cells_touched_by, grown
from rayjobs.tiles.section import SPLITS, SplitsSection

NO_SPLIT = -1
"""Code of tiles that belong to no split; other codes index `SPLITS`."""

_MOST_BLOCKS = 4096
"""A tile that spans more blocks than this is not asked which: they never agree."""
_AT_ONCE = 50_000
"""Tiles looked at together, which bounds the memory."""
_CONTACT_M = 0.001
"""Footprints nearer than this touch."""


class Assigned(NamedTuple):
    """What each tile belongs to."""

    split: IntArray
    """(n,) index into `SPLITS`, or `NO_SPLIT`."""
    block_id: pa.Array
    """(n,) name of the block that holds the tile's centre, or of its scene."""


def assign_splits(
    names: Sequence[str],
    scene: IntArray,
    centres: FloatArray,
    boxes: FloatArray,
    section: SplitsSection,
    *,
    labels: Sequence[str | None] = (),
    observations: Sequence[str | None] = (),
    dates: Sequence[str | None] = (),
) -> Assigned:
    """Give each tile its split and its block.

    Args:
        names: of the scenes: where they show one place on several dates that of the place, else the id.
        scene: (n,) index of each tile's scene.
        centres: (n, 2) longitude and latitude; NaN for tiles of plain images.
        boxes: (n, 4) west, south, east, north of each footprint, degrees (west > east crosses the antimeridian); NaN for tiles of plain
            images, which are divided by scene.
        section: shares or folds, size of a block, buffer.
        labels: class of each scene, for the division by class.
        observations: what each scene was cut from, for the division by observation.
        dates: day of each scene, for the division by date, in which the splits may share ground.

    Raises:
        ConfigError: the division is by class, by observation or by date, and a scene has none.
    """
    on_ground = np.isfinite(boxes).all(axis=1)
    by_block = section.by == "block"
    keys = {"class": labels, "observation": observations, "date": dates}.get(section.by, names)
    known = [key for key in keys if key is not None]
    if len(known) < len(names):
        raise ConfigError(_not_known(names, keys, section))
    split = _of_keys(known, np.bincount(scene[~on_ground] if by_block else scene, minlength=len(names)), section)[scene]
    block_id = pa.array(known if section.by in {"observation", "date"} else names, pa.string()).take(pa.array(scene))
    if by_block:
        split[on_ground] = _by_block(grown(boxes[on_ground], section.buffer_m), section)
        blocks = cell_names(cells(centres[on_ground], section.block_m))
        block_id = pc.replace_with_mask(block_id, pa.array(on_ground), blocks)
    elif section.by != "date":
        split[on_ground] = _apart(split[on_ground], boxes[on_ground], section.buffer_m)
    return Assigned(split, block_id)


def _not_known(names: Sequence[str], keys: Sequence[str | None], section: SplitsSection) -> str:
    without = next((name for name, key in zip(names, keys, strict=False) if key is None), names[0])
    sources = {
        "class": "from their folder or table (a source of kind images with labels: folder or csv)",
        "observation": "from a table or their names (a source of kind images with csv_observation_column, or with a group in its pattern)",
    }
    if section.by == "date":
        remedy = "give the source a `datetime`, or a pattern with a group `date`, or set tiles.splits.by: block or scene"
        return f"tiles.splits.by is date, and that of {without} is not known; {remedy}"
    return (
        f"tiles.splits.by is {section.by}, and the {section.by} of {without} is not known when the set is planned: only images have one "
        f"then, {sources[section.by]}; set tiles.splits.by: block or scene"
    )


def _of_keys(keys: Sequence[str], tiles: IntArray, section: SplitsSection) -> IntArray:
    """Return the split of each scene (n,), by what it is divided by and by how many tiles it has."""
    if section.folds is not None:
        weights: Counter[str] = Counter()
        for key, count in zip(keys, tiles.tolist(), strict=True):
            weights[key] += count
        of_key = dealt(weights, section)
    elif section.by == "class":
        of_key = class_splits(keys, section)
    else:
        of_key = {key: _hashed_split(key, section) for key in dict.fromkeys(keys)}
    return np.array([of_key[key] for key in keys], np.int64)


def dealt(weights: Mapping[str, int], section: SplitsSection) -> dict[str, int]:
    """Deal groups of tiles out to folds, and return the split of each, as an index into `SPLITS`.

    The largest first, each to the fold that has the fewest tiles (Graham's rule for scheduling, 1969); groups of one size in an order of
    hashes of their names, so that neither the order of files nor that of names decides.

    Args:
        weights: tiles of each group, by its name.
        section: folds, which of them is tested, seed.
    """
    folds = section.folds or 1
    split_of_fold = np.full(folds, SPLITS.index("train"))
    split_of_fold[section.fold], split_of_fold[(section.fold + 1) % folds] = SPLITS.index("test"), SPLITS.index("val")
    held, found = [0] * folds, {}
    for name in sorted(weights, key=lambda name: (-weights[name], _digest(section, "fold", name))):
        fold = held.index(min(held))
        held[fold] += weights[name]
        found[name] = int(split_of_fold[fold])
    return found


def class_splits(classes: Iterable[str], section: SplitsSection) -> dict[str, int]:
    """Return the split of each class, as an index into `SPLITS`.

    The classes are put in an order of hashes of their names, and each split takes its share of them in turn. Shares of so few are counted,
    not drawn: whole numbers by the largest remainder (Hamilton's method; of equal remainders the earlier split's counts).

    Args:
        classes: names, in any order.
        section: shares and seed.
    """
    order = sorted(set(classes), key=lambda name: _digest(section, "class", name))
    wanted = np.array(section.shares) * len(order)
    counts = np.floor(wanted).astype(np.int64)
    missing = np.argsort(counts - wanted, kind="stable")[: len(order) - counts.sum()]
    counts[missing] += 1
    return dict(zip(order, np.repeat(np.arange(len(SPLITS)), counts).tolist(), strict=True))


def cell_names(found: IntArray) -> pa.Array:
    """Return `geo.cell_name` of cells (n, 2), as strings."""
    row, col = (pa.array(found[:, axis]).cast(pa.string()) for axis in range(2))
    return pc.binary_join_element_wise("r", row, "c", col, "")


def _digest(section: SplitsSection, *names: str) -> bytes:
    return hashlib.sha256("\n".join([str(section.seed), *names]).encode()).digest()


def _hashed_split(name: str, section: SplitsSection) -> int:
    return int(_by_share(np.array([int.from_bytes(_digest(section, name)[:8], "little")], np.uint64), section)[0])


def _by_share(hashes: np.ndarray[tuple[int], np.dtype[np.uint64]], section: SplitsSection) -> IntArray:
    """Lay the shares out between 0 and 1 and return the split that each hash falls into."""
    last = max(index for index, share in enumerate(section.shares) if share > 0)
    found = np.searchsorted(np.cumsum(section.shares), hashes / 2.0**64, side="right")
    return np.minimum(found, last).astype(np.int64)


def _split_of_blocks(blocks: IntArray, section: SplitsSection) -> IntArray:
    """Return the split of each block (n, 2)."""
    seed = np.uint64(int.from_bytes(_digest(section, "blocks")[:8], "little"))
    return _by_share(_mixed(_packed(blocks) ^ seed), section)


def _packed(blocks: IntArray) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return blocks (n, 2) as one number each."""
    packed: np.ndarray[tuple[int], np.dtype[np.uint64]] = blocks[:, 0].astype(np.uint64) << np.uint64(32) | blocks[:, 1].astype(np.uint64)
    return packed


def _dealt_blocks(parts: Iterable[FloatArray], section: SplitsSection) -> Callable[[IntArray], IntArray]:
    """Deal the blocks that boxes (parts of (n, 4)) touch out to folds; return what gives the split of each block (n, 2)."""
    touching: Counter[int] = Counter()
    for boxes in parts:
        blocks, counts = np.unique(_packed(cells_touched_by(boxes, section.block_m).cell), return_counts=True)
        touching.update(dict(zip(blocks.tolist(), counts.tolist(), strict=True)))
    known = np.array(sorted(touching), np.uint64)
    of_name = dealt({str(block): touching[block] for block in known.tolist()}, section)
    splits = np.array([of_name[str(block)] for block in known.tolist()], np.int64)
    return lambda blocks: splits[np.searchsorted(known, _packed(blocks))]


def _mixed(values: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Hash 64-bit numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _by_block(boxes: FloatArray, section: SplitsSection) -> IntArray:
    """Return the split on which all blocks that a box touches agree, or `NO_SPLIT`."""
    if max(section.shares) == 1:
        return np.full(len(boxes), section.shares.index(1), np.int64)
    split = np.full(len(boxes), NO_SPLIT, np.int64)
    askable = np.flatnonzero(_blocks_spanned(boxes, section.block_m) <= _MOST_BLOCKS)
    parts = [members for members in np.array_split(askable, len(askable) // _AT_ONCE + 1) if len(members)]
    if section.folds is None:
        split_of: Callable[[IntArray], IntArray] = partial(_split_of_blocks, section=section)
    else:
        split_of = _dealt_blocks((boxes[members] for members in parts), section)
    for members in parts:
        touched = cells_touched_by(boxes[members], section.block_m)
        of_block = split_of(touched.cell)
        first = np.searchsorted(touched.box, np.arange(len(members)))
        lowest, highest = np.minimum.reduceat(of_block, first), np.maximum.reduceat(of_block, first)
        split[members] = np.where(lowest == highest, lowest, NO_SPLIT)
    return split


def _blocks_spanned(boxes: FloatArray, block_m: float) -> FloatArray:
    """Return at least how many blocks each box spans, from its extent at its widest parallel."""
    west, south, east, north = boxes.T
    widest = np.where(south * north < 0, 0.0, np.minimum(np.abs(south), np.abs(north)))
    across = np.radians(np.where(west > east, east - west + 360, east - west)) * np.cos(np.radians(widest))
    spanned: FloatArray = (across * EARTH_RADIUS_M / block_m + 1) * (np.radians(north - south) * EARTH_RADIUS_M / block_m + 1)
    return spanned


def _apart(split: IntArray, boxes: FloatArray, buffer_m: float) -> IntArray:
    """Take tiles that are too near to a tile of another split out of theirs: validation gives way to test, training to both."""
    split = split.copy()
    for giving_way in reversed(range(len(SPLITS) - 1)):
        mine, others = np.flatnonzero(split == giving_way), np.flatnonzero(split > giving_way)
        split[mine[_near(boxes[mine], boxes[others], buffer_m)]] = NO_SPLIT
    return split


def _near(boxes: FloatArray, others: FloatArray, distance_m: float) -> BoolArray:
    """Return which boxes (n, 4) lie within a distance of one of the others (m, 4): (n,) bool."""
    near = np.zeros(len(boxes), bool)
    flat, _ = _flat(others)
    tree = shapely.STRtree(shapely.box(*flat.T))
    for members in np.array_split(np.arange(len(boxes)), len(boxes) // _AT_ONCE + 1):
        wide, owner = _flat(grown(boxes[members], max(distance_m, _CONTACT_M)))
        near[members[owner[tree.query(shapely.box(*wide.T))[0]]]] = True
    return near


def _flat(boxes: FloatArray) -> tuple[FloatArray, IntArray]:
    """Cut boxes at the antimeridian: (m, 4) with west <= east, and (m,) which box each comes from."""
    crossing = np.flatnonzero(boxes[:, 0] > boxes[:, 2])
    east = np.concatenate([boxes, boxes[crossing]])
    east[crossing, 2] = 180
    east[len(boxes) :, 0] = -180
    return east, np.concatenate([np.arange(len(boxes)), crossing])


def check_splits(tiles: pa.Table, section: SplitsSection) -> None:
    """Make sure that every split that has a share has a tile.

    Args:
        tiles: with the columns `split`, `block_id` and `label`.
        section: shares and size of a block.

    Raises:
        NoTilesError: one has none.
    """
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(tiles["split"]).to_pylist()}
    empty = [name for name, share in zip(SPLITS, section.shares, strict=True) if share > 0 and not counts.get(name)]
    if not empty:
        return
    if section.by == "class":
        raise NoTilesError(_too_few_classes(tiles, empty, section))
    blocks, total, outside = pc.count_distinct(tiles["block_id"]).as_py(), tiles.num_rows, counts.get(None, 0)
    found = f"no tile of {total} belongs to the {'split' if len(empty) == 1 else 'splits'} {' and '.join(empty)}"
    where = f"they lie in {blocks} {section.by}s, and {outside} touch more than one split"
    otherwise = "lower tiles.splits.folds" if section.folds else "give those splits the share 0"
    raise NoTilesError(f"{found}: {where}; {_remedy(section, crowded=2 * outside > total)}, or {otherwise}")


def _too_few_classes(tiles: pa.Table, empty: Sequence[str], section: SplitsSection) -> str:
    classes = pc.count_distinct(tiles["label"]).as_py()
    of_them = f"the {'split' if len(empty) == 1 else 'splits'} {' and '.join(empty)}"
    remedy = "lower tiles.splits.folds" if section.folds else "give those splits a larger share, or 0,"
    return f"no class of {classes} belongs to {of_them}; {remedy} or set tiles.splits.by: scene"


def _remedy(section: SplitsSection, *, crowded: bool) -> str:
    if section.by == "observation":
        return "set tiles.splits.by: scene, or add observations"
    if section.by == "date":
        return "set tiles.splits.folds to their number (3 or more), which tests one of them"
    if section.by == "scene":
        return "set tiles.splits.by: block, or add scenes elsewhere"
    if crowded:
        return f"make tiles.splits.block_m (now {section.block_m:g}) several times as large as a tile, or tiles.size or buffer_m smaller"
    return f"make tiles.splits.block_m (now {section.block_m:g}) smaller, so that there are more blocks, or try another tiles.splits.seed"
