"""What becomes of tiles: read, read again after an outage, labelled, left out; and what the person is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rayjobs.config import build
from rayjobs.errors import ConfigError, TooManyFailuresError, UnreadableTileError
from rayjobs.rasters.reader import REPLACE, RasterReader
from rayjobs.sample import job, read
from rayjobs.tiles import chips
from tests.unit.rasters.rasters_made import files, noise, write


@pytest.fixture
def two_scenes(tmp_path):
    """128 tiles in four shards, two for each scene; and the values of each."""
    values = {name: noise(1, 128, 128, seed=ord(name)) for name in "ab"}
    for name, pixels in values.items():
        write(tmp_path / f"{name}.tif", pixels, origin=(500_000 + 3000 * ord(name), 5_000_000))
    return files(tmp_path / "*.tif"), values


class Outage(RasterReader):
    """No tile at the lower edge of scene `a` can be read."""

    def read_many(self, scene, windows):
        answers = super().read_many(scene, windows)
        lost = (windows[:, 0] == 112) & (scene.scene_id == "a")
        return [UnreadableTileError("the network is down") if gone else answer for gone, answer in zip(lost, answers, strict=True)]


def shard_times(sampled):
    folder = Path(sampled.artefact.store.uri.removeprefix("file:"), sampled.version.prefix, "chips")
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def assert_all_right(sampled, values):
    assert sampled.result.counts["kept"] == len(sampled.tiles) == 128
    for tile in sampled.tiles:
        chip = chips.read_chips(sampled.version.read(chips.shard_name(tile["shard"])), {tile["tile_id"]})[0]
        row, col = tile["row"], tile["col"]
        np.testing.assert_array_equal(chip.pixels, values[tile["scene_id"]][:, row : row + 16, col : col + 16])


@pytest.mark.parametrize("asks", [{"train": {"supervision": "places"}}, {"evaluate": {"relevance": "place"}}])
def test_imagery_of_one_date_for_what_compares_dates_is_a_caution(experiment, tmp_path, asks):
    for name in ("2015", "2018"):
        write(tmp_path / f"{name}.tif", noise(1, 64, 64))
    one, both = (files(tmp_path / found, pattern=r"(?P<date>\d{4})\.tif") for found in ("2015.tif", "*.tif"))
    plain = experiment(one)
    (said,) = job.preview(dataclasses.replace(plain, **{key: build(type(getattr(plain, key)), part) for key, part in asks.items()}))[
        "cautions"
    ]
    assert "compare dates, and all scenes are of one date" in said
    assert job.preview(plain)["cautions"] == []
    more = experiment(both)
    assert (
        job.preview(dataclasses.replace(more, **{key: build(type(getattr(more, key)), part) for key, part in asks.items()}))["cautions"]
        == []
    )


def test_after_an_outage_the_shards_with_holes_are_read_again_and_no_others(sample, two_scenes, monkeypatch, tmp_path):
    source, values = two_scenes
    with monkeypatch.context() as during:
        during.setattr(read, "RasterReader", Outage)
        with pytest.raises(TooManyFailuresError, match=r"8 of 128 tiles cannot be read.*the network is down"):
            sample(source)
    folder = next((tmp_path / "workspace" / "sets" / "made-up").iterdir()) / "chips"
    left = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert left
    done = sample(source)
    assert done.result.fresh
    assert done.result.counts["unreadable"] == 0
    assert_all_right(done, values)
    holes = {chips.shard_name(tile["shard"]) for tile in done.tiles if tile["scene_id"] == "a" and tile["row"] == 112}
    now = shard_times(done)
    assert {name: now[name] for name in left} == left, "what an attempt left is not overwritten"
    assert {entry.name for entry in done.version.files if entry.path} == holes
    assert 0 < len(holes) < len(left)


def test_a_published_version_never_changes(sample, two_scenes, monkeypatch):
    source, _ = two_scenes
    lenient = {"max_bad_fraction": 0.1}
    with monkeypatch.context() as during:
        during.setattr(read, "RasterReader", Outage)
        holed = sample(source, rasters=lenient)
    assert holed.result.counts["unreadable"] == 8
    before = shard_times(holed)

    again = sample(source, rasters=lenient)
    assert not again.result.fresh
    assert "8 of its tiles could not be read then" in again.said[-1]
    assert "workspace.set" in again.said[-1]

    sample(source, rasters=lenient, tiles={"min_valid_fraction": 0.5})  # another version becomes the current one
    back = sample(source, rasters=lenient)
    assert not back.result.fresh
    assert back.version.manifest == holed.version.manifest
    assert shard_times(back) == before


def test_a_shard_that_was_lost_is_read_again_and_no_other(sample, two_scenes):
    source, values = two_scenes
    first = sample(source)
    before = shard_times(first)
    lost = chips.shard_name(1)
    first.artefact.store.delete(first.version.prefix + lost)
    again = sample(source)
    assert again.result.fresh
    assert again.version.manifest == first.version.manifest
    assert_all_right(again, values)
    now = shard_times(again)
    assert {name for name in before if now[name] != before[name]} == {lost.rpartition("/")[2]}


def test_few_of_many_files_left_out_are_shown_and_all_are_kept(sample, tmp_path):
    for index in range(30):
        path = tmp_path / f"{index:02}.tif"
        write(path, noise(1, 64, 64), origin=(500_000 + 2000 * index, 5_000_000))
        if index >= 10:
            path.write_bytes(b"II*\0broken")
    done = sample(files(tmp_path / "*.tif"), rasters={"max_bad_fraction": 0.7})
    assert sum("left out" in line for line in done.said) == 3
    assert any("and 17 more" in line for line in done.said)
    reasons = done.table("quarantine.parquet")["reason"].to_pylist()
    assert len(reasons) == done.result.counts["unreadable_files"] == 20
    assert all(f"{index:02}.tif" in " ".join(reasons) for index in range(10, 30))


def test_too_many_files_leave_nothing_behind(sample, tmp_path):
    write(tmp_path / "a.tif", noise(1, 64, 64))
    (tmp_path / "b.tif").write_bytes(b"II*\0broken")
    with pytest.raises(TooManyFailuresError, match=r"1 of 2 scenes"):
        sample(files(tmp_path / "*.tif"))
    assert not (tmp_path / "workspace").exists()


@pytest.fixture
def slivers(tmp_path):
    """A scene of 4 x 4 tiles of 16 pixels, with labels on 2 columns of pixels of each tile in the left half, and on all of the right."""
    source = files(write(tmp_path / "a.tif", noise(1, 64, 64)))
    codes = np.zeros((1, 64, 64), "uint8")
    codes[:, :, 32:] = 2
    for col in (0, 16):
        codes[:, :, col : col + 2] = 1
    return source, {"label_map": {"uri": write(tmp_path / "labels.tif", codes), "classes": {1: "sliver", 2: "field"}, "nodata": 0}}


def test_a_sliver_of_label_labels_no_tile(sample, slivers):
    source, rasters = slivers
    tiles = sample(source, rasters=rasters).tiles
    left, right = ([tile for tile in tiles if (tile["col"] < 32) == is_left] for is_left in (True, False))
    assert {(tile["label"], tile["label_coverage"], tile["label_purity"]) for tile in left} == {(None, 2 / 16, 1.0)}
    assert {(tile["label"], tile["label_coverage"], tile["label_purity"]) for tile in right} == {("field", 1.0, 1.0)}
    assert left[0]["label_fractions"] == [1.0, 0.0]


def test_the_least_coverage_is_the_persons_to_choose(sample, slivers):
    source, rasters = slivers
    tiles = sample(source, rasters=rasters, tiles={"min_label_coverage": 2 / 16}).tiles
    assert {tile["label"] for tile in tiles} == {"sliver", "field"}
    without = sample(source).tiles
    assert {(tile["label"], tile["label_coverage"]) for tile in without} == {(None, None)}


def test_a_contradicted_offset_is_told_to_the_person(sample, tmp_path):
    for index in range(5):
        ground = np.random.default_rng(index).uniform(0.02, 0.4, (1, 128, 128))
        counts = (ground * 10000).round().astype("uint16")
        write(tmp_path / f"S2A_MSIL2A_{index}.tif", counts, origin=(500_000 + 3000 * index, 5_000_000))
    source = files(tmp_path / "*.tif", scale=0.0001, offset=-0.1, datetime="2023-06-01")
    said = sample(source, rasters={"sentinel2_check": "warn"}).said
    warnings = [line for line in said if "offset -0.1 is declared" in line]
    assert ["S2A_MSIL2A_0" in warnings[0], "S2A_MSIL2A_2" in warnings[2], len(warnings)] == [True, True, 3]
    assert any("and 2 more" in line for line in said)


def test_band_statistics_are_those_of_the_training_pixels(sample, two_scenes):
    source, values = two_scenes
    manifest = sample(source).version.manifest
    pixels = np.concatenate([entry.ravel() for entry in values.values()]).astype(float)
    np.testing.assert_allclose(manifest["band_mean"], [pixels.mean()], rtol=1e-9)
    np.testing.assert_allclose(manifest["band_std"], [pixels.std()], rtol=1e-9)


def test_tiles_that_could_not_be_read_are_named_with_the_place_where_all_are_listed(sample, two_scenes, monkeypatch):
    source, _ = two_scenes
    with monkeypatch.context() as during:
        during.setattr(read, "RasterReader", Outage)
        done = sample(source, rasters={"max_bad_fraction": 0.1})
    assert "8 tiles could not be read: the network is down" in done.said[-2]
    assert done.said[-1].endswith(done.result.quarantine)
    assert Path(done.result.quarantine).name == "quarantine.parquet"
    assert len(done.table("quarantine.parquet")) == 8
    assert sample(source, rasters={"max_bad_fraction": 0.1}).result.quarantine == done.result.quarantine


def test_a_set_without_losses_has_no_quarantine_to_look_at(sample, two_scenes):
    done = sample(two_scenes[0])
    assert done.result.quarantine is None
    assert not any("left out" in line for line in done.said)


class Gone(RasterReader):
    """No tile can be read; each reason names its scene."""

    def read_many(self, scene, windows):
        return [UnreadableTileError(f"scene {scene.scene_id} is gone; {REPLACE}")] * len(windows)


def test_too_many_lost_tiles_name_the_first_scenes_and_the_key(sample, two_scenes, monkeypatch):
    monkeypatch.setattr(read, "RasterReader", Gone)
    with pytest.raises(TooManyFailuresError) as caught:
        sample(two_scenes[0], rasters={"max_bad_fraction": 0.75})
    assert "scene a is gone; scene b is gone; replace the files, leave them out, or raise rasters.max_bad_fraction" in str(caught.value)


def test_a_plan_says_whether_the_set_is_there(sample, experiment, two_scenes):
    source, _ = two_scenes
    assert not job.preview(experiment(source))["published_already"]
    sample(source)
    assert job.preview(experiment(source))["published_already"]
    assert not job.preview(experiment(source, tiles={"min_valid_fraction": 0.5}))["published_already"]


def test_a_plan_checks_the_workspace_first(experiment, two_scenes, tmp_path):
    (tmp_path / "workspace").write_text("a file")
    with pytest.raises(ConfigError, match=r"workspace is a file; choose another workspace\.uri"):
        job.preview(experiment(two_scenes[0]))


def test_classes_are_counted(sample, slivers):
    source, rasters = slivers
    assert sample(source, rasters=rasters, tiles={"min_label_coverage": 2 / 16}).result.counts["by_class"] == {"field": 8, "sliver": 8}
    assert "by_class" not in sample(source).result.counts


def test_tiles_at_the_edge_are_filled_up_with_pixels_that_are_not_valid(sample, experiment, tmp_path):
    values = noise(2, 40, 50)
    write(tmp_path / "a.tif", values)
    keys = {"tiles": {"sampler": {"kind": "grid", "edge": "pad"}}}
    told = job.preview(experiment(files(tmp_path / "a.tif"), **keys))
    assert told["tile_grid"]["tiles"] == told["tiles"] == 3 * 4
    done = sample(files(tmp_path / "a.tif"), **keys)
    rows = {row["tile_id"]: row for row in done.tiles}
    found = [
        chip for file in done.version.files if file.name.startswith("chips/") for chip in chips.read_chips(done.version.read(file.name))
    ]
    assert len(found) == 12
    padded = np.zeros((2, 48, 64), np.uint8)
    padded[:, :40, :50] = values
    for chip in found:
        row, col = rows[chip.tile_id]["row"], rows[chip.tile_id]["col"]
        np.testing.assert_array_equal(chip.pixels, padded[:, row : row + 16, col : col + 16])
        inside = np.zeros((48, 64), bool)
        inside[:40, :50] = True
        np.testing.assert_array_equal(chip.valid, inside[row : row + 16, col : col + 16])
