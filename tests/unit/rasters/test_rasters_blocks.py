"""Grouping windows: arithmetic, against a naive count of blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.rasters import blocks
from rayjobs.rasters.blocks import plan_reads, superblock_order

SHAPE = (700, 900)


@st.composite
def layouts(draw):
    block = draw(st.sampled_from([(64, 64), (128, 256), (1, 900), (7, 900), (700, 900), (512, 512)]))
    windows = []
    for _ in range(draw(st.integers(1, 25))):
        height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
        windows.append((draw(st.integers(0, SHAPE[0] - height)), draw(st.integers(0, SHAPE[1] - width)), height, width))
    return np.array(windows), block


def blocks_of(row, col, height, width, block):
    return {
        (r, c)
        for r in range(row // block[0], (row + height - 1) // block[0] + 1)
        for c in range(col // block[1], (col + width - 1) // block[1] + 1)
    }


@settings(deadline=None)
@given(layouts())
def test_a_group_costs_no_block_that_its_members_do_not(layout):
    windows, block = layout
    for group in plan_reads(windows, block, SHAPE):
        whole = group.window
        needed = set().union(*(blocks_of(*windows[member], block) for member in group.members))
        assert blocks_of(whole.row, whole.col, whole.height, whole.width, block) == needed


@settings(deadline=None)
@given(layouts())
def test_each_window_stands_once_inside_its_group(layout):
    windows, block = layout
    groups = plan_reads(windows, block, SHAPE)
    assert sorted(int(member) for group in groups for member in group.members) == list(range(len(windows)))
    for group in groups:
        row, col, height, width = windows[group.members].T
        assert (row >= group.window.row).all()
        assert (col >= group.window.col).all()
        assert (row + height <= group.window.row + group.window.height).all()
        assert (col + width <= group.window.col + group.window.width).all()


def test_a_cluster_across_four_blocks_is_one_read():
    rng = np.random.default_rng(0)
    corners = rng.integers(400, 600, (16, 2))
    windows = np.concatenate([corners, np.full((16, 2), 64)], axis=1)
    assert len(plan_reads(windows, (512, 512), (2048, 2048))) == 1


def test_strips_are_read_together_where_windows_overlap():
    windows = np.array([[0, 0, 64, 64], [10, 300, 64, 64], [60, 700, 64, 64], [400, 5, 64, 64]])
    groups = plan_reads(windows, (1, 900), SHAPE)
    assert sorted(sorted(group.members.tolist()) for group in groups) == [[0, 1, 2], [3]]


def test_a_read_stays_within_memory():
    corners = np.stack(np.meshgrid(np.arange(0, 8192, 64), np.arange(0, 8192, 64), indexing="ij"), axis=-1).reshape(-1, 2)
    windows = np.concatenate([corners, np.full_like(corners, 64)], axis=1)
    groups = plan_reads(windows, (512, 512), (8192, 8192))
    assert max(group.window.height * group.window.width for group in groups) <= blocks.MAX_READ_PIXELS
    assert len(groups) <= 256  # of 256 blocks none is read twice


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 0, 5), (696, 0, 5, 5), (0, 899, 1, 2)])
def test_a_window_that_leaves_the_raster_is_refused(window):
    with pytest.raises(ValueError, match="leaves the raster of 700 x 900"):
        plan_reads(np.array([window]), (64, 64), SHAPE)


def test_no_windows_need_no_reads():
    assert plan_reads(np.empty((0, 4), np.int64), (64, 64), SHAPE) == []


@settings(deadline=None)
@given(layouts())
def test_the_order_of_reading_visits_each_super_block_once(layout):
    windows, block = layout
    order = superblock_order(windows, block, 2)
    assert sorted(order.tolist()) == list(range(len(windows)))
    side = [2 * size * -(-256 // size) for size in block]
    visited = [(row // side[0], col // side[1]) for row, col, *_ in windows[order].tolist()]
    changes = sum(a != b for a, b in pairwise(visited))
    assert changes == len(set(visited)) - 1
    assert visited == sorted(visited)
