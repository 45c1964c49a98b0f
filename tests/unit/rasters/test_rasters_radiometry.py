"""Scale and offset, and Sentinel-2 scenes that lie about theirs."""

from __future__ import annotations

import numpy as np
import pytest

from rayjobs.errors import RadiometryError
from rayjobs.rasters.radiometry import check_sentinel2, check_sentinel2_scenes, is_sentinel2, physical
from rayjobs.rasters.reader import RasterReader
from rayjobs.rasters.scenes import Asset
from tests.unit.rasters.rasters_made import files, found, write

DECLARED = {"scale": 0.0001, "offset": -0.1}


def reflectance(seed=0, dark=0.02, bright=0.4):
    """(2, 300, 300) of ground with dark and bright places."""
    rng = np.random.default_rng(seed)
    return rng.uniform(dark, bright, (2, 300, 300)) * rng.uniform(0.5, 1, (1, 300, 300))


def scene(tmp_path, ground, *, added, datetime="2023-06-01", name="S2A_MSIL2A_x", **declared):
    counts = (ground * 10000 + added).round().astype("uint16")
    counts[:, :40, :40] = 0  # nodata that no one declares
    path = write(tmp_path / f"{name}.tif", counts, tiled=True, blockxsize=128, blockysize=128)
    return found(files(path, datetime=datetime, **declared)).scenes[0]


def check(scene):
    with RasterReader() as reader:
        check_sentinel2(scene, reader)


def test_physical_values_are_scaled_and_shifted_by_band():
    values = np.array([[[1000, 11000]], [[5, 7]]], "uint16")
    assets = [Asset(uri="a", scale=0.0001, offset=-0.1), Asset(uri="b", scale=2.0, offset=1.0)]
    result = physical(values, assets)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[[0.0, 1.0]], [[11.0, 15.0]]], atol=1e-7)


def test_honest_scenes_pass(tmp_path):
    check(scene(tmp_path, reflectance(), added=1000, **DECLARED))
    check(scene(tmp_path, reflectance(), added=0, scale=0.0001))
    check(scene(tmp_path, reflectance(), added=0))


def test_an_offset_that_was_never_added_is_found(tmp_path):
    liar = scene(tmp_path, reflectance(), added=0, **DECLARED)
    with pytest.raises(RadiometryError, match=r"band b1: offset -0\.1 is declared, but 1 % of the pixels are below \d+.*set `offset: 0`"):
        check(liar)


@pytest.mark.parametrize("declared", [{}, {"scale": 0.0001}])
def test_an_offset_that_no_one_declares_is_found(tmp_path, declared):
    liar = scene(tmp_path, reflectance(), added=1000, **declared)
    with pytest.raises(
        RadiometryError, match=r"no offset is declared, but the darkest 1 % of its pixels still reach 1\d\d\d, .*`offset: -0\.1`"
    ):
        check(liar)


def test_before_the_offset_was_invented_bright_ground_is_believed(tmp_path):
    sand = reflectance(dark=0.3, bright=0.5)
    check(scene(tmp_path, sand, added=0, datetime="2019-06-01"))
    check(scene(tmp_path, sand, added=1000, datetime="2023-06-01"))  # too bright to tell: passes
    reprocessed = scene(tmp_path, reflectance(), added=1000, datetime="2019-06-01", name="S2A_MSIL2A_20190601T101031_N0500_R022")
    with pytest.raises(RadiometryError, match="1000 were added"):
        check(reprocessed)


def test_other_satellites_are_not_judged(tmp_path):
    landsat = scene(tmp_path, reflectance(), added=0, name="LC08_x", **DECLARED)
    assert not is_sentinel2(landsat)
    check(landsat)


@pytest.mark.parametrize("name", ["S2A_MSIL2A_20230601T101031_N0509", "S2C_T32TQM", "x_MSIL1C_y"])
def test_names_of_products_tell_the_satellite(tmp_path, name):
    assert is_sentinel2(scene(tmp_path, reflectance(), added=0, name=name))


def test_the_platform_tells_the_satellite(tmp_path):
    assert is_sentinel2(scene(tmp_path, reflectance(), added=0, name="T32TQM", platform="sentinel-2b"))
    assert not is_sentinel2(scene(tmp_path, reflectance(), added=0, name="T32TQM"))


def test_a_set_is_stopped_warned_of_or_left_alone(tmp_path):
    honest = scene(tmp_path, reflectance(), added=1000, name="S2A_MSIL2A_honest", **DECLARED)
    liar = scene(tmp_path, reflectance(), added=0, name="S2A_MSIL2A_liar", **DECLARED)
    with pytest.raises(RadiometryError, match="S2A_MSIL2A_liar"):
        check_sentinel2_scenes([honest, liar], "error")
    warnings = check_sentinel2_scenes([honest, liar], "warn")
    assert [warning.split(",")[0] for warning in warnings] == ["scene S2A_MSIL2A_liar"]
    assert "offset -0.1 is declared" in warnings[0]
    assert check_sentinel2_scenes([honest, liar], "off") == []
    assert check_sentinel2_scenes([honest], "error") == []


def test_a_scene_without_pixels_tells_nothing(tmp_path):
    check(scene(tmp_path, np.zeros((2, 300, 300)), added=0, **DECLARED))
