"""Quality layers: bits, classes, other resolutions and extents."""

from __future__ import annotations

import numpy as np
import pytest

from rayjobs.errors import BandError
from rayjobs.geo import Window
from rayjobs.rasters.reader import RasterReader
from tests.unit.rasters.rasters_made import files, found, noise, write

WINDOW = Window(row=3, col=6, height=30, width=33)


def valid(scene, window=WINDOW):
    with RasterReader() as reader:
        return reader.read(scene, window).valid


def naive(codes, row, col, *, factor, bits=(), classes=()):
    """Whether one pixel passes, a pixel of the layer spanning `factor` of the scene's."""
    r, c = row // factor, col // factor
    if r >= codes.shape[0] or c >= codes.shape[1]:
        return False
    return codes[r, c] not in classes and not any(codes[r, c] & (1 << bit) for bit in bits)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize(("bits", "classes"), [((1, 4), ()), ((), (3, 8, 9)), ((0,), (6,))])
def test_the_layer_masks_what_it_lists_at_its_own_resolution(tmp_path, factor, bits, classes):
    codes = noise(1, 48 // factor, 48 // factor, dtype="uint16", low=0, high=32)
    write(tmp_path / "a.tif", noise(2, 48, 48), pixel=10)
    write(tmp_path / "qa_a.tif", codes, pixel=10 * factor)
    quality = {"uri": str(tmp_path / "qa_{scene}.tif"), "bits": bits, "classes": classes}
    found_valid = valid(found(files(tmp_path / "a.tif", quality=quality)).scenes[0])
    expected = [[naive(codes[0], row, col, factor=factor, bits=bits, classes=classes) for col in range(6, 39)] for row in range(3, 33)]
    np.testing.assert_array_equal(found_valid, expected)
    assert 0 < found_valid.mean() < 1


def test_finer_layers_answer_by_the_pixel_at_the_centre(tmp_path):
    codes = noise(1, 96, 96, low=0, high=2)
    write(tmp_path / "a.tif", noise(1, 32, 32), pixel=30)
    write(tmp_path / "qa.tif", codes, pixel=10)
    scene = found(files(tmp_path / "a.tif", quality={"uri": str(tmp_path / "qa.tif"), "classes": [1]})).scenes[0]
    np.testing.assert_array_equal(valid(scene, Window(row=0, col=0, height=32, width=32)), codes[0, 1::3, 1::3] == 0)


def test_pixels_outside_the_layer_are_not_valid(tmp_path):
    write(tmp_path / "a.tif", noise(1, 40, 40))
    write(tmp_path / "qa.tif", np.zeros((1, 20, 40), "uint8"), origin=(500_100, 5_000_000))
    scene = found(files(tmp_path / "a.tif", quality={"uri": str(tmp_path / "qa.tif"), "classes": [1]})).scenes[0]
    expected = np.zeros((40, 40), bool)
    expected[:20, 10:] = True
    np.testing.assert_array_equal(valid(scene, Window(row=0, col=0, height=40, width=40)), expected)
    assert not valid(scene, Window(row=30, col=0, height=5, width=5)).any()


def test_the_layer_may_be_one_of_the_files_of_the_pattern(tmp_path):
    codes = noise(1, 48, 48, low=0, high=3)
    for band in ("red", "nir"):
        write(tmp_path / f"x_{band}.tif", noise(1, 48, 48))
    write(tmp_path / "x_qa.tif", codes)
    source = files(tmp_path, pattern=r"(?P<scene>x)_(?P<band>\w+)\.tif", quality={"band": "qa", "classes": [2]})
    for keys in ({}, {"bands": ["red", "nir"]}):
        scene = found(source, **keys).scenes[0]
        assert set(scene.assets) == {"red", "nir"}
        np.testing.assert_array_equal(valid(scene), codes[0, 3:33, 6:39] != 2)


def test_the_layer_may_be_a_band_of_the_same_file(tmp_path):
    values = noise(3, 48, 48)
    path = write(tmp_path / "a.tif", values)
    scene = found(files(path, bands=["red", "nir", "qa"], quality={"band": "qa", "bits": [7]})).scenes[0]
    assert list(scene.assets) == ["red", "nir"]
    np.testing.assert_array_equal(valid(scene), values[2, 3:33, 6:39] < 128)


def test_many_windows_are_masked_as_one(tmp_path):
    write(tmp_path / "a.tif", noise(1, 128, 128), tiled=True, blockxsize=32, blockysize=32)
    write(tmp_path / "qa.tif", noise(1, 43, 43, low=0, high=2), pixel=30)
    scene = found(files(tmp_path / "a.tif", quality={"uri": str(tmp_path / "qa.tif"), "classes": [1]})).scenes[0]
    windows = np.array([[row, col, 17, 19] for row in range(0, 100, 13) for col in range(0, 100, 17)])
    with RasterReader() as reader:
        for answer, (row, col, height, width) in zip(reader.read_many(scene, windows), windows.tolist(), strict=True):
            np.testing.assert_array_equal(answer.valid, reader.read(scene, Window(row=row, col=col, height=height, width=width)).valid)


def test_a_quality_band_that_is_not_there_is_named(tmp_path):
    path = write(tmp_path / "a.tif", noise(1, 40, 40))
    with pytest.raises(BandError, match="no quality band 'scl'; it has 'b1'"):
        found(files(path, quality={"band": "scl", "classes": [3]}))


def test_a_quality_layer_of_fractions_is_refused(tmp_path):
    write(tmp_path / "a.tif", noise(1, 40, 40))
    mask = write(tmp_path / "qa.tif", np.zeros((1, 40, 40), "float32"))
    with pytest.raises(BandError, match="whole numbers"):
        found(files(tmp_path / "a.tif", quality={"uri": mask, "classes": [3]}))
