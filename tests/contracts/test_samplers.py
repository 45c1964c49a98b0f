"""What every sampler promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs import geo
from rayjobs.tiles.samplers import (
    SAMPLERS,
    Sampled,
    grid_shape,
    sample_cluster,
    sample_grid,
    sample_random,
    sample_walk,
    scene_rng,
    share_out,
)
from rayjobs.tiles.section import GridSampler

ARGUMENTS = {
    "random": [{"count": 7}, {"count": 500}],
    "grid": [{}, {"stride": 3}, {"stride": 40}, {"stride": 5, "edge": "shift"}, {"stride": 5, "edge": "pad"}],
    "cluster": [{"clusters": 5, "tiles_per_cluster": 6, "radius": 4.0}, {"clusters": 60, "tiles_per_cluster": 3, "radius": 0.4}],
    "walk": [
        {"walks": 5, "tiles_per_walk": 6, "random_reset": 0.3, "min_step": 1.0, "max_step": 5.0},
        {"walks": 60, "tiles_per_walk": 3, "random_reset": 0.0, "min_step": 0.0, "max_step": 1.5},
    ],
}
MEMBERS = [
    pytest.param(kind, arguments, id=f"{kind}-{number}") for kind, many in ARGUMENTS.items() for number, arguments in enumerate(many)
]
AMOUNT = {"random": "count", "cluster": "clusters", "walk": "walks"}

shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))
sizes = st.integers(1, 24)


def plain(height: int, width: int) -> geo.Grid:
    return geo.Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=height, width=width)


def same(one: Sampled, other: Sampled) -> bool:
    clusters = (one.cluster is None and other.cluster is None) or np.array_equal(one.cluster, other.cluster)
    return np.array_equal(one.windows, other.windows) and clusters


def test_every_sampler_is_tried_here():
    assert set(SAMPLERS) == set(ARGUMENTS)


@pytest.mark.parametrize(("kind", "arguments"), MEMBERS)
@settings(max_examples=40, deadline=None)
@given(shapes, sizes)
def test_windows_lie_inside_and_never_twice(kind, arguments, shape, size):
    found = SAMPLERS[kind](plain(*shape), scene_rng(0, "scene"), size=size, **arguments)
    edge = arguments.get("edge")
    assert found.windows.shape == (len(found.windows), 4)
    assert found.windows.dtype == np.int64
    for row, col, height, width in found.windows.tolist():
        assert height == width == size or (
            edge == "pad" and (row + height == shape[0] or col + width == shape[1]) and max(height, width) <= size
        )
        assert geo.Window(row=row, col=col, height=height, width=width).inside(*shape)
    assert len({tuple(window) for window in found.windows.tolist()}) == len(found.windows)
    assert (len(found.windows) > 0) == (size <= min(shape) or edge == "pad")
    assert found.cluster is None or len(found.cluster) == len(found.windows)


@pytest.mark.parametrize(("kind", "arguments"), MEMBERS)
def test_one_seed_and_scene_give_one_answer(kind, arguments):
    again = [SAMPLERS[kind](plain(300, 200), scene_rng(3, "scene"), size=16, **arguments) for _ in range(2)]
    assert same(*again)


@pytest.mark.parametrize(("kind", "arguments"), [member for member in MEMBERS if member.values[0] in AMOUNT])
def test_seeds_and_scenes_give_different_answers(kind, arguments):
    first, *others = [
        SAMPLERS[kind](plain(300, 200), scene_rng(seed, scene), size=16, **arguments) for seed, scene in [(0, "a"), (1, "a"), (0, "b")]
    ]
    assert not any(same(first, other) for other in others)


@pytest.mark.parametrize("side", [60, 3000])
@pytest.mark.parametrize(("kind", "arguments"), [member for member in MEMBERS if member.values[0] in AMOUNT])
def test_more_windows_begin_with_those_of_fewer(kind, arguments, side):
    few = SAMPLERS[kind](plain(side, side), scene_rng(0, "scene"), size=8, **arguments)
    more = SAMPLERS[kind](plain(side, side), scene_rng(0, "scene"), size=8, **arguments | {AMOUNT[kind]: arguments[AMOUNT[kind]] * 3 + 1})
    assert len(more.windows) > len(few.windows)
    assert np.array_equal(more.windows[: len(few.windows)], few.windows)


@settings(deadline=None)
@given(shapes, sizes, st.integers(1, 400))
def test_random_gives_as_many_as_asked_or_as_there_are(shape, size, count):
    there = max(0, shape[0] - size + 1) * max(0, shape[1] - size + 1)
    found = sample_random(plain(*shape), scene_rng(0, "scene"), size=size, count=count)
    assert len(found.windows) == min(count, there)


def test_random_reaches_every_place_of_a_large_grid_equally_often():
    found = sample_random(plain(4000, 4000), scene_rng(0, "scene"), size=1, count=40_000)
    counts, _, _ = np.histogram2d(found.windows[:, 0], found.windows[:, 1], bins=10, range=[[0, 4000], [0, 4000]])
    assert ((counts - 400) ** 2 / 400).sum() < 149, "chi-squared with 99 degrees of freedom, one in a thousand"


@settings(deadline=None)
@given(shapes, sizes, st.one_of(st.none(), st.integers(1, 30)))
def test_grid_is_the_naive_double_loop(shape, size, stride):
    step = stride or size
    expected = [[r, c, size, size] for r in range(0, shape[0] - size + 1, step) for c in range(0, shape[1] - size + 1, step)]
    assert sample_grid(plain(*shape), scene_rng(0, "scene"), size=size, stride=stride).windows.tolist() == expected


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40))
def test_the_edges_of_a_grid_are_discarded_shifted_or_cut(length, size, stride):
    """Along one side, against a loop that goes on until the edge is covered."""
    stride = min(stride, size)
    whole = list(range(0, length - size + 1, stride))
    more = [] if whole and whole[-1] + size >= length else [whole[-1] + stride] if whole else [0]
    expected = {
        "discard": [(start, size) for start in whole],
        "shift": [(min(start, length - size), size) for start in whole + (more if length >= size else [])],
        "pad": [(start, min(size, length - start)) for start in whole + more],
    }
    for edge, starts in expected.items():
        found = sample_grid(plain(length, size), scene_rng(0, "scene"), size=size, stride=stride, edge=edge).windows
        assert [(row, height) for row, _, height, _ in found.tolist()] == starts


@pytest.mark.parametrize(
    ("shape", "size", "edge", "counts"),
    [
        ((79_920, 159_840), 512, "shift", (312, 624)),  # the whole Earth at 0.25 km: 194,688 tiles
        ((1000, 1000), 256, "shift", (7, 7)),
        ((1000, 1000), 256, "discard", (6, 6)),
        ((1000, 1000), 256, "pad", (7, 7)),
    ],
)
def test_tiles_with_half_an_overlap_are_as_many_as_the_earlier_system_counts(shape, size, edge, counts):
    section = GridSampler(overlap=0.5, edge=edge)
    assert grid_shape(plain(*shape), size=size, stride=section.step(size), edge=edge) == counts
    length = np.array(shape)
    exact = (length - size * 0.5) / (size * (1 - 0.5))
    assert tuple((np.floor if edge == "discard" else np.ceil)(exact)) == counts


def test_an_overlap_is_not_spoilt_by_rounding():
    assert [GridSampler(overlap=overlap).step(100) for overlap in (0.0, 0.1, 0.7, 0.9, 0.999)] == [100, 90, 30, 10, 1]
    assert GridSampler(stride=7).step(100) == 7
    with pytest.raises(ValueError, match="give one of them"):
        GridSampler(stride=7, overlap=0.5)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(20, 400), st.integers(20, 400)), st.integers(1, 20), st.integers(1, 8), st.floats(0.1, 6))
def test_members_of_a_cluster_lie_round_its_first(shape, clusters, each, radius):
    found = sample_cluster(plain(*shape), scene_rng(0, "scene"), size=10, clusters=clusters, tiles_per_cluster=each, radius=radius)
    for number in range(clusters):
        members = found.windows[found.cluster == number]
        assert len(members) <= each
        apart = np.linalg.norm((members[:, None, :2] - members[None, :, :2]).astype(float), axis=2)
        assert (apart <= 2 * radius * 10).all()


def test_clusters_are_full_where_there_is_room():
    found = sample_cluster(plain(20_000, 20_000), scene_rng(0, "scene"), size=64, clusters=300, tiles_per_cluster=16, radius=4.0)
    assert np.bincount(found.cluster).tolist() == [16] * 300
    first = found.windows[np.searchsorted(found.cluster, found.cluster), :2]
    apart = np.linalg.norm((found.windows[:, :2] - first).astype(float), axis=1)
    assert apart.max() <= 4 * 64
    assert np.mean(apart[apart > 0]) == pytest.approx(2 / 3 * 4 * 64, rel=0.03), "uniform over the disc"


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(20, 400), st.integers(20, 400)), st.floats(0, 1), st.tuples(st.floats(0, 6), st.floats(0, 6)))
def test_each_window_of_a_walk_is_a_neighbour_of_the_one_before(shape, reset, steps):
    low, high = sorted(steps)
    walk = {"walks": 4, "tiles_per_walk": 9, "random_reset": reset, "min_step": low, "max_step": high}
    found = sample_walk(plain(*shape), scene_rng(0, "scene"), size=10, **walk)
    for number in range(found.cluster.max() + 1):
        members = found.windows[found.cluster == number, :2]
        if len(np.unique(found.windows[:, :2], axis=0)) == 4 * 9:  # no place was visited twice: none is missing between two
            apart = np.linalg.norm(np.diff(members, axis=0).astype(float), axis=1)
            slack = 1e-9 if (high - low) * 10 > 2.2 else 1.5  # a thinner ring holds few whole pixels
            assert (apart <= high * 10 + slack).all()
            assert (apart >= low * 10 - slack).all()


def test_a_walk_is_broken_off_as_often_as_asked():
    walks = {"walks": 500, "tiles_per_walk": 20, "min_step": 1.0, "max_step": 3.0}
    clusters = [
        sample_walk(plain(20_000, 20_000), scene_rng(0, "scene"), size=16, random_reset=reset, **walks).cluster.max() + 1
        for reset in (0.0, 0.25, 1.0)
    ]
    assert clusters[0] == 500
    assert clusters[1] == pytest.approx(500 + 500 * 19 * 0.25, rel=0.05)
    assert clusters[2] == 500 * 20


def test_steps_are_spread_evenly_over_the_ring():
    walk = {"walks": 2000, "tiles_per_walk": 2, "random_reset": 0.0, "min_step": 1.0, "max_step": 3.0}
    found = sample_walk(plain(50_000, 50_000), scene_rng(0, "scene"), size=64, **walk)
    step = np.diff(found.windows[:, :2].reshape(2000, 2, 2), axis=1)[:, 0]
    area = (np.hypot(*step.T) ** 2 / 64**2 - 1) / 8
    angle = np.arctan2(*step.T) / (2 * np.pi) + 0.5
    for part in (area, angle):
        counts, _ = np.histogram(part, bins=10, range=(0, 1))
        assert ((counts - 200) ** 2 / 200).sum() < 28, "chi-squared with 9 degrees of freedom, one in a thousand"


@settings(deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_shares_add_up_and_are_fair(total, weights):
    shares = share_out(total, weights)
    if not sum(weights):
        assert shares == [0] * len(weights)
        return
    assert sum(shares) == total
    assert all(abs(share - total * weight / sum(weights)) < 1 for share, weight in zip(shares, weights, strict=True))
