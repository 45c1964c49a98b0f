"""Label maps: fractions against a naive lookup, on grids of other CRS, resolution and extent."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import rasterio

from rayjobs.errors import LabelMapError
from rayjobs.geo import Grid, Window
from rayjobs.rasters.label_map import LabelMap
from tests.unit.rasters.rasters_made import files, found, noise, write

CLASSES = {11: "water", 41: "forest", 42: "forest", 71: "grass"}
CODES = np.array([11, 41, 42, 71, 99, 255])
UTM = Grid(crs="EPSG:32631", transform=(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), height=400, width=400)


def naive(path, grid, window, classes, nodata):
    """Look each pixel up, one at a time."""
    with rasterio.open(path) as file:
        labels, place, crs = file.read(1), ~file.transform, file.crs.to_wkt()
    transformer = pyproj.Transformer.from_crs(grid.crs, crs, always_xy=True)
    names = list(dict.fromkeys(classes.values()))
    counts = dict.fromkeys(names, 0)
    for row in range(window.row, window.row + window.height):
        for col in range(window.col, window.col + window.width):
            x, y = grid.xy(col + 0.5, row + 0.5)
            x, y = transformer.transform(x, y)
            c, r = place @ (x, y)
            if 0 <= r < labels.shape[0] and 0 <= c < labels.shape[1]:
                code = int(labels[int(r), int(c)])
                if code != nodata and code in classes:
                    counts[classes[code]] += 1
    total = sum(counts.values())
    return [count / max(total, 1) for count in counts.values()], total / (window.height * window.width)


def label_file(path, crs, seed=0):
    """A raster of codes over the ground of UTM, in another CRS, at about 27 m."""
    codes = CODES[np.random.default_rng(seed).integers(0, len(CODES), (1, 170, 170))].astype("uint8")
    transformer = pyproj.Transformer.from_crs(UTM.crs, crs, always_xy=True)
    xs, ys = transformer.transform(*UTM.xy(np.array([0.0, 400, 0, 400]), np.array([0.0, 0, 400, 400])))
    side = max(max(xs) - min(xs), max(ys) - min(ys)) / 160
    return write(path, codes, crs=crs, origin=(min(xs) - side, max(ys) + side), pixel=side, nodata=255)


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:3035", "EPSG:4326", "EPSG:32632"])
@pytest.mark.parametrize("window", [Window(row=0, col=0, height=9, width=7), Window(row=100, col=200, height=24, width=33)])
def test_fractions_are_those_of_a_naive_lookup(tmp_path, crs, window):
    path = label_file(tmp_path / "labels.tif", crs)
    found_fractions, coverage = LabelMap(uri=path, classes=CLASSES).fractions(UTM, window)
    expected, share = naive(path, UTM, window, CLASSES, 255)
    np.testing.assert_allclose(found_fractions, expected, atol=1e-6)
    assert coverage == pytest.approx(share)
    assert 0.3 < coverage < 0.95


def test_many_tiles_of_several_sizes_answer_in_order(tmp_path):
    path = label_file(tmp_path / "labels.tif", "EPSG:3035")
    label_map = LabelMap(uri=path, classes=CLASSES)
    rng = np.random.default_rng(1)
    windows = np.array([(rng.integers(0, 360), rng.integers(0, 360), *size) for size in [(24, 24), (9, 30), (40, 40)] * 8])
    many = label_map.fractions_many(UTM, windows)
    for answer, (row, col, height, width) in zip(many, windows.tolist(), strict=True):
        one = label_map.fractions(UTM, Window(row=row, col=col, height=height, width=width))
        np.testing.assert_array_equal(answer.fractions, one.fractions)
        assert answer.coverage == one.coverage
    expected, _ = naive(path, UTM, Window(row=int(windows[4, 0]), col=int(windows[4, 1]), height=9, width=30), CLASSES, 255)
    np.testing.assert_allclose(many[4].fractions, expected, atol=1e-6)


def test_classes_of_pixels_are_what_fractions_count(tmp_path):
    path = write(tmp_path / "labels.tif", np.arange(1600).reshape(1, 40, 40) % 3 + 10)  # over the north-west tenth of UTM
    label_map = LabelMap(uri=path, classes={12: "b", 10: "a"})
    windows = np.array([(0, 0, 5, 6), (100, 100, 5, 6), (38, 36, 4, 8)])
    near, beside, edge = label_map.classes_many(UTM, windows)
    expected = np.array([1, -1, 0])  # code 10 is class 1 ("a" is named second), 11 is not listed, 12 is class 0
    rows, cols = np.mgrid[0:5, 0:6]
    np.testing.assert_array_equal(near, expected[(rows * 40 + cols) % 3])
    assert (beside == -1).all()
    np.testing.assert_array_equal(edge[:2, :4], expected[((38 + np.arange(2))[:, None] * 40 + 36 + np.arange(4)) % 3])
    assert (edge[2:] == -1).all()
    assert (edge[:, 4:] == -1).all()
    for classes, answer in zip((near, beside, edge), label_map.fractions_many(UTM, windows), strict=True):
        assert answer.coverage == pytest.approx((classes >= 0).mean())


def test_a_tile_beside_the_labels_has_none(tmp_path):
    path = write(tmp_path / "labels.tif", np.full((1, 40, 40), 11, "uint8"))  # the north-west tenth of UTM
    label_map = LabelMap(uri=path, classes=CLASSES)
    outside = label_map.fractions(UTM, Window(row=200, col=200, height=20, width=20))
    assert (outside.fractions.tolist(), outside.coverage) == ([0, 0, 0], 0)
    half = label_map.fractions(UTM, Window(row=0, col=30, height=20, width=20))
    assert (half.fractions.tolist(), half.coverage) == ([1, 0, 0], 0.5)


def test_nodata_counts_for_nothing_even_where_it_is_listed(tmp_path):
    path = write(tmp_path / "labels.tif", np.full((1, 40, 40), 71, "uint8"))
    window = Window(row=0, col=0, height=20, width=20)
    assert LabelMap(uri=path, classes=CLASSES).fractions(UTM, window).coverage == 1
    assert LabelMap(uri=path, classes=CLASSES, nodata=71).fractions(UTM, window).coverage == 0


def test_a_wide_tile_is_right_where_a_polynomial_is_not(tmp_path):
    path = write(tmp_path / "labels.tif", noise(1, 180, 360, low=0, high=5), crs="EPSG:4326", origin=(-180, 90), pixel=1.0)
    polar = Grid(crs="EPSG:3031", transform=(50_000.0, 0.0, -3_000_000.0, 0.0, -50_000.0, 3_000_000.0), height=120, width=120)
    classes = {code: f"c{code}" for code in range(5)}
    window = Window(row=20, col=20, height=80, width=80)  # holds the pole
    found_fractions, coverage = LabelMap(uri=path, classes=classes).fractions(polar, window)
    expected, share = naive(path, polar, window, classes, None)
    np.testing.assert_allclose(found_fractions, expected, atol=1e-6)
    assert coverage == pytest.approx(share)


def test_classes_of_one_name_are_one_class():
    assert LabelMap(uri="x.tif", classes=CLASSES).names == ("water", "forest", "grass")


def test_labels_that_overlap_no_scene_are_refused_with_both_places(tmp_path):
    scenes = found(files(write(tmp_path / "a.tif", noise(1, 40, 40)))).scenes
    near = LabelMap(uri=label_file(tmp_path / "near.tif", "EPSG:3035"), classes=CLASSES)
    near.check_overlap(scenes)
    far = write(tmp_path / "far.tif", noise(1, 40, 40), crs="EPSG:4326", origin=(100, 0), pixel=0.01)
    with pytest.raises(
        LabelMapError, match=r"far\.tif lies at \(100\.0, -0\.4, 100\.4, 0\.0\) and overlaps none of the 1 scenes, which lie at \(3\.0"
    ):
        LabelMap(uri=far, classes=CLASSES).check_overlap(scenes)


def test_labels_for_images_without_coordinates_are_refused(tmp_path):
    scenes = found(files(write(tmp_path / "a.tif", noise(1, 40, 40), crs=None))).scenes
    label_map = LabelMap(uri=label_file(tmp_path / "l.tif", "EPSG:3035"), classes=CLASSES)
    with pytest.raises(LabelMapError, match="without coordinates"):
        label_map.check_overlap(scenes)
    with pytest.raises(LabelMapError, match="without coordinates"):
        label_map.fractions(scenes[0].grid, Window(row=0, col=0, height=5, width=5))


def test_labels_that_cannot_serve_are_refused(tmp_path):
    scenes = found(files(write(tmp_path / "a.tif", noise(1, 40, 40)))).scenes
    with pytest.raises(LabelMapError, match=r"nowhere\.tif cannot be opened"):
        LabelMap(uri=str(tmp_path / "nowhere.tif"), classes=CLASSES).check_overlap(scenes)
    fractions = write(tmp_path / "f.tif", np.zeros((1, 40, 40), "float32"))
    with pytest.raises(LabelMapError, match="whole-number codes"):
        LabelMap(uri=fractions, classes=CLASSES).check_overlap(scenes)


def test_labels_cut_short_are_an_error_not_silence(tmp_path):
    path = tmp_path / "labels.tif"
    write(path, noise(1, 400, 400))
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(LabelMapError, match="cannot be read"):
        LabelMap(uri=str(path), classes=CLASSES).fractions(UTM, Window(row=370, col=0, height=20, width=20))
