"""Which windows of a grid become tiles. Arithmetic on a grid: reads no pixel and knows no ground.

Every sampler is `(grid, rng, ...) -> Sampled`. All give windows that lie fully inside the grid, none twice. A random sampler asked for n
windows (or clusters) gives those that it gives when asked for fewer, and then more: when other scenes join a set, what a scene contributes
changes in number only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from rayjobs.geo import BoolArray, FloatArray, Grid, IntArray

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PERMUTE_UP_TO = 2**20
"""Grids with no more places than this are shuffled whole; larger ones are drawn from, dropping repetitions."""
_DRAWS_PER_TILE = 4
"""Draws for each tile of a cluster: three in four fall within the radius, and some coincide."""
_CLUSTERS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What a sampler chose in one grid."""

    windows: IntArray
    """(n, 4) row, col, height, width in pixels."""
    cluster: IntArray | None = None
    """(n,) number of each window's cluster within the grid; None where the sampler makes no clusters."""


def scene_rng(seed: int, scene_id: str) -> np.random.Generator:
    """Return the generator of one scene, whatever other scenes there are and whoever samples them."""
    digest = hashlib.sha256(f"{seed}\n{scene_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def places(grid: Grid, size: int) -> tuple[int, int]:
    """Return how many rows and columns a window of `size` pixels can start in; 0 where it does not fit."""
    return max(0, grid.height - size + 1), max(0, grid.width - size + 1)


def sample_random(grid: Grid, rng: np.random.Generator, *, size: int, count: int) -> Sampled:
    """Take up to `count` windows anywhere, each place equally likely."""
    rows, cols = places(grid, size)
    return Sampled(windows=_windows(_distinct(rng, rows * cols, count), cols, size))


def _distinct(rng: np.random.Generator, places: int, count: int) -> IntArray:
    """Return the first `count` of an endless draw from `range(places)` without repetition (all of them, if there are no more)."""
    count = min(count, places)
    if places <= _PERMUTE_UP_TO:
        return rng.permutation(places)[:count]
    drawn = np.empty(0, np.int64)
    while len(drawn) < count:
        more = (rng.random(2 * (count - len(drawn)) + 16) * places).astype(np.int64)
        both = np.concatenate([drawn, more])
        drawn = both[_first_of_each(both)]
    return drawn[:count]


def _first_of_each(values: IntArray) -> IntArray:
    """Return the positions where a value comes for the first time, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])


def _windows(start: IntArray, cols: int, size: int) -> IntArray:
    side = np.full(len(start), size, np.int64)
    return np.column_stack([start // max(cols, 1), start % max(cols, 1), side, side]).astype(np.int64)


def sample_grid(
    grid: Grid,
    rng: np.random.Generator,  # noqa: ARG001  one signature for all
    *,
    size: int,
    stride: int | None = None,
    edge: str = "discard",
) -> Sampled:
    """Take windows `stride` pixels apart, from the first pixel on.

    What is left at the far edges is not covered with `edge` discard; with shift the last windows are moved back until they end there; with
    pad they are cut there, and so are smaller than the others.
    """
    step = stride or size
    rows, cols = grid_shape(grid, size=size, stride=step, edge=edge)
    row, col = np.meshgrid(np.arange(rows) * step, np.arange(cols) * step, indexing="ij")
    top, left = row.ravel(), col.ravel()
    if edge == "shift":
        top, left = np.minimum(top, grid.height - size), np.minimum(left, grid.width - size)
    height, width = np.minimum(grid.height - top, size), np.minimum(grid.width - left, size)
    return Sampled(windows=np.column_stack([top, left, height, width]).astype(np.int64))


def grid_shape(grid: Grid, *, size: int, stride: int, edge: str) -> tuple[int, int]:
    """Return how many windows a grid sampler takes from top to bottom, and from left to right.

    Of a side of L pixels, windows of t pixels that overlap by the share o = 1 - stride / t: ceil((L - t o) / (t (1 - o))), and with `edge`
    discard floor of the same; none where no whole window fits, but with pad always one.
    """
    down, across = (_along(length, size, stride, edge) for length in (grid.height, grid.width))
    return down, across


def _along(length: int, size: int, stride: int, edge: str) -> int:
    if edge == "discard":
        return (length - size) // stride + 1 if length >= size else 0
    if length < size:
        return int(edge == "pad")
    overlap = max(0, size - stride)
    return -(-(length - overlap) // stride)


def sample_cluster(grid: Grid, rng: np.random.Generator, *, size: int, clusters: int, tiles_per_cluster: int, radius: float) -> Sampled:
    """Take groups of windows: a random one, then others whose centres lie within `radius` tile sizes of it.

    A window that two clusters would share belongs to the first. Groups are smaller where the grid has no room.
    """
    rows, cols = places(grid, size)
    if rows * cols * clusters == 0:
        return Sampled(windows=np.empty((0, 4), np.int64), cluster=np.empty(0, np.int64))
    chosen: list[IntArray] = []
    for first in range(0, clusters, _CLUSTERS_AT_ONCE):
        draws = rng.random((min(_CLUSTERS_AT_ONCE, clusters - first), _DRAWS_PER_TILE * tiles_per_cluster + 1, 2))
        start, inside = _around_centres(draws, rows, cols, radius * size)
        chosen.append(_take(start, inside, tiles_per_cluster) + np.array([first, 0]))
    members = np.concatenate(chosen)
    members = members[_first_of_each(members[:, 1])]
    return Sampled(windows=_windows(members[:, 1], cols, size), cluster=members[:, 0])


def _around_centres(draws: FloatArray, rows: int, cols: int, reach: float) -> tuple[IntArray, BoolArray]:
    """Turn uniform draws (c, k, 2) into places: the first of each cluster anywhere, the others in the square round it.

    Returns:
        (c, k) place, and (c, k) bool: True where it lies within `reach` pixels of the first.
    """
    limits = np.array([rows, cols])
    centre = np.floor(draws[:, :1] * limits)
    low = np.maximum(centre - np.floor(reach), 0)
    high = np.minimum(centre + np.floor(reach), limits - 1)
    at = np.floor(low + draws * (high - low + 1))
    at[:, :1] = centre
    inside = ((at - centre) ** 2).sum(axis=2) <= reach**2
    return (at[:, :, 0] * cols + at[:, :, 1]).astype(np.int64), inside


def _take(start: IntArray, inside: BoolArray, count: int) -> IntArray:
    """Return (n, 2) cluster and place: the first `count` different places of each cluster that lie inside."""
    owner, draw = np.nonzero(inside)
    place = start[owner, draw]
    order = np.lexsort((draw, place, owner))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (np.diff(owner[order]) != 0) | (np.diff(place[order]) != 0)
    first = np.sort(order[fresh])
    owner, place = owner[first], place[first]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return np.column_stack([owner, place])[rank < count]


def sample_walk(
    grid: Grid,
    rng: np.random.Generator,
    *,
    size: int,
    walks: int,
    tiles_per_walk: int,
    random_reset: float,
    min_step: float,
    max_step: float,
) -> Sampled:
    """Take windows along random walks: each lies `min_step` to `max_step` tile sizes from the one before it.

    With a probability of `random_reset` a window lies anywhere instead, and so does the first of each walk; windows in between make a
    cluster. The distance is that between centres, and every place of the ring is equally likely; a step out of the grid is turned round,
    up for down and left for right. A place that is visited again belongs to the first visit.
    """
    rows, cols = places(grid, size)
    if rows * cols * walks == 0:
        return Sampled(windows=np.empty((0, 4), np.int64), cluster=np.empty(0, np.int64))
    starts: list[IntArray] = []
    reset: list[BoolArray] = []
    for first in range(0, walks, _CLUSTERS_AT_ONCE):
        draws = rng.random((min(_CLUSTERS_AT_ONCE, walks - first), tiles_per_walk, 5))
        steps = _steps(draws[:, :, 3:], min_step * size, max_step * size)
        at, anew = _walked(np.floor(draws[:, :, 1:3] * [rows, cols]).astype(np.int64), steps, draws[:, :, 0] < random_reset, (rows, cols))
        starts.append((at[:, :, 0] * cols + at[:, :, 1]).ravel())
        reset.append(anew.ravel())
    start, cluster = np.concatenate(starts), np.concatenate(reset).cumsum() - 1
    kept = _first_of_each(start)
    return Sampled(windows=_windows(start[kept], cols, size), cluster=cluster[kept])


def _steps(draws: FloatArray, shortest: float, longest: float) -> IntArray:
    """Turn uniform draws (..., 2) into steps in whole pixels, uniform over a ring, and within it as far as whole pixels allow."""
    length = np.sqrt(shortest**2 + draws[..., 0] * (longest**2 - shortest**2))
    angle = 2 * np.pi * draws[..., 1]
    exact = np.stack([length * np.sin(angle), length * np.cos(angle)], axis=-1)
    near, inward, outward = np.rint(exact), np.trunc(exact), np.copysign(np.ceil(np.abs(exact)), exact)
    rounded = np.hypot(near[..., 0], near[..., 1])[..., None]
    steps: IntArray = np.where(rounded > longest, inward, np.where(rounded < shortest, outward, near)).astype(np.int64)
    return steps


def _walked(anywhere: IntArray, steps: IntArray, reset: BoolArray, places: tuple[int, int]) -> tuple[IntArray, BoolArray]:
    """Walk from each first place.

    Args:
        anywhere: (walks, tiles, 2) where a window would lie that begins anew.
        steps: (walks, tiles, 2) from the window before.
        reset: (walks, tiles) True where a window begins anew.
        places: rows and columns that a window can start in.

    Returns:
        (walks, tiles, 2) places, and (walks, tiles) bool: True where a window did begin anew; also where neither direction stays inside.
    """
    at, anew = anywhere.copy(), reset.copy()
    anew[:, 0] = True
    for tile in range(1, at.shape[1]):
        onward, back = at[:, tile - 1] + steps[:, tile], at[:, tile - 1] - steps[:, tile]
        there = np.where((onward >= 0) & (onward < places), onward, back)
        anew[:, tile] |= ((there < 0) | (there >= places)).any(axis=1)
        at[:, tile] = np.where(anew[:, tile, None], at[:, tile], there)
    return at, anew


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """Share a whole number out in proportion to weights (largest remainder; the earlier of equal ones first)."""
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: -(total * weights[index] % whole))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


SAMPLERS: Mapping[str, Callable[..., Sampled]] = MappingProxyType(
    {"random": sample_random, "grid": sample_grid, "cluster": sample_cluster, "walk": sample_walk}
)
"""Samplers by the `kind` of their section."""
