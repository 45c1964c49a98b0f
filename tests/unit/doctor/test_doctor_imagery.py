"""GDAL and a first block, with real files."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from rayjobs.config import build
from rayjobs.doctor import imagery
from rayjobs.doctor.checks import looked
from rayjobs.experiment import Experiment


def experiment(path):
    return build(Experiment, {"name": "x", "rasters": {"sources": [{"kind": "files", "uris": [str(path)]}]}})


def write(path, **options):
    values = np.random.default_rng(0).integers(1, 255, (1, 512, 512)).astype(np.uint8)
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(path, "w", driver="GTiff", width=512, height=512, count=1, dtype="uint8", **place, **options) as file:
        file.write(values)
    return path


def look(path):
    [check] = looked({"imagery/block": lambda: imagery.first_block(experiment(path))})
    return check


def test_gdal_is_set_up_as_we_set_it_up():
    check = imagery.gdal()
    assert (check.state, check.remedy) == ("ok", "")
    assert rasterio.__gdal_version__.rpartition(".")[0] in check.finding


@pytest.mark.parametrize(
    ("found", "wanted", "same"), [(True, "YES", True), (False, "FALSE", True), (True, "FALSE", False), (5, 5, True), (None, 5, False)]
)
def test_what_gdal_gives_back_is_compared_with_what_was_set(found, wanted, same):
    assert imagery._same(found, wanted) == same


def test_a_setting_of_another_value_is_told(monkeypatch):
    monkeypatch.setattr(imagery, "BLOCK_CACHE_BYTES", 1)
    check = imagery.gdal()
    assert (check.state, "GDAL_CACHEMAX" in check.finding) == ("fault", True)


def test_foreign_tables_of_projections_are_told(tmp_path):
    """In a process of its own, since PROJ reads the variable once."""
    code = "from rayjobs.doctor import imagery; print(imagery.gdal())"
    environment = {**os.environ, "PROJ_DATA": str(tmp_path), "PROJ_LIB": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "state='fault'" in done.stdout, done.stderr
    assert "unset PROJ_LIB" in done.stdout


def test_a_first_block_is_read(tmp_path):
    check = look(write(tmp_path / "a.tif", tiled=True, blockxsize=256, blockysize=256))
    assert check.state == "ok"
    assert "a block of 256 x 256" in check.finding
    assert "of 1 scenes" in check.finding


def test_blocks_that_are_too_large_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(imagery, "_LARGE_BLOCK", 100_000)
    check = look(write(tmp_path / "a.tif", tiled=True, blockxsize=512, blockysize=512))
    assert (check.state, "COG" in check.remedy) == ("caution", True)


@pytest.mark.parametrize("spoil", ["absent", "not an image", "cut short"])
def test_imagery_that_cannot_be_read_is_told(tmp_path, spoil):
    path = tmp_path / "a.tif"
    if spoil != "absent":
        data = write(path, tiled=True, blockxsize=256, blockysize=256).read_bytes()
        path.write_bytes(b"hello" if spoil == "not an image" else data[:2000])
    check = look(path)
    assert (check.name, check.state) == ("imagery/block", "fault")
    assert "a.tif" in check.finding
