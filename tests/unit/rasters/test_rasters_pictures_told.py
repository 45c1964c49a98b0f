"""What names, tables and label images tell of pictures."""

from __future__ import annotations

import csv
import datetime

import numpy as np
import PIL.Image
import pytest

from rayjobs import config
from rayjobs.errors import BandError, ConfigError, EmptySearchError
from rayjobs.geo import Window
from rayjobs.rasters.reader import RasterReader
from rayjobs.rasters.scenes import Spot, read_scenes, scenes_table
from rayjobs.rasters.section import RastersSection
from tests.unit.rasters.rasters_made import found, noise

MARS_M = 3_389_500.0


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(values).save(path)
    return values


def images(root, **keys):
    return {"kind": "images", "root": str(root), "labels": "none", **keys}


def table(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def scenes(*sources, **keys):
    return found(*sources, **keys).scenes


def read(scene, window=None):
    with RasterReader() as reader:
        return reader.read(scene, window or scene.grid.whole)


def test_the_name_tells_place_date_and_observation(tmp_path):
    for year in (2004, 2019):
        for place in ("a17", "b02"):
            save(tmp_path / str(year) / f"{year}_{place}.png", noise(4, 5, 3))
    (tmp_path / "2019" / "notes.png").write_bytes(b"no picture, and does not fit")
    pattern = r"(?P<date>\d{4})_(?P<place>(?P<observation>[a-z])\d+)\.png$"
    listed = scenes(images(tmp_path, pattern=pattern))
    assert [(scene.scene_id, scene.place, scene.observation, scene.datetime.year) for scene in listed] == [
        (f"{year}/{year}_{place}.png", place, place[0], year) for year in (2004, 2019) for place in ("a17", "b02")
    ]
    assert listed[0].datetime == datetime.datetime(2004, 1, 1, tzinfo=datetime.UTC)
    assert read_scenes(scenes_table(listed)) == listed


@pytest.mark.parametrize(
    ("name", "lon", "lat"),
    [("x_16S354W_y", 6.0, -16.0), ("x_14S231W_y", 129.0, -14.0), ("x_77N271W_y", 89.0, 77.0), ("x_05N180E_y", -180.0, 5.0)],
)
def test_coordinates_in_names_of_the_earlier_mars_pictures(tmp_path, name, lon, lat):
    save(tmp_path / f"{name}.png", noise(4, 5, 3))
    (scene,) = scenes(images(tmp_path, pattern=r"_(?P<lat>\d+[NS])(?P<lon>\d+[EW])_", body="mars"))
    assert scene.spot == Spot(lon=lon, lat=lat, radius_m=MARS_M)
    assert (scene.grid.crs, scene.footprint) == (None, None), "no ground of the Earth is claimed"
    assert read_scenes(scenes_table([scene])) == [scene]


@pytest.mark.parametrize(("body", "radius"), [("earth", 6_371_008.8), ("moon", 1_737_400.0), (2_575_000.0, 2_575_000.0)])
def test_a_table_tells_what_it_has_columns_for(tmp_path, body, radius):
    save(tmp_path / "in" / "a.png", noise(4, 5, 3))
    save(tmp_path / "in" / "b.png", noise(4, 5, 3))
    uri = table(
        tmp_path / "t.csv",
        ("file", "lo", "la", "obs", "where", "when"),
        ("a.png", "-111.5", "37.25", "O1", "P", "2019-06-03"),
        ("b.png", *[""] * 5),
    )
    columns = {"lon": "lo", "lat": "la", "observation": "obs", "place": "where", "date": "when"}
    told, bare = scenes(images(tmp_path / "in", csv=uri, body=body, **{f"csv_{what}_column": column for what, column in columns.items()}))
    assert told.spot == Spot(lon=-111.5, lat=37.25, radius_m=radius)
    assert (told.observation, told.place, told.datetime.date()) == ("O1", "P", datetime.date(2019, 6, 3))
    assert (bare.spot, bare.observation, bare.place, bare.datetime) == (None, None, None, None)


def test_the_folder_may_give_the_class_and_the_table_the_rest(tmp_path):
    save(tmp_path / "in" / "pond" / "a.png", noise(4, 5, 3))
    uri = table(tmp_path / "t.csv", ("file", "obs"), ("pond/a.png", "O1"))
    (scene,) = scenes(images(tmp_path / "in", labels="folder", csv=uri, csv_observation_column="obs"))
    assert (scene.label, scene.observation) == ("pond", "O1")


def test_the_table_goes_before_the_name(tmp_path):
    save(tmp_path / "in" / "x-a.png", noise(4, 5, 3))
    uri = table(tmp_path / "t.csv", ("file", "obs"), ("x-a.png", "O1"))
    (scene,) = scenes(images(tmp_path / "in", csv=uri, csv_observation_column="obs", pattern=r"(?P<observation>\w+)-(?P<place>\w+)"))
    assert (scene.observation, scene.place) == ("O1", "a")


@pytest.mark.parametrize(
    ("name", "pattern", "words"),
    [
        ("91N-10E.png", r"(?P<lat>\w+)-(?P<lon>\w+)", r"cannot read '91N' as lat; write degrees up to 90"),
        ("10E-10E.png", r"(?P<lat>\w+)-(?P<lon>\w+)", r"cannot read '10E' as lat"),
        ("x-2004.png", r"(?P<date>x)", r"x-2004\.png: cannot read 'x' as a date"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, pattern, words):
    save(tmp_path / name, noise(4, 5, 3))
    with pytest.raises(ConfigError, match=words):
        found(images(tmp_path, pattern=pattern))


def test_a_pattern_that_fits_nothing_shows_a_name(tmp_path):
    save(tmp_path / "a.png", noise(4, 5, 3))
    with pytest.raises(EmptySearchError, match=r"fits the pattern .* one is a\.png"):
        found(images(tmp_path, pattern=r"(?P<place>\d+)"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"pattern": "(?P<scene>x)"}, "and no others"),
        ({"pattern": "("}, "not a regular expression"),
        ({"companion": {"replace": "(", "by": ""}}, "not a regular expression"),
        ({"pattern": "(?P<lat>x)"}, "longitude and latitude belong together"),
        ({"csv_place_column": "p"}, "need the table"),
        ({"csv": "t.csv"}, "nothing is read off the table"),
    ],
)
def test_keys_that_lead_nowhere_are_refused(keys, words):
    with pytest.raises(ConfigError, match=words):
        config.build(RastersSection, {"sources": [images("a", **keys)]})


BESIDE = {"companion": {"replace": "_image", "by": "_label"}}


def test_a_label_image_becomes_further_bands(tmp_path):
    colours = save(tmp_path / "a_image.png", noise(8, 9, 3))
    codes = save(tmp_path / "a_label.png", noise(8, 9, seed=1, high=5))
    (scene,) = scenes(images(tmp_path, **BESIDE))
    assert list(scene.assets) == ["red", "green", "blue", "label"]
    np.testing.assert_array_equal(read(scene).values, np.concatenate([colours.transpose(2, 0, 1), codes[None]]))
    (six,) = scenes(images(tmp_path, **BESIDE), bands=["red", "green", "blue", "label_red", "label_green", "label_blue"])
    np.testing.assert_array_equal(read(six).values[3:], np.stack([codes] * 3))
    assert read_scenes(scenes_table([scene])) == [scene]


def test_a_label_image_in_colours_has_them_under_names_of_their_own(tmp_path):
    grey, label = save(tmp_path / "a_image.png", noise(8, 9)), save(tmp_path / "a_label.png", noise(8, 9, 3, seed=1))
    (scene,) = scenes(images(tmp_path, **BESIDE))
    assert list(scene.assets) == ["grey", "label_red", "label_green", "label_blue"]
    np.testing.assert_array_equal(read(scene).values, np.concatenate([grey[None], label.transpose(2, 0, 1)]))


def test_codes_of_a_label_image_with_a_colour_table_stay_codes_and_have_colours(tmp_path):
    save(tmp_path / "a_image.png", noise(8, 9, 3))
    codes, colours = noise(8, 9, seed=1, high=5), noise(256, 3, seed=2)
    picture = PIL.Image.frombytes("P", (9, 8), codes.tobytes())
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a_label.png")
    (scene,) = scenes(images(tmp_path, **BESIDE), bands=["label", "label_green"])
    np.testing.assert_array_equal(read(scene).values, [codes, colours[codes][..., 1]])


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_label_images_are_turned_onto_their_pictures_window_by_window(tmp_path, turn):
    colours, label = save(tmp_path / "a_image.png", noise(8, 12, 3)), noise(8, 12, seed=1)
    PIL.Image.fromarray(label).rotate(turn, expand=True).save(tmp_path / "a_label.png")  # Pillow turns the other way
    beside = {"companion": {**BESIDE["companion"], "turn": turn}}
    (scene,) = scenes(images(tmp_path, **beside))
    whole = np.concatenate([colours.transpose(2, 0, 1), label[None]])
    np.testing.assert_array_equal(read(scene).values, whole)
    window = Window(row=2, col=5, height=3, width=6)
    np.testing.assert_array_equal(read(scene, window).values, whole[:, 2:5, 5:11])


def test_a_turned_label_image_of_another_size_is_refused(tmp_path):
    save(tmp_path / "a_image.png", noise(8, 12, 3))
    save(tmp_path / "a_label.png", noise(8, 12))
    with pytest.raises(BandError, match="lie on different grids"):
        found(images(tmp_path, companion={**BESIDE["companion"], "turn": 90}))


def test_label_images_are_no_pictures_whatever_the_names(tmp_path):
    for name in ("a.png", "a_label.png"):
        save(tmp_path / name, noise(8, 9, 3))
    (scene,) = scenes(images(tmp_path, companion={"replace": r"\.png$", "by": "_label.png"}))
    assert (scene.scene_id, len(scene.assets)) == ("a.png", 6)


def test_a_picture_whose_label_image_is_missing_or_has_no_name_is_told(tmp_path):
    for name in ("a_image.png", "a_label.png", "b_image.png"):
        save(tmp_path / name, noise(8, 9, 3))
    discovery = found(images(tmp_path, **BESIDE))
    assert [scene.scene_id for scene in discovery.scenes] == ["a_image.png"]
    assert [uri.rpartition("/")[2] for uri, _ in discovery.unreadable] == ["b_label.png"]
    save(tmp_path / "c.png", noise(8, 9, 3))
    with pytest.raises(ConfigError, match=r"finds nothing to replace in c\.png"):
        found(images(tmp_path, **BESIDE))


def test_a_template_that_does_not_fit_is_refused_in_our_words(tmp_path):
    save(tmp_path / "a_image.png", noise(8, 9, 3))
    with pytest.raises(ConfigError, match=r"`companion\.by` .* does not fit `replace`"):
        found(images(tmp_path, companion={"replace": "_image", "by": r"_\3"}))
