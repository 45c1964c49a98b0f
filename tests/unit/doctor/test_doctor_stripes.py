"""The statistic of stripes: against naive loops, on landscapes without stripes, and with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.ndimage

from rayjobs.doctor import stripes
from rayjobs.doctor.stripes import GROUP, Grid, left_over, striping

ROWS, COLUMNS, DIM = 16, 21, 6


def landscape(seed, *, smooth=1.5, along=1.5, gaps=0.0):
    """Vectors of a field that changes over a few tiles, and noise."""
    rng = np.random.default_rng(seed)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((ROWS, COLUMNS, DIM)), (smooth, along, 0))
    vectors = field / field.std() + 0.5 * rng.standard_normal(field.shape)
    vectors[..., 0] += 3
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return Grid(vectors=vectors, there=rng.random((ROWS, COLUMNS)) >= gaps)


def striped(grid, strength, seed=0):
    """The same with a step of its own for each row."""
    steps = strength * np.random.default_rng(seed).standard_normal((len(grid.vectors), 1, DIM))
    vectors = grid.vectors + steps
    return Grid(vectors=vectors / np.linalg.norm(vectors, axis=2, keepdims=True), there=grid.there)


def by_loops(grid):
    """The correlation from all pairs of tiles, one by one."""
    left, there = left_over(grid)
    products, energy = [], [float(left[place] @ left[place]) for place in zip(*np.nonzero(there), strict=True)]
    for row in range(there.shape[0]):
        for one, other in itertools.combinations(np.flatnonzero(there[row]), 2):
            if other // GROUP - one // GROUP > 1:
                products.append(float(left[row, one] @ left[row, other]))
    return np.mean(products) / np.mean(energy)


@pytest.mark.parametrize("gaps", [0.0, 0.2])
def test_it_is_what_naive_loops_give(gaps):
    grid = landscape(3, gaps=gaps)
    found = striping([grid])
    assert found.share == pytest.approx(by_loops(grid), rel=1e-9)
    assert found.tiles == left_over(grid)[1].sum()


def test_what_is_left_of_a_tile_is_without_the_two_beside_it():
    grid = landscape(1, gaps=0.1)
    left, there = left_over(grid)
    assert not there[[0, -1]].any()
    for row, col in zip(*np.nonzero(there), strict=True):
        beside = [grid.vectors[row - 1, col], grid.vectors[row + 1, col]]
        np.testing.assert_allclose(left[row, col], grid.vectors[row, col] - np.mean(beside, axis=0))
        assert grid.there[row - 1 : row + 2, col].all()


@pytest.mark.parametrize(("smooth", "along"), [(0.01, 0.01), (1.5, 1.5), (4.0, 4.0), (1.0, 1.5)])
def test_a_landscape_has_no_stripes(smooth, along):
    """P-values of landscapes are even: of 20 hardly one is beyond the line of a fault, and few are below a twentieth."""
    values = [striping([landscape(seed, smooth=smooth, along=along)], seed=seed).p for seed in range(20)]
    assert sum(value <= 0.005 for value in values) <= 1
    assert sum(value <= 0.05 for value in values) <= 4


@pytest.mark.parametrize("gaps", [0.0, 0.15])
def test_stripes_are_found_and_only_along_themselves(gaps):
    grid = striped(landscape(2, gaps=gaps), 0.4)
    rows, columns = striping([grid]), striping([grid.turned])
    assert rows.p == 0.001
    assert rows.share > 0.2
    assert abs(rows.chance) < 0.05
    assert columns.p > 0.005


def test_scenes_add_up():
    """Stripes too weak to be sure of in one scene are sure in six."""
    scenes = [striped(landscape(seed), 0.11, seed) for seed in range(6)]
    alone = [striping([scene]).p for scene in scenes]
    assert striping(scenes).p <= np.median(alone)
    assert striping(scenes).p <= 0.005


def test_too_few_tiles_tell_nothing():
    small = landscape(0)
    narrow = Grid(vectors=small.vectors[:, : stripes.LEAST_COLUMNS - 1], there=small.there[:, : stripes.LEAST_COLUMNS - 1])
    sparse = Grid(vectors=small.vectors, there=np.random.default_rng(0).random((ROWS, COLUMNS)) < 0.2)
    equal = Grid(vectors=np.ones_like(small.vectors), there=small.there)
    assert [striping(grids) for grids in ([], [narrow], [sparse], [equal])] == [None] * 4
