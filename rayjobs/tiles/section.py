"""The `tiles` section of the experiment file: which places are looked at, and what near and far mean."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from rayjobs.config import section

Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Distance = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]

SPLITS = ("train", "val", "test")
"""Names of the splits, in the order in which the shares are laid out."""


@section
class RandomSampler:
    """Windows anywhere, each place equally likely."""

    kind: Literal["random"] = "random"
    """Windows anywhere, each place equally likely."""
    count: Annotated[int, pydantic.Field(ge=1)] = 1000
    """Candidates over all scenes, shared out by the scenes' number of pixels; those outside of `rasters.aoi` are then dropped."""


@section
class GridSampler:
    """Windows side by side."""

    kind: Literal["grid"] = "grid"
    """Windows side by side."""
    stride: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Pixels from one window to the next; null: as `overlap` says."""
    overlap: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of a window's side that the next one has, too: 0.5 gives four times as many tiles."""
    edge: Literal["discard", "shift", "pad"] = "discard"
    """What becomes of a window that would leave the scene: it is not taken; it is moved back until it ends at the edge; or it is taken and
    filled up with pixels that are 0 and not valid (`min_valid_fraction` does not count them)."""

    def __post_init__(self) -> None:
        """Refuse two ways of saying one thing."""
        if self.stride is not None and self.overlap:
            raise ValueError("`stride` and `overlap` both say how far windows are apart: give one of them")

    def step(self, size: int) -> int:
        """Return the pixels from one window of a size to the next, at least 1."""
        # the share is rounded before pixels are cut off, or 0.9 of 100 pixels would leave 9
        return self.stride or max(1, int(round(size * (1 - self.overlap), 6)))


@section
class ClusterSampler:
    """Groups of neighbouring windows: a raster block that is fetched for one serves all."""

    kind: Literal["cluster"] = "cluster"
    """Groups of neighbouring windows."""
    clusters: Annotated[int, pydantic.Field(ge=1)] = 100
    """Clusters over all scenes, shared out by the scenes' number of pixels."""
    tiles_per_cluster: Annotated[int, pydantic.Field(ge=1)] = 16
    """Windows in each cluster; fewer where a scene has no room for them."""
    radius: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 4.0
    """Distance from the cluster's centre within which its windows' centres lie, in tile sizes."""


@section
class WalkSampler:
    """Random walks: each window is a neighbour of the one before it, `min_pos_dist` to `max_pos_dist` away, so that the two are alike."""

    kind: Literal["walk"] = "walk"
    """Random walks whose steps are `tiles.min_pos_dist` to `tiles.max_pos_dist` long."""
    walks: Annotated[int, pydantic.Field(ge=1)] = 100
    """Walks over all scenes, shared out by the scenes' number of pixels; each begins anywhere."""
    tiles_per_walk: Annotated[int, pydantic.Field(ge=1)] = 16
    """Windows of each walk; a place that is visited again gives no other window."""
    random_reset: Fraction = 0.0
    """Probability with which a window lies anywhere instead: 0 walks on, 1 is random sampling."""


Sampler = Annotated[RandomSampler | GridSampler | ClusterSampler | WalkSampler, pydantic.Field(discriminator="kind")]


@section
class SplitsSection:
    """How the ground is divided, so that what is learned on one part is measured on another."""

    train: Fraction = 0.6
    """Share of the blocks, scenes or classes that train; the three shares add up to 1."""
    val: Fraction = 0.2
    """Share of the blocks on which choices are made."""
    test: Fraction = 0.2
    """Share of the blocks that are opened once, at the end."""
    by: Literal["block", "scene", "observation", "date", "class"] = "block"
    """`block`: squares of ground; `scene`: whole scenes; `observation`: whole observations that plain images were cut from, as their source
    names them; `date`: whole days, so that a date is measured that never trained, on ground that has; `class`: whole classes of labelled
    images, so that what is learned on some classes is measured on others, never seen. With `block`, plain images are divided by scene,
    having no ground; those of one place, whatever the date, stay together."""
    folds: Annotated[int, pydantic.Field(ge=3)] | None = None
    """Deal those out to so many folds of about as many tiles each, in place of shares; null: shares. Added imagery deals anew."""
    fold: Annotated[int, pydantic.Field(ge=0)] = 0
    """With `folds`: the one that is tested, from 0; the next is for validation, and the others train."""
    block_m: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 10_000.0
    """Side of a block, metres."""
    buffer_m: Distance = 0.0
    """Tiles nearer than this to the ground of another split belong to no split, metres."""
    seed: int = 0
    """Another seed gives blocks to other splits."""

    def __post_init__(self) -> None:
        """Refuse shares that do not add up."""
        if not math.isclose(self.train + self.val + self.test, 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares train {self.train}, val {self.val} and test {self.test} must add up to 1")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"there is no fold {self.fold} of {self.folds or 'none'}; they are counted from 0, and `folds` says how many")

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares in the order of `SPLITS`."""
        if self.folds is not None:
            return 1 - 2 / self.folds, 1 / self.folds, 1 / self.folds
        return self.train, self.val, self.test


@section
class TilesSection:
    """Which places are looked at, and what near and far mean."""

    size: Annotated[int, pydantic.Field(ge=1)] | None = 64
    """Side of a tile, pixels of its scene's own grid; null: each scene is one tile, as in image folders."""
    sampler: Sampler = RandomSampler()
    """How places are chosen."""
    seed: int = 0
    """Another seed chooses other places."""
    min_valid_fraction: Fraction = 0.9
    """Tiles with a smaller share of valid pixels are left out."""
    min_label_purity: Fraction = 0.0
    """Tiles whose dominant class covers a smaller share of the labelled pixels get no label."""
    min_label_coverage: Fraction = 0.5
    """Tiles that have a listed class on a smaller share of their pixels get no label."""
    min_pos_dist: Distance = 0.0
    """Least distance between the centres of two tiles that count as alike, in tile sizes."""
    max_pos_dist: Distance = 1.5
    """Greatest such distance: 1.5 takes in the 8 neighbours of a grid."""
    min_neg_dist: Distance = 4.0
    """Least distance between the centres of two tiles that count as different, in tile sizes."""
    max_neg_dist: Distance | None = None
    """Greatest such distance; null: any."""
    place_tolerance: Distance = 0.25
    """Greatest distance between the centres of tiles of two dates that show the same place, in tile sizes: what the dates' grids and their
    registration may be apart."""
    splits: SplitsSection = SplitsSection()
    """How the ground is divided into training, validation and test."""

    def __post_init__(self) -> None:
        """Refuse distances that leave nothing between them."""
        if self.min_pos_dist > self.max_pos_dist:
            raise ValueError(f"min_pos_dist {self.min_pos_dist} is above max_pos_dist {self.max_pos_dist}; no two tiles would be alike")
        if self.max_neg_dist is not None and self.min_neg_dist > self.max_neg_dist:
            raise ValueError(f"min_neg_dist {self.min_neg_dist} is above max_neg_dist {self.max_neg_dist}; no two tiles would differ")
