"""Image folders: pictures of every form through the same discovery and reader."""

from __future__ import annotations

import csv

import numpy as np
import PIL.Image
import pytest

from rayjobs.errors import BandError, ConfigError, EmptySearchError, UnreadableTileError
from rayjobs.geo import Window
from rayjobs.rasters.reader import RasterReader
from tests.unit.rasters.rasters_made import found, noise

WHOLE = Window(row=0, col=0, height=40, width=50)


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(values).save(path, **options)
    return path


def images(root, **keys):
    return {"kind": "images", "root": str(root), **keys}


def read(scene):
    with RasterReader() as reader:
        return reader.read(scene, WHOLE)


def test_the_folder_is_the_class_and_the_path_is_the_id(tmp_path):
    save(tmp_path / "pond" / "a.png", noise(40, 50, 3))
    save(tmp_path / "field" / "deep" / "b.png", noise(40, 50, 3))
    scenes = found(images(tmp_path, resolution_m=0.5)).scenes
    assert [(scene.scene_id, scene.label) for scene in scenes] == [("field/deep/b.png", "field"), ("pond/a.png", "pond")]
    assert {(scene.grid.crs, scene.footprint, scene.resolution_m) for scene in scenes} == {(None, None, 0.5)}


def test_rgb_is_read_as_pillow_reads_it(tmp_path):
    path = save(tmp_path / "x" / "a.jpg", noise(40, 50, 3), quality=90, subsampling=0)
    pixels = read(found(images(tmp_path)).scenes[0])
    np.testing.assert_allclose(pixels.values.transpose(1, 2, 0).astype(int), np.asarray(PIL.Image.open(path)).astype(int), rtol=0, atol=2)
    assert pixels.valid.all()


def test_grey_is_one_band_and_serves_as_colours(tmp_path):
    values = noise(40, 50)
    save(tmp_path / "x" / "a.png", values)
    grey = read(found(images(tmp_path)).scenes[0])
    np.testing.assert_array_equal(grey.values, values[None])
    colours = read(found(images(tmp_path), bands=["red", "green", "blue"]).scenes[0])
    np.testing.assert_array_equal(colours.values, np.stack([values] * 3))


def test_opacity_is_a_mask(tmp_path):
    values = noise(40, 50, 4)
    values[..., 3] = 255
    values[5:9, 5:9, 3] = 0
    save(tmp_path / "x" / "a.png", values)
    scene = found(images(tmp_path)).scenes[0]
    assert list(scene.assets) == ["red", "green", "blue"]
    np.testing.assert_array_equal(read(scene).valid, values[..., 3] > 0)


def test_a_colour_table_is_looked_up(tmp_path):
    codes = noise(40, 50, low=0, high=7)
    table = noise(256, 3, seed=1)
    picture = PIL.Image.frombytes("P", (50, 40), codes.tobytes())
    picture.putpalette(table.tobytes())
    (tmp_path / "x").mkdir()
    picture.save(tmp_path / "x" / "a.png")
    pixels = read(found(images(tmp_path)).scenes[0])
    np.testing.assert_array_equal(pixels.values, table[codes].transpose(2, 0, 1))


def test_sixteen_bits_stay_sixteen(tmp_path):
    values = noise(40, 50, dtype="uint16", high=60000)
    save(tmp_path / "x" / "a.png", values)
    pixels = read(found(images(tmp_path)).scenes[0])
    assert pixels.values.dtype == np.uint16
    np.testing.assert_array_equal(pixels.values[0], values)


def test_a_mixed_folder_says_how_to_read_it(tmp_path):
    save(tmp_path / "x" / "a.png", noise(40, 50))
    save(tmp_path / "x" / "b.png", noise(40, 50, 3))
    with pytest.raises(BandError, match=r"x/b\.png has no band 'grey'.*set rasters\.bands: \[red, green, blue\]"):
        found(images(tmp_path))
    assert len(found(images(tmp_path), bands=["red", "green", "blue"]).scenes) == 2


def test_a_broken_picture_is_reported_beside_the_good_ones(tmp_path):
    save(tmp_path / "x" / "a.png", noise(40, 50, 3))
    (tmp_path / "x" / "b.png").write_bytes(b"\x89PNG broken")
    discovery = found(images(tmp_path))
    assert [scene.scene_id for scene in discovery.scenes] == ["x/a.png"]
    assert [uri for uri, _ in discovery.unreadable] == [str(tmp_path / "x" / "b.png")]


def table(path, rows, header=("file", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_a_table_gives_the_classes_of_what_it_lists(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "images" / name, noise(40, 50, 3))
    labels = table(tmp_path / "t.csv", [("b.png", "crater"), ("a.png", ""), ("gone.png", "dune")])
    discovery = found(images(tmp_path / "images", labels="csv", csv=labels))
    assert [(scene.scene_id, scene.label) for scene in discovery.scenes] == [("a.png", None), ("b.png", "crater")]
    assert [uri.rpartition("/")[2] for uri, _ in discovery.unreadable] == ["gone.png"]


def test_a_table_without_the_column_says_what_it_has(tmp_path):
    save(tmp_path / "images" / "a.png", noise(40, 50, 3))
    labels = table(tmp_path / "t.csv", [("a.png", "1")], header=("file", "class_id"))
    with pytest.raises(ConfigError, match="no column 'label'; it has file, class_id"):
        found(images(tmp_path / "images", labels="csv", csv=labels))


def test_a_picture_with_two_labels_is_refused(tmp_path):
    save(tmp_path / "images" / "a.png", noise(40, 50, 3))
    labels = table(tmp_path / "t.csv", [("a.png", "1"), ("a.png", "2")])
    with pytest.raises(ConfigError, match=r"line 3: a\.png has two labels"):
        found(images(tmp_path / "images", labels="csv", csv=labels))


def test_pictures_without_class_folder_need_labels_none(tmp_path):
    save(tmp_path / "a.png", noise(40, 50, 3))
    with pytest.raises(ConfigError, match="labels: none"):
        found(images(tmp_path))
    assert found(images(tmp_path, labels="none")).scenes[0].label is None


def test_a_folder_without_pictures_is_an_empty_search(tmp_path):
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(EmptySearchError, match="no picture"):
        found(images(tmp_path))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), r"there is no folder .*pictures, or it is empty"),
        (("a.txt", "b.csv"), r"no picture \(\.jpg.* is among the 2 files below .*; one is a\.txt"),
    ],
)
def test_a_folder_without_pictures_says_what_is_there(tmp_path, files, words):
    for name in files:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with pytest.raises(EmptySearchError, match=words):
        found(images(tmp_path / "pictures"))


@pytest.mark.parametrize(
    ("form", "words"),
    [("jpg", "it is cut short"), ("bmp", "it is cut short"), ("tif", "it is damaged, or cut short"), ("webp", "cut short")],
)
def test_a_picture_that_was_cut_short_is_told_in_our_words(tmp_path, form, words):
    path = save(tmp_path / "x" / f"a.{form}", noise(40, 50, 3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableTileError) as caught:
        read(found(images(tmp_path)).scenes[0])
    assert words in str(caught.value)
    assert "GDAL_" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_picture_is_told_in_our_words(tmp_path):
    save(tmp_path / "x" / "a.png", noise(40, 50, 3))
    (tmp_path / "x" / "b.png").write_bytes(b"")
    [(uri, reason)] = found(images(tmp_path)).unreadable
    assert uri.endswith("b.png")
    assert reason.startswith("cannot be opened: it is empty, or no image in a form that GDAL knows (GDAL: ")
