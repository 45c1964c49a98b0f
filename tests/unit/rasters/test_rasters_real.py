"""Real imagery: every window that we read equals rasterio's own read of it."""

from __future__ import annotations

import functools

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.windows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayjobs.errors import UnreadableTileError
from rayjobs.geo import Window
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.reader import RasterReader
from tests.unit.rasters.rasters_made import files, found

NAIP_DATE = r"(?P<scene>m_\d+_se_14_1_(?P<date>\d{8}))\.tif"
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.lru_cache(maxsize=1)
def single_files(root):
    """Every GeoTIFF of misc_small_rasters and NAIP as a scene of its own."""
    scenes = [found(files(path)).scenes[0] for name in ("misc_small_rasters", "naip_nd") for path in sorted((root / name).glob("*.tif*"))]
    assert len(scenes) == 11
    return scenes


@pytest.fixture
def scenes(data):
    data("naip_nd")
    return single_files(data("misc_small_rasters").parent)


def truth(scene, window):
    """Values and validity as rasterio's own windowed read and masks give them."""
    asset = next(iter(scene.assets.values()))
    with rasterio.open(asset.uri) as file:
        place = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        return file.read(window=place), (file.read_masks(window=place) != 0).all(axis=0)


@st.composite
def windows_of(draw, height, width, most=120):
    """Windows anywhere, with a liking for edges and corners."""
    tall, wide = draw(st.integers(1, min(most, height))), draw(st.integers(1, min(most, width)))
    row = draw(st.sampled_from([0, height - tall]) | st.integers(0, height - tall))
    col = draw(st.sampled_from([0, width - wide]) | st.integers(0, width - wide))
    return Window(row=row, col=col, height=tall, width=wide)


@PROPERTY
@given(drawn=st.data())
def test_one_window_equals_rasterios_own_read(scenes, drawn):
    scene = drawn.draw(st.sampled_from(scenes))
    window = drawn.draw(windows_of(scene.grid.height, scene.grid.width))
    with RasterReader() as reader:
        pixels = reader.read(scene, window)
    values, valid = truth(scene, window)
    assert pixels.values.dtype == values.dtype
    np.testing.assert_array_equal(pixels.values, values)
    np.testing.assert_array_equal(pixels.valid, valid)


@PROPERTY
@given(drawn=st.data())
def test_many_windows_equal_rasterios_own_reads(scenes, drawn):
    scene = drawn.draw(st.sampled_from(scenes))
    windows = drawn.draw(st.lists(windows_of(scene.grid.height, scene.grid.width), min_size=1, max_size=12))
    with RasterReader() as reader:
        answers = reader.read_many(scene, np.array([(w.row, w.col, w.height, w.width) for w in windows]))
    for answer, window in zip(answers, windows, strict=True):
        values, valid = truth(scene, window)
        np.testing.assert_array_equal(answer.values, values)
        np.testing.assert_array_equal(answer.valid, valid)


def test_every_pixel_that_is_not_valid_is_so_in_rasterio_too(scenes):
    missing = 0
    with RasterReader() as reader:
        for scene in scenes:
            valid = reader.read(scene, scene.grid.whole).valid
            np.testing.assert_array_equal(valid, truth(scene, scene.grid.whole)[1])
            missing += (~valid).sum()
    assert missing > 0


def test_four_files_are_one_scene(data):
    zion = data("zion_north")
    scene = found(files(zion, pattern=r"landsat_(?P<band>b\d)\.tif")).scenes[0]
    assert (scene.scene_id, list(scene.assets)) == ("zion_north", ["b2", "b3", "b4", "b5"])
    window = Window(row=300, col=500, height=80, width=70)
    with RasterReader() as reader:
        pixels = reader.read(scene, window)
    for index, name in enumerate(scene.assets):
        with rasterio.open(zion / f"landsat_{name}.tif") as file:
            np.testing.assert_array_equal(pixels.values[index], file.read(1, window=rasterio.windows.Window(500, 300, 70, 80)))


def test_dates_and_grids_of_naip_differ(data):
    scenes = found(files(data("naip_nd"), pattern=NAIP_DATE)).scenes
    assert [scene.datetime.date().isoformat() for scene in scenes] == ["2010-06-29", "2012-07-31", "2015-09-26", "2018-07-16"]
    assert len({scene.grid.transform for scene in scenes}) == 2
    assert all(scene.resolution_m == pytest.approx(5, rel=1e-3) for scene in scenes)
    assert len(found(files(data("naip_nd"), pattern=NAIP_DATE), datetime="2012/2016").scenes) == 2


def test_scenes_of_neighbouring_zones_live_in_one_set(data):
    scenes = found(files(data("misc_small_rasters") / "m_*.tif"), bands=["red", "green", "blue"]).scenes
    assert [scene.grid.crs for scene in scenes] == ["EPSG:26918", "EPSG:26917"]


def test_envi_files_are_read(data):
    folder = data("landsat_cd_taizhou")
    scenes = found(
        files(folder / "2000TM", folder / "2003TM", bands=["blue", "green", "red", "nir", "swir1", "swir2"]), bands=["red", "nir"]
    ).scenes
    assert [scene.scene_id for scene in scenes] == ["2000TM", "2003TM"]
    raw = np.fromfile(folder / "2003TM", "uint8").reshape(6, 400, 400)  # ENVI, band sequential
    with RasterReader() as reader:
        np.testing.assert_array_equal(
            reader.read(scenes[1], Window(row=50, col=60, height=64, width=64)).values, raw[[2, 3], 50:114, 60:124]
        )


def test_image_folders(data):
    scenes = found({"kind": "images", "root": str(data("aid_15classes"))}).scenes
    labels = [scene.label for scene in scenes]
    assert len(scenes) == 900
    assert {labels.count(label) for label in set(labels)} == {60}
    mars = data("hirise_mars")
    source = {
        "kind": "images",
        "root": str(mars / "images"),
        "labels": "csv",
        "csv": str(mars / "labels.csv"),
        "csv_label_column": "class_id",
    }
    discovery = found(source)
    assert discovery.unreadable == []
    assert {scene.label for scene in discovery.scenes} == {"0", "1", "2", "3", "4", "6"}
    assert {tuple(scene.assets) for scene in discovery.scenes} == {("grey",)}


def test_land_cover_in_another_crs_labels_zion(data):
    zion = data("zion_north")
    scene = found(files(zion, pattern=r"landsat_(?P<band>b\d)\.tif")).scenes[0]
    classes = {11: "water", 31: "barren", 41: "forest", 42: "forest", 43: "forest", 52: "shrub", 71: "grass"}
    label_map = LabelMap(uri=str(zion / "nlcd2011.tif"), classes=classes)
    label_map.check_overlap([scene])
    with rasterio.open(label_map.uri) as file:
        codes, place, crs = file.read(1), ~file.transform, file.crs.to_wkt()
    transformer = pyproj.Transformer.from_crs(scene.grid.crs, crs, always_xy=True)
    corners = [(row, col) for row in range(0, 680, 97) for col in range(0, 1100, 113)]
    answers = label_map.fractions_many(scene.grid, np.array([(row, col, 24, 24) for row, col in corners]))
    for answer, (row, col) in zip(answers, corners, strict=True):
        cols, rows = np.meshgrid(col + np.arange(24) + 0.5, row + np.arange(24) + 0.5)
        c, r = place @ transformer.transform(*scene.grid.xy(cols, rows))
        inside = (r >= 0) & (r < codes.shape[0]) & (c >= 0) & (c < codes.shape[1])
        under = codes[r[inside].astype(int), c[inside].astype(int)]
        counts = [np.isin(under, [code for code, name in classes.items() if name == wanted]).sum() for wanted in label_map.names]
        np.testing.assert_allclose(answer.fractions, np.array(counts) / max(sum(counts), 1), atol=1e-6)
        assert answer.coverage == pytest.approx(sum(counts) / 576)


def test_a_truncated_copy_fails_tile_by_tile(data, tmp_path):
    source = data("zion_north") / "landsat_b4.tif"
    copy = tmp_path / "cut.tif"
    copy.write_bytes(source.read_bytes()[: source.stat().st_size * 3 // 4])
    scene = found(files(copy)).scenes[0]
    corners = [(row, col) for row in range(0, 640, 64) for col in range(0, 1060, 64)]
    with RasterReader() as reader:
        answers = reader.read_many(scene, np.array([(row, col, 64, 64) for row, col in corners]))
    with rasterio.open(source) as file:
        good = 0
        for answer, (row, col) in zip(answers, corners, strict=True):
            if not isinstance(answer, UnreadableTileError):
                good += 1
                np.testing.assert_array_equal(answer.values, file.read(window=rasterio.windows.Window(col, row, 64, 64)))
    assert 0 < good < len(corners)
