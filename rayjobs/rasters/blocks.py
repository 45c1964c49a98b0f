"""Which windows to read together, so that each stored block is fetched and decoded once: arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayjobs.geo import IntArray, Window

MAX_READ_PIXELS = 2048 * 2048
"""Pixels (of each band) that windows read together may span; a single larger window is still read."""
_REGION_SIDE = 256
"""Blocks thinner than this many pixels (strips) are counted in bundles of at least so many."""
_RECENT_GROUPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadGroup:
    """Windows to be cut from one read."""

    window: Window
    """The smallest window that holds all members; it touches no block that the members do not touch."""
    members: IntArray
    """(k,) positions of the windows in the input."""


@dataclass(slots=True)
class _Group:
    rect: tuple[int, int, int, int]
    """First and past-the-last block: row, col, row, col."""
    blocks: set[tuple[int, int]]
    pixels: tuple[int, int, int, int]
    """First and past-the-last pixel: row, col, row, col."""
    members: list[int]


def plan_reads(windows: IntArray, block: tuple[int, int], shape: tuple[int, int]) -> list[ReadGroup]:
    """Group windows so that reading each group's window costs no block that was not needed anyway.

    Args:
        windows: (n, 4) int: row, col, height, width in pixels.
        block: height and width of the raster's blocks.
        shape: height and width of the raster.

    Returns:
        Groups in which each window stands once; neighbouring groups follow each other, so that a block which two of them share is
        still in GDAL's cache.

    Raises:
        ValueError: a window does not lie inside the raster.
    """
    windows = np.asarray(windows, np.int64).reshape(-1, 4)
    ends = windows[:, :2] + windows[:, 2:]
    if len(windows) and ((windows[:, :2] < 0).any() or (windows[:, 2:] < 1).any() or (ends > shape).any()):
        raise ValueError(f"a window leaves the raster of {shape[0]} x {shape[1]} pixels")
    rects = np.concatenate([windows[:, :2] // block, -(-ends // block)], axis=1)
    regions = windows[:, :2] // _region(block, 4)
    order = superblock_order(windows, block)
    groups: list[ReadGroup] = []
    for run in np.split(order, np.flatnonzero((np.diff(regions[order], axis=0) != 0).any(axis=1)) + 1):
        groups += [_finished(group) for group in _merged(_alike(run, windows, rects))]
    return groups


def superblock_order(windows: IntArray, block: tuple[int, int], blocks_per_side: int = 4) -> IntArray:
    """Return the order of reading in which windows of one super-block (a square of blocks) follow each other.

    Args:
        windows: (n, 4) int: row, col, height, width in pixels.
        block: height and width of the raster's blocks.
        blocks_per_side: of the super-block.

    Returns:
        (n,) permutation; super-blocks from the top left to the bottom right, within each the blocks likewise.
    """
    corner = np.asarray(windows, np.int64).reshape(-1, 4)[:, :2]
    region = corner // _region(block, blocks_per_side)
    within = corner // block
    keys = (corner[:, 1], corner[:, 0], within[:, 1], within[:, 0], region[:, 1], region[:, 0])
    return np.lexsort(keys).astype(np.int64)


def _region(block: tuple[int, int], blocks_per_side: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return height and width of a super-block in pixels."""
    sides = np.asarray(block, np.int64)
    return blocks_per_side * sides * -(-_REGION_SIDE // sides)


def _alike(run: IntArray, windows: IntArray, rects: IntArray) -> list[_Group]:
    """Put windows that touch exactly the same blocks together."""
    found: dict[tuple[int, ...], list[int]] = {}
    if len(run) == 0:
        return []
    for member, rect in zip(run.tolist(), map(tuple, rects[run].tolist()), strict=True):
        found.setdefault(rect, []).append(member)
    groups = []
    for rect, members in found.items():
        top, left, bottom, right = rect
        blocks = {(row, col) for row in range(top, bottom) for col in range(left, right)}
        own = windows[members]
        end = (own[:, :2] + own[:, 2:]).max(axis=0)
        pixels = (int(own[:, 0].min()), int(own[:, 1].min()), int(end[0]), int(end[1]))
        groups.append(_Group((top, left, bottom, right), blocks, pixels, members))
    return groups


def _merged(groups: list[_Group]) -> list[_Group]:
    """Join groups for as long as that costs no further block."""
    while True:
        kept: list[_Group] = []
        for group in groups:
            if not any(_join(other, group) for other in reversed(kept[-_RECENT_GROUPS:])):
                kept.append(group)
        if len(kept) == len(groups):
            return kept
        groups = kept


def _join(into: _Group, group: _Group) -> bool:
    rect = _hull(into.rect, group.rect)
    area = (rect[2] - rect[0]) * (rect[3] - rect[1])
    if area > len(into.blocks) + len(group.blocks):
        return False
    pixels = _hull(into.pixels, group.pixels)
    if (pixels[2] - pixels[0]) * (pixels[3] - pixels[1]) > MAX_READ_PIXELS:
        return False
    blocks = into.blocks | group.blocks
    if len(blocks) < area:
        return False
    into.rect, into.blocks, into.pixels, into.members = rect, blocks, pixels, into.members + group.members
    return True


def _hull(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _finished(group: _Group) -> ReadGroup:
    top, left, bottom, right = group.pixels
    window = Window(row=top, col=left, height=bottom - top, width=right - left)
    return ReadGroup(window=window, members=np.array(group.members, np.int64))
