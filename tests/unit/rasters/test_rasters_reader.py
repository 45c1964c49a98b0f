"""The reader's values and masks, against rasterio's own and against arrays written here."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.errors
import rasterio.windows

from rayjobs.errors import UnreadableTileError
from rayjobs.geo import Window
from rayjobs.rasters import handles
from rayjobs.rasters import reader as reader_module
from rayjobs.rasters.reader import RasterReader
from tests.unit.rasters.rasters_made import files, found, noise, write

WHOLE = Window(row=0, col=0, height=80, width=90)
PART = Window(row=13, col=22, height=31, width=17)


def read(scene, window=PART):
    with RasterReader() as reader:
        return reader.read(scene, window)


def readable(file, row, col, size):
    try:
        file.read(1, window=rasterio.windows.Window(col, row, size, size))
    except rasterio.errors.RasterioIOError:
        return False
    return True


def scene_of(path, **keys):
    return found(files(path, **keys)).scenes[0]


def test_values_are_those_that_were_written(tmp_path):
    values = noise(3, 80, 90, dtype="uint16", high=60000)
    pixels = read(scene_of(write(tmp_path / "a.tif", values, tiled=True, blockxsize=16, blockysize=16)))
    assert pixels.values.dtype == np.uint16
    np.testing.assert_array_equal(pixels.values, values[:, 13:44, 22:39])
    assert pixels.valid.all()
    assert pixels.valid.shape == (31, 17)


def test_bands_come_in_the_wanted_order(tmp_path):
    values = noise(3, 80, 90)
    scene = found(files(write(tmp_path / "a.tif", values), bands=["x", "y", "z"]), bands=["z", "x"]).scenes[0]
    np.testing.assert_array_equal(read(scene).values, values[[2, 0], 13:44, 22:39])


def test_nodata_in_any_band_makes_a_pixel_invalid(tmp_path):
    values = noise(2, 80, 90)
    values[0, 20, 30] = values[1, 21, 31] = 0
    pixels = read(scene_of(write(tmp_path / "a.tif", values, nodata=0)), WHOLE)
    expected = np.ones((80, 90), bool)
    expected[20, 30] = expected[21, 31] = False
    np.testing.assert_array_equal(pixels.valid, expected)


def test_nodata_of_the_experiment_outranks_that_of_the_file(tmp_path):
    values = noise(1, 80, 90)
    values[0, 5, 5], values[0, 6, 6] = 0, 255
    pixels = read(scene_of(write(tmp_path / "a.tif", values, nodata=0), nodata=255), WHOLE)
    assert pixels.valid[5, 5]
    assert not pixels.valid[6, 6]


def test_nodata_that_the_dtype_cannot_hold_masks_nothing(tmp_path):
    scene = scene_of(write(tmp_path / "a.tif", noise(1, 80, 90)), nodata=-9999)
    assert read(scene).valid.all()


@pytest.mark.parametrize("nodata", [-3.4028234663852886e38, -9999.0, float("nan")])
def test_floats_are_masked_as_gdal_masks_them_and_where_they_are_no_numbers(tmp_path, nodata):
    values = np.random.default_rng(0).normal(size=(1, 80, 90)).astype("float32")
    values[0, 1, 1], values[0, 2, 2], values[0, 3, 3] = nodata, np.nan, np.inf
    values[0, 4, 4] = np.nextafter(np.float32(nodata), np.float32(0))
    path = write(tmp_path / "a.tif", values, nodata=nodata)
    with rasterio.open(path) as file:
        gdal = file.read_masks(1) != 0
    pixels = read(scene_of(path), WHOLE)
    np.testing.assert_array_equal(pixels.valid, gdal & np.isfinite(values[0]))
    np.testing.assert_array_equal(pixels.values, values)


def test_an_internal_mask_is_obeyed(tmp_path):
    mask = np.full((80, 90), 255, "uint8")
    mask[10:20, 30:40] = 0
    pixels = read(scene_of(write(tmp_path / "a.tif", noise(3, 80, 90), mask=mask)), WHOLE)
    np.testing.assert_array_equal(pixels.valid, mask != 0)


def test_alpha_is_a_mask_and_no_band(tmp_path):
    values = noise(4, 80, 90)
    values[3] = 255
    values[3, 40:50, 0:5] = 0
    path = write(tmp_path / "a.tif", values, photometric="RGB", alpha="YES")
    scene = scene_of(path)
    assert list(scene.assets) == ["red", "green", "blue"]
    np.testing.assert_array_equal(read(scene, WHOLE).valid, values[3] != 0)


def test_files_of_one_band_each_make_one_scene(tmp_path):
    values = noise(3, 80, 90, dtype="uint16", high=9000)
    values[1, 7, 7] = 65535
    for band in range(3):
        write(tmp_path / f"x_B{band}.tif", values[band : band + 1], nodata=65535)
    scenes = found(files(tmp_path, pattern=r"(?P<scene>x)_(?P<band>B\d)")).scenes
    assert [(scene.scene_id, list(scene.assets)) for scene in scenes] == [("x", ["B0", "B1", "B2"])]
    pixels = read(scenes[0], WHOLE)
    np.testing.assert_array_equal(pixels.values, values)
    assert np.argwhere(~pixels.valid).tolist() == [[7, 7]]


def test_bands_of_several_dtypes_are_held_exactly(tmp_path):
    small, large = noise(1, 80, 90), noise(1, 80, 90, dtype="int16", low=-3000, high=3000)
    write(tmp_path / "x_a.tif", small)
    write(tmp_path / "x_b.tif", large)
    scene = found(files(tmp_path, pattern=r"_(?P<band>[ab])\.tif", name="x")).scenes[0]
    pixels = read(scene, WHOLE)
    assert (scene.dtype, pixels.values.dtype) == ("int16", np.int16)
    np.testing.assert_array_equal(pixels.values, np.concatenate([small, large]))


def test_reading_many_equals_reading_each(tmp_path):
    values = noise(3, 200, 220)
    values[:, 50:60, 70:120] = 0
    scene = scene_of(write(tmp_path / "a.tif", values, nodata=0, tiled=True, blockxsize=64, blockysize=64, compress="deflate"))
    rng = np.random.default_rng(3)
    windows = np.array([(rng.integers(0, 170), rng.integers(0, 190), rng.integers(1, 31), rng.integers(1, 31)) for _ in range(60)])
    with RasterReader() as reader:
        many = reader.read_many(scene, windows)
        for answer, (row, col, height, width) in zip(many, windows.tolist(), strict=True):
            one = reader.read(scene, Window(row=row, col=col, height=height, width=width))
            np.testing.assert_array_equal(answer.values, one.values)
            np.testing.assert_array_equal(answer.valid, one.valid)
            np.testing.assert_array_equal(one.values, values[:, row : row + height, col : col + width])


def test_a_block_that_many_windows_share_is_asked_for_once(tmp_path, monkeypatch):
    scene = scene_of(write(tmp_path / "a.tif", noise(1, 256, 256), tiled=True, blockxsize=64, blockysize=64))
    asked = []
    original = reader_module.Handle.read
    monkeypatch.setattr(
        reader_module.Handle, "read", lambda self, bands, window, dtype=None: asked.append(window) or original(self, bands, window, dtype)
    )
    corners = np.stack(np.meshgrid(np.arange(0, 256, 16), np.arange(0, 256, 16)), axis=-1).reshape(-1, 2)
    with RasterReader() as reader:
        reader.read_many(scene, np.concatenate([corners, np.full_like(corners, 16)], axis=1))
    area = sum(window.height * window.width for window in asked)
    assert area == 256 * 256


def test_a_chip_does_not_keep_the_whole_read(tmp_path):
    scene = scene_of(write(tmp_path / "a.tif", noise(1, 256, 256), tiled=True, blockxsize=64, blockysize=64))
    with RasterReader() as reader:
        answers = reader.read_many(scene, np.array([[0, 0, 8, 8], [8, 8, 8, 8]]))
    assert all(answer.values.base is None and answer.valid.base is None for answer in answers)


def test_a_window_outside_is_an_error_of_its_own(tmp_path):
    scene = scene_of(write(tmp_path / "a.tif", noise(1, 80, 90)))
    with RasterReader() as reader:
        answers = reader.read_many(scene, np.array([[70, 0, 20, 10], [0, 0, 10, 10], [-1, 0, 5, 5]]))
        assert [isinstance(answer, UnreadableTileError) for answer in answers] == [True, False, True]
        with pytest.raises(UnreadableTileError, match="leaves scene a of 80 x 90"):
            reader.read(scene, Window(row=0, col=85, height=10, width=10))


def test_the_tiles_of_a_file_cut_short_fail_alone_and_say_why(tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(1, 256, 256), tiled=True, blockxsize=64, blockysize=64)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    scene = scene_of(path)
    corners = np.stack(np.meshgrid(np.arange(0, 256, 32), np.arange(0, 256, 32), indexing="ij"), axis=-1).reshape(-1, 2)
    with RasterReader() as reader:
        answers = reader.read_many(scene, np.concatenate([corners, np.full_like(corners, 32)], axis=1))
    broken = [isinstance(answer, UnreadableTileError) for answer in answers]
    with rasterio.open(path) as file:  # the oracle: one read for each tile
        expected = [not readable(file, row, col, 32) for row, col in corners.tolist()]
    assert broken == expected
    assert 0 < sum(broken) < 64
    first = broken.index(True)
    row, col = corners[first].tolist()
    assert f"rows {row} to {row + 32}, columns {col} to {col + 32} of scene a ({path})" in str(answers[first])


def test_a_file_that_changed_since_discovery_is_not_read(tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(1, 80, 90))
    scene = scene_of(path)
    write(path, noise(1, 70, 90))
    with pytest.raises(UnreadableTileError, match=r"now 70 x 90 .* sample again"):
        read(scene)


def test_a_file_that_vanished_is_unreadable_not_fatal(tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(1, 80, 90))
    scene = scene_of(path)
    path.unlink()
    with pytest.raises(UnreadableTileError, match="cannot read rows 13"):
        read(scene)


def test_a_file_that_fails_between_its_opening_and_its_first_property_is_unreadable_not_fatal(tmp_path, monkeypatch):
    """Asking for a stored mask leaves the main directory of a TIFF, which is then read again: GDAL's own error comes out of rasterio."""
    path = tmp_path / "a.tif"
    write(path, noise(1, 80, 90), mask=np.full((80, 90), 255, np.uint8))
    scene = scene_of(path)
    really = handles.open_raster

    def opened_and_lost(uri, *, fresh):
        dataset = really(uri, fresh=fresh)
        os.truncate(path, 8)
        return dataset

    monkeypatch.setattr(handles, "open_raster", opened_and_lost)
    with pytest.raises(UnreadableTileError, match=r"cannot read rows 13 .* its header cannot be read"):
        read(scene)


def test_a_reader_travels_and_closes_twice(tmp_path):
    values = noise(1, 80, 90)
    scene = scene_of(write(tmp_path / "a.tif", values))
    with RasterReader(max_open=3) as reader:
        reader.read(scene, PART)
        other = pickle.loads(pickle.dumps(reader))
        np.testing.assert_array_equal(other.read(scene, PART).values, values[:, 13:44, 22:39])
        other.close()
        other.close()
        assert other.read(scene, PART).values.any()  # may be used again
        other.close()


def test_only_so_many_files_stay_open(tmp_path):
    scenes = [scene_of(write(tmp_path / f"{index}.tif", noise(1, 80, 90, seed=index))) for index in range(6)]
    with RasterReader(max_open=2) as reader:
        for scene in [*scenes, *scenes]:
            reader.read(scene, PART)
            assert len(reader._handles._open) <= 2


def test_each_thread_reads_right_with_its_own_reader(tmp_path):
    values = noise(3, 256, 256)
    scene = scene_of(write(tmp_path / "a.tif", values, tiled=True, blockxsize=32, blockysize=32, compress="deflate"))

    def work(seed):
        rng = np.random.default_rng(seed)
        with RasterReader() as reader:
            for row, col in rng.integers(0, 220, (40, 2)).tolist():
                got = reader.read(scene, Window(row=row, col=col, height=30, width=30)).values
                if not np.array_equal(got, values[:, row : row + 30, col : col + 30]):
                    return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_nothing_reaches_the_terminal(tmp_path, capfd):
    path = tmp_path / "a.tif"
    write(path, noise(1, 256, 256), tiled=True, blockxsize=64, blockysize=64, compress="deflate", crs=None)
    path.write_bytes(path.read_bytes()[:20000])
    (tmp_path / "b.tif").write_bytes(b"II*\0 no tiff at all")
    discovery = found(files(tmp_path / "*.tif"))
    with RasterReader() as reader:
        reader.read_many(discovery.scenes[0], np.array([[0, 0, 64, 64], [192, 192, 64, 64]]))
    assert capfd.readouterr() == ("", "")
