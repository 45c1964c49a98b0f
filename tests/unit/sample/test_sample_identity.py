"""A set is known by what its imagery holds, not by where that lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from rayjobs.tiles import chips
from tests.unit.rasters.rasters_made import files, noise, write

CLASSES = {1: "one", 2: "two"}


@pytest.fixture
def imagery(tmp_path):
    """A folder with a scene, its quality layer and a label map; `side`, and so every file's size, stays when one is written anew."""
    folder = tmp_path / "imagery"
    folder.mkdir()
    write(folder / "scene.tif", noise(2, 64, 64, dtype="uint16", high=9000))
    write(folder / "quality.tif", np.zeros((1, 64, 64), "uint8"))
    write(folder / "labels.tif", np.ones((1, 64, 64), "uint8"))
    return folder


def source(folder):
    return files(f"{folder}/scene.tif", quality={"uri": f"{folder}/quality.tif", "classes": [1]})


def labels(folder):
    return {"label_map": {"uri": f"{folder}/labels.tif", "classes": CLASSES}}


def test_imagery_that_moved_or_was_touched_is_the_same_set(sample, imagery, tmp_path):
    first = sample(source(imagery), rasters=labels(imagery))
    assert first.result.fresh
    moved = shutil.copytree(imagery, tmp_path / "another bucket")
    for path in moved.iterdir():
        os.utime(path, (0, 0))
    again = sample(source(moved), rasters=labels(moved))
    assert (again.result.version, again.result.fresh) == (first.result.version, False)
    assert "published already" in again.said[-1]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("scene.tif", noise(2, 64, 64, dtype="uint16", high=9000, seed=1)),
        ("quality.tif", np.eye(64, dtype="uint8")[None]),
        ("labels.tif", np.full((1, 64, 64), 2, "uint8")),
    ],
    ids=["scene", "quality layer", "label map"],
)
def test_a_file_replaced_in_place_is_another_set(sample, imagery, name, values):
    first = sample(source(imagery), rasters=labels(imagery), tiles={"min_valid_fraction": 0.5})
    before = Path(imagery / name).stat()
    write(imagery / name, values)
    os.utime(imagery / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (imagery / name).stat().st_size == before.st_size
    again = sample(source(imagery), rasters=labels(imagery), tiles={"min_valid_fraction": 0.5})
    assert again.result.fresh
    assert again.result.version != first.result.version
    if name == "scene.tif":
        tile = again.tiles[0]
        chip = chips.read_chips(again.version.read(chips.shard_name(tile["shard"])), {tile["tile_id"]})[0]
        row, col = tile["row"], tile["col"]
        np.testing.assert_array_equal(chip.pixels, values[:, row : row + 16, col : col + 16])
    if name == "labels.tif":
        assert {tile["label"] for tile in first.tiles} == {"one"}
        assert {tile["label"] for tile in again.tiles} == {"two"}


def test_what_decides_bytes_is_in_the_name_and_nothing_else(sample, imagery):
    def version(rasters=None, tiles=None):
        return sample(source(imagery), rasters=labels(imagery) | (rasters or {}), tiles=tiles).result.version

    first = version()
    same = [version(rasters={"max_bad_fraction": 0.5}), version(rasters={"sentinel2_check": "off"}), version(tiles={"max_pos_dist": 2.0})]
    assert set(same) == {first}
    others = [
        version(rasters={"radiometry": "physical"}),
        version(tiles={"seed": 1, "sampler": {"kind": "random", "count": 30}}),
        version(tiles={"min_valid_fraction": 0.1}),
        version(tiles={"min_label_purity": 0.1}),
        version(tiles={"min_label_coverage": 0.1}),
        version(rasters={"label_map": {"uri": f"{imagery}/labels.tif", "classes": {1: "uno", 2: "two"}}}),
        version(rasters={"label_map": None}),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_another_palette_is_another_set(sample, imagery):
    write(imagery / "labels.tif", np.full((3, 64, 64), 10, "uint8"), photometric="RGB")

    def version(**keys):
        return sample(source(imagery), rasters={"label_map": {"uri": f"{imagery}/labels.tif", **keys}}).result.version

    first = version(palette={"one": [10, 10, 10]})
    others = [version(palette={"one": [10, 10, 11]}), version(palette={"one": [10, 10, 10]}, tolerance=16), version(palette="osm")]
    assert len({first, *others}) == 4
