from __future__ import annotations

import itertools

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs import geo
from rayjobs.errors import NoTilesError
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.section import SPLITS, ClusterSampler, GridSampler, RandomSampler, SplitsSection, TilesSection
from rayjobs.tiles.splits import NO_SPLIT, assign_splits, cell_names
from rayjobs.tiles.table import geometries, plan_tiles

SAMPLERS = [RandomSampler(count=400), GridSampler(), GridSampler(stride=48), ClusterSampler(clusters=25)]


def scene(scene_id: str, crs: str, lon: float, lat: float, *, pixel_m: float = 30.0, side: int = 700) -> Scene:
    """A scene round a place."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    pixel = pixel_m / 111_320 if pyproj.CRS(crs).is_geographic else pixel_m
    grid = geo.Grid(crs=crs, transform=(pixel, 0, x - pixel * side / 2, 0, -pixel, y + pixel * side / 2), height=side, width=side)
    return Scene(scene_id=scene_id, assets={"red": Asset(uri="x.tif")}, grid=grid, block=(256, 256), dtype="uint16")


GROUNDS = {
    "two zones": [
        scene("a", "EPSG:32612", -108.0, 37),
        scene("b", "EPSG:32613", -107.95, 37.03),
        scene("c", "EPSG:5070", -108.02, 36.95, pixel_m=20),
    ],
    "two dates": [scene("a", "EPSG:26914", -99, 47, pixel_m=25), scene("b", "EPSG:26914", -99.0001, 47, pixel_m=25)],
    "antimeridian": [scene("a", "EPSG:32660", 179.95, -17), scene("b", "EPSG:32601", -179.97, -17.02), scene("c", "EPSG:4326", 179.9, -17)],
    "pole": [scene("a", "EPSG:3413", 10, 89.95), scene("b", "EPSG:3413", 170, 89.9, pixel_m=40)],
}


def apart(tiles, buffer_deg: float = 0.0) -> bool:
    """Whether no two tiles of different splits share or touch ground, by shapely alone, -180 and 180 being one meridian."""
    splits, shapes = np.array(tiles["split"].to_pylist(), object), geometries(tiles)
    for one, other in itertools.combinations(SPLITS, 2):
        mine = shapely.buffer(shapes[splits == one], max(buffer_deg, 1e-9), join_style="mitre")
        theirs = shapes[splits == other]
        for turn in (-360, 0, 360):
            moved = shapely.transform(theirs, lambda points, turn=turn: points + np.array([turn, 0]))
            if shapely.STRtree(moved).query(mine, predicate="intersects").size:
                return False
    return True


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.kind)
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("seed", range(3))
def test_no_two_splits_share_or_touch_ground(ground, sampler, seed):
    try:
        tiles = plan_tiles(GROUNDS[ground], TilesSection(size=32, sampler=sampler, splits=SplitsSection(block_m=3000, seed=seed)))
    except NoTilesError as error:
        pytest.skip(str(error))
    assert apart(tiles)
    kept = tiles["split"].to_pylist()
    assert sum(split is not None for split in kept) > 0.1 * len(kept)


def test_the_oracle_sees_shared_ground():
    tiles = plan_tiles(GROUNDS["two zones"], TilesSection(size=32, sampler=GridSampler(), splits=SplitsSection(block_m=3000)))
    split = tiles["split"].to_pylist()
    row = next(index for index, value in enumerate(split) if value is None)
    with_it = [tiles.set_column(7, tiles.schema.field("split"), [[*split[:row], name, *split[row + 1 :]]]) for name in SPLITS]
    assert not all(apart(table) for table in with_it), "a tile that was left out touches several splits"


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["EPSG:32612", "EPSG:3857", "EPSG:4326", "EPSG:5070"]),
    st.sampled_from(["EPSG:32613", "EPSG:26913", "EPSG:4326"]),
    st.tuples(st.floats(-108.2, -107.8), st.floats(36.8, 37.2)),
    st.integers(0, 1000),
    st.floats(1500, 8000),
)
def test_no_two_splits_share_ground_wherever_scenes_overlap(crs, other, place, seed, block_m):
    scenes = [scene("a", crs, -108, 37, side=300), scene("b", other, *place, pixel_m=17, side=400)]
    try:
        tiles = plan_tiles(
            scenes, TilesSection(size=20, sampler=RandomSampler(count=300), splits=SplitsSection(block_m=block_m, seed=seed))
        )
    except NoTilesError:
        return
    assert apart(tiles)


def test_a_buffer_keeps_splits_at_its_distance():
    section = TilesSection(size=32, sampler=GridSampler(), splits=SplitsSection(block_m=6000, buffer_m=800))
    tiles = plan_tiles(GROUNDS["two zones"], section)
    assert apart(tiles, buffer_deg=800 / 111_320)
    without = plan_tiles(GROUNDS["two zones"], TilesSection(size=32, sampler=GridSampler(), splits=SplitsSection(block_m=6000)))
    assert tiles["split"].null_count > without["split"].null_count


def test_a_block_keeps_its_split_when_scenes_join():
    section = TilesSection(size=32, sampler=GridSampler(), splits=SplitsSection(block_m=3000))
    few = {row["tile_id"]: row["split"] for row in plan_tiles(GROUNDS["two zones"][:1], section).to_pylist()}
    many = {row["tile_id"]: row["split"] for row in plan_tiles(GROUNDS["two zones"], section).to_pylist()}
    assert few.items() <= many.items()


def test_shares_are_kept_over_many_blocks_and_another_seed_gives_others():
    boxes = np.random.default_rng(0).uniform([-170, -80], [170, 80], (20_000, 2))
    boxes = np.concatenate([boxes, boxes + 1e-6], axis=1)
    found = [
        assign_splits(["s"], np.zeros(20_000, int), boxes[:, :2], boxes, SplitsSection(train=0.5, val=0.2, test=0.3, seed=seed)).split
        for seed in (0, 1)
    ]
    for split in found:
        counts = np.bincount(split[split != NO_SPLIT], minlength=3) / (split != NO_SPLIT).sum()
        assert counts == pytest.approx([0.5, 0.2, 0.3], abs=0.02)
    assert np.mean(found[0] == found[1]) == pytest.approx(0.25 + 0.04 + 0.09, abs=0.03), "as two independent draws agree"


def test_one_split_alone_takes_every_tile():
    tiles = plan_tiles(GROUNDS["antimeridian"], TilesSection(size=32, splits=SplitsSection(train=0, val=0, test=1, block_m=100)))
    assert set(tiles["split"].to_pylist()) == {"test"}


def test_by_scene_gives_way_where_scenes_overlap():
    scenes = [scene(f"s{n}", "EPSG:32612", -111 + 0.12 * n, 37) for n in range(8)] + [
        scene("far", "EPSG:32701", -179.99, -17),
        scene("east", "EPSG:32760", 179.98, -17),
    ]
    tiles = plan_tiles(scenes, TilesSection(size=32, sampler=GridSampler(), splits=SplitsSection(by="scene", seed=2)))
    assert apart(tiles)
    of_scene = {}
    for row in tiles.to_pylist():
        assert row["block_id"] == row["scene_id"]
        of_scene.setdefault(row["scene_id"], set()).add(row["split"])
    assert all(len(splits - {None}) <= 1 for splits in of_scene.values())
    assert 0 < tiles["split"].null_count < 0.5 * tiles.num_rows


def test_tiles_larger_than_blocks_say_so():
    section = TilesSection(size=64, sampler=GridSampler(), splits=SplitsSection(block_m=300))
    with pytest.raises(
        NoTilesError,
        match=r"train and val and test: .* 100 touch more than one split; make tiles.splits.block_m \(now 300\) several times as large",
    ):
        plan_tiles(GROUNDS["two zones"][:1], section)


def test_too_few_blocks_say_so():
    section = TilesSection(size=32, sampler=GridSampler(), splits=SplitsSection(block_m=5_000_000, seed=2))
    with pytest.raises(
        NoTilesError, match=r"they lie in 1 blocks.*\(now 5e\+06\) smaller, so that there are more blocks, or try another tiles.splits.seed"
    ):
        plan_tiles(GROUNDS["two dates"], section)


def test_too_few_scenes_say_so():
    section = TilesSection(size=32, sampler=GridSampler(), splits=SplitsSection(by="scene"))
    with pytest.raises(NoTilesError, match=r"tiles.splits.by: block"):
        plan_tiles(GROUNDS["two dates"][:1], section)


def test_tiles_as_large_as_the_globe_do_not_stop_the_rest():
    boxes = np.array([[-180.0, -90, 180, 90], [10, 10, 10.0001, 10.0001]])
    found = assign_splits(["s"], np.array([0, 0]), np.array([[0.0, 0], [10, 10]]), boxes, SplitsSection(block_m=1000))
    assert found.split[0] == NO_SPLIT
    assert found.split[1] != NO_SPLIT


def test_names_of_cells_are_those_of_geo():
    cells = np.array([[0, 0], [12, 345678901], [1409, 7]])
    assert cell_names(cells).to_pylist() == [geo.cell_name(row, col) for row, col in cells.tolist()]


def test_by_scene_sees_both_sides_of_the_antimeridian():
    crossing, beyond, west = [179.99, -1, -179.99, -0.99], [-179.995, -1, -179.98, -0.99], [179.98, -1, 179.995, -0.99]
    for seed in range(8):
        section = SplitsSection(train=0.5, val=0, test=0.5, by="scene", seed=seed)
        for other in (beyond, west):
            found = assign_splits(["a", "b"], np.array([0, 1]), np.zeros((2, 2)), np.array([crossing, other]), section).split.tolist()
            assert found in ([0, 0], [2, 2], [NO_SPLIT, 2], [2, NO_SPLIT])
        found = assign_splits(["a", "b"], np.array([0, 1]), np.zeros((2, 2)), np.array([beyond, west]), section).split.tolist()
        assert NO_SPLIT not in found, "they lie a hundredth of a degree apart"
