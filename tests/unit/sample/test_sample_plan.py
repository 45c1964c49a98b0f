"""Plans: how tiles are divided into shards, what reading costs, and when too much of the imagery is lost."""

from __future__ import annotations

import itertools

import numpy as np
import PIL.Image
import pytest
import rasterio
import shapely

from rayjobs.errors import TooManyFailuresError
from rayjobs.rasters.scenes import read_scenes, scenes_table
from rayjobs.sample import job
from rayjobs.sample import plan as module
from rayjobs.sample.plan import plan_set
from rayjobs.sample.read import from_ipc
from rayjobs.tiles.table import geometries
from tests.unit.rasters.rasters_made import UTM, files, noise, write

MIB = 2**20


def planned(experiment, *sources, **sections):
    made = experiment(*sources, **sections)
    return plan_set(made.rasters, made.tiles)


def empty(path, *, bands, side, block=512, dtype="uint16"):
    """A raster that stores no block, so that its size costs nothing."""
    grid = {"crs": UTM, "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), "width": side, "height": side}
    layout = {"tiled": True, "blockxsize": block, "blockysize": block, "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", count=bands, dtype=dtype, **grid, **layout):
        return str(path)


def shard_bytes(plan, bands, itemsize):
    tiles = plan.tiles
    pixels = tiles["height"].to_numpy().astype(int) * tiles["width"].to_numpy()
    return np.bincount(tiles["shard"].to_numpy(), pixels * bands * itemsize)


def test_large_tiles_make_small_shards(experiment, tmp_path):
    plan = planned(experiment, files(empty(tmp_path / "a.tif", bands=12, side=8192)), tiles={"size": 2048})
    assert plan.shards == plan.tiles.num_rows == 16, "96 MiB each: one tile is a shard"
    tile, group = 2048 * 2048 * 12 * 2, 2048 * 2048 * (12 * 2 + 1)
    assert plan.cost()["memory_per_worker_bytes"] == 5 * tile + group + 256 * MIB


def test_memory_bounds_a_shard_before_the_least_number_of_tiles_does(experiment, tmp_path):
    plan = planned(experiment, files(empty(tmp_path / "a.tif", bands=12, side=8192)), tiles={"size": 512})
    held = shard_bytes(plan, 12, 2)
    assert held.max() <= 32 * MIB
    assert held[:-1].min() > 20 * MIB
    small = planned(experiment, files(empty(tmp_path / "b.tif", bands=1, side=1024, dtype="uint8")), tiles={"size": 64})
    assert set(np.bincount(small.tiles["shard"].to_numpy())) == {32}


def test_the_cost_follows_the_largest_shard_and_the_reads_in_flight(experiment, tmp_path):
    costs = [
        planned(experiment, files(empty(tmp_path / f"{size}.tif", bands=4, side=4096)), tiles={"size": size}).cost()
        for size in (64, 256, 1024)
    ]
    for size, cost in zip((64, 256, 1024), costs, strict=True):
        assert (cost["tiles"], cost["chip_bytes"]) == ((4096 // size) ** 2, 4096 * 4096 * 4 * 2)
        largest = max(size * size * 8, 4096 * 4096 * 8 / 16)
        assert largest < cost["memory_per_worker_bytes"] < 1024 * MIB
    tiny = planned(experiment, files(write(tmp_path / "tiny.tif", noise(1, 64, 64)))).cost()
    assert tiny["memory_per_worker_bytes"] < MIB


@pytest.mark.parametrize("seed", range(5))
def test_shards_are_filled_in_the_order_of_reading(seed, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_BYTES", 1000)
    monkeypatch.setattr(module, "_MIN_SHARDS", 3)
    monkeypatch.setattr(module, "_MIN_SHARD_TILES", 4)
    sizes = np.random.default_rng(seed).integers(1, 1500, 60).astype(float)
    shards = module._divided(sizes)
    found = [sizes[shards == shard] for shard in range(shards[-1] + 1)]
    assert (np.diff(shards) >= 0).all()
    for shard in found:
        assert 1 <= len(shard) <= 20
        assert len(shard) == 1 or shard.sum() <= 1000
    for shard, following in itertools.pairwise(found):
        assert len(shard) == 20 or shard.sum() + following[0] > 1000, "no shard ends before it must"


def test_each_shard_gets_its_tiles_and_their_scenes_alone(experiment, tmp_path):
    for index in range(6):
        write(tmp_path / f"{index}.tif", noise(1, 112, 112), origin=(500_000 + 2000 * index, 5_000_000))
    plan = planned(experiment, files(tmp_path / "*.tif"))
    assert plan.shards > 6
    for entry in job._shards(plan):
        tiles = from_ipc(entry["tiles"]).to_pylist()
        members = [row for row in plan.tiles.to_pylist() if row["shard"] == entry["shard"]]
        assert [row["tile_id"] for row in tiles] == [row["tile_id"] for row in sorted(members, key=lambda row: row["order"])]
        scenes = from_ipc(entry["scenes"])
        wanted = {row["scene_id"] for row in members}
        assert read_scenes(scenes) == [scene for scene in plan.scenes if scene.scene_id in wanted]
        assert len(entry["scenes"]) < 5 * len(entry["tiles"])
    assert [entry["shard"] for entry in job._shards(plan)] == list(range(plan.shards))
    assert scenes_table(plan.scenes).num_rows == 6


def test_an_area_chooses_tiles(experiment, tmp_path):
    source = files(write(tmp_path / "a.tif", noise(1, 256, 256)))
    whole = planned(experiment, source)
    west, south, east, north = shapely.total_bounds(geometries(whole.tiles))
    box = [west, (south + north) / 2, (west + east) / 2, north]
    part = planned(experiment, source, rasters={"aoi": box})
    meets = shapely.intersects(geometries(whole.tiles), shapely.box(*box))
    assert part.tiles["tile_id"].to_pylist() == whole.tiles.filter(meets)["tile_id"].to_pylist()
    assert 64 <= part.tiles.num_rows <= 81 < whole.tiles.num_rows


def test_scenes_that_cannot_be_opened_count_against_the_limit(experiment, tmp_path):
    for index in range(20):
        path = tmp_path / f"{index:02}.tif"
        write(path, noise(1, 64, 64), origin=(500_000 + 2000 * index, 5_000_000))
        if index >= 1:
            path.write_bytes(b"II*\0broken")
    words = (
        r"19 of 20 scenes cannot be opened \(19 files\), more than rasters\.max_bad_fraction 0\.05 allows: .*01\.tif: cannot be opened.*"
        r"02\.tif.*03\.tif.*; and 16 more; replace the files, leave them out, or raise rasters\.max_bad_fraction"
    )
    with pytest.raises(TooManyFailuresError, match=words):
        planned(experiment, files(tmp_path / "*.tif"))
    assert len(planned(experiment, files(tmp_path / "*.tif"), rasters={"max_bad_fraction": 0.95}).scenes) == 1


def test_a_scene_is_lost_with_one_of_its_files(experiment, tmp_path):
    for index in range(4):
        for band in "rgb":
            write(tmp_path / f"{index}_{band}.tif", noise(1, 64, 64), origin=(500_000 + 2000 * index, 5_000_000))
        (tmp_path / f"{index}_r.tif").write_bytes(b"II*\0broken" if index else (tmp_path / "0_r.tif").read_bytes())
    source = files(tmp_path / "*.tif", pattern=r"(?P<scene>\d)_(?P<band>\w)\.tif")
    with pytest.raises(TooManyFailuresError, match=r"3 of 4 scenes cannot be opened \(3 files\)"):
        planned(experiment, source, rasters={"max_bad_fraction": 0.5})


def test_a_plan_names_the_files_that_cannot_be_opened(experiment, tmp_path):
    for index in range(20):
        path = tmp_path / f"{index:02}.tif"
        write(path, noise(1, 64, 64), origin=(500_000 + 2000 * index, 5_000_000))
        if index >= 5:
            path.write_bytes(b"II*\0broken")
    cost = planned(experiment, files(tmp_path / "*.tif"), rasters={"max_bad_fraction": 0.9}).cost()
    assert (cost["unreadable_files"], len(cost["unreadable"])) == (15, 10)
    assert "05.tif: cannot be opened" in cost["unreadable"][0]


@pytest.mark.parametrize(("size", "cut"), [(16, True), (40, False), (None, False)])
def test_a_plan_says_that_pictures_are_cut_up(experiment, tmp_path, size, cut):
    (tmp_path / "pond").mkdir()
    PIL.Image.fromarray(noise(40, 40, 3)).save(tmp_path / "pond" / "a.png")
    plan = planned(experiment, {"kind": "images", "root": str(tmp_path)}, tiles={"size": size})
    assert plan.cost()["cautions"] == list(plan.cautions)
    assert bool(plan.cautions) == cut
    if cut:
        assert "1 pictures without coordinates, such as pond/a.png of 40 x 40 pixels, are cut into windows of 16 x 16" in plan.cautions[0]
        assert "tiles.size: null" in plan.cautions[0]


def test_ground_that_is_cut_into_tiles_needs_no_caution(experiment, tmp_path):
    assert planned(experiment, files(write(tmp_path / "a.tif", noise(1, 64, 64)))).cautions == ()
