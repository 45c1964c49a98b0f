"""Label maps drawn in colours: the nearest colour of a palette, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from rayjobs.config import build
from rayjobs.errors import ConfigError, LabelMapError
from rayjobs.geo import Grid, Window
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.palettes import CORINE, NODATA, OSM, PALETTES, class_names, nearest_classes
from rayjobs.rasters.section import LabelMapSection
from tests.unit.rasters.rasters_made import write

UTM = Grid(crs="EPSG:32631", transform=(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), height=40, width=40)
EVERYTHING = Window(row=0, col=0, height=40, width=40)


def naive(colour, palette, tolerance):
    """The class of one colour, by looking at all of the palette."""
    apart = {name: sum(abs(int(a) - b) for a, b in zip(colour, of_class, strict=True)) for name, of_class in palette.items()}
    nearest = min(apart, key=apart.__getitem__)  # the first of equally near ones
    return nearest if apart[nearest] < tolerance and nearest != NODATA else None


def drawn(palette, seed=0):
    """(3, 40, 40) colours of a palette, most of them a little off."""
    rng = np.random.default_rng(seed)
    colours = np.array(list(palette.values()))[rng.integers(0, len(palette), (40, 40))]
    off = rng.integers(-6, 7, (40, 40, 3)) * (rng.random((40, 40, 1)) < 0.8)
    return np.clip(colours + off, 0, 255).astype("uint8").transpose(2, 0, 1)


def expected(pixels, palette, tolerance, there=None):
    """Fractions and coverage of a picture, one pixel at a time."""
    names = class_names(palette)
    counts = dict.fromkeys(names, 0)
    for row in range(pixels.shape[1]):
        for col in range(pixels.shape[2]):
            name = naive(pixels[:3, row, col], palette, tolerance)
            if name is not None and (there is None or there[row, col]):
                counts[name] += 1
    total = sum(counts.values())
    return [count / max(total, 1) for count in counts.values()], total / pixels[0].size


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("tolerance", [1, 15, 60])
def test_fractions_are_those_of_a_naive_lookup(tmp_path, palette, tolerance):
    pixels = drawn(PALETTES[palette])
    path = write(tmp_path / "map.tif", pixels, photometric="RGB")
    found, coverage = LabelMap(uri=path, palette=PALETTES[palette], tolerance=tolerance).fractions(UTM, EVERYTHING)
    fractions, share = expected(pixels, PALETTES[palette], tolerance)
    np.testing.assert_allclose(found, fractions, atol=1e-6)
    assert coverage == pytest.approx(share)
    assert 0.1 < coverage < 1 or tolerance == 60


def test_the_limit_itself_is_too_far_and_equally_near_colours_go_to_the_first():
    palette = {"one": (100, 0, 0), "two": (120, 0, 0), NODATA: (200, 0, 0)}
    colours = np.array([[100, 110, 114, 86, 85, 195, 120], [0] * 7, [0] * 7], np.uint8)
    assert nearest_classes(colours, palette, 15).tolist() == [0, 0, 1, 0, -1, -1, 1]


def test_nodata_hidden_and_transparent_pixels_have_no_class(tmp_path):
    pixels = drawn(OSM)
    pixels[:, :20] = 0
    there = np.arange(40)[:, None] + np.zeros(40) >= 20
    black = OSM | {"black": (0, 0, 0)}
    fractions, share = expected(pixels, black, 15, there)
    for path in (
        write(tmp_path / "nodata.tif", pixels, photometric="RGB", nodata=0),
        write(tmp_path / "mask.tif", pixels, photometric="RGB", mask=there),
        write(tmp_path / "alpha.tif", np.concatenate([pixels, 255 * there[None].astype("uint8")]), photometric="RGB", alpha="YES"),
    ):
        found, coverage = LabelMap(uri=path, palette=black).fractions(UTM, EVERYTHING)
        np.testing.assert_allclose(found, fractions, atol=1e-6)
        assert coverage == pytest.approx(share)
    whole = LabelMap(uri=str(tmp_path / "nodata.tif"), palette=black, nodata=256).fractions(UTM, EVERYTHING)
    assert whole.fractions[-1] > 0.5


def test_a_colour_table_is_as_good_as_three_bands(tmp_path):
    codes = np.random.default_rng(0).integers(0, 14, (1, 40, 40)).astype("uint8")
    table = {number: (*colour, 255) for number, colour in enumerate(OSM.values())} | {13: (77, 255, 0, 255)}
    path = write(tmp_path / "coded.tif", codes, colours=table, photometric="palette", nodata=13)
    found, coverage = LabelMap(uri=path, palette=OSM).fractions(UTM, EVERYTHING)
    counts = np.bincount(codes.ravel(), minlength=14)
    assert coverage == pytest.approx(1 - counts[13] / codes.size)
    np.testing.assert_allclose(found, counts[:13] / counts[:13].sum(), atol=1e-6)


def test_bands_are_taken_by_their_names_where_the_file_has_some(tmp_path):
    pixels = drawn(OSM)
    path = write(tmp_path / "bgr.tif", pixels[::-1], names=["blue", "green", "red"])
    found, _ = LabelMap(uri=path, palette=OSM).fractions(UTM, EVERYTHING)
    np.testing.assert_allclose(found, expected(pixels, OSM, 15)[0], atol=1e-6)


def test_the_tables_are_whole_and_every_colour_is_its_own():
    assert (len(class_names(OSM)), len(class_names(CORINE)), len(CORINE)) == (13, 44, 45)
    for palette in PALETTES.values():
        assert len(set(palette.values())) == len(palette)
        assert all(naive(colour, palette, 15) == (None if name == NODATA else name) for name, colour in palette.items())
    assert set(OSM.values()) < set(CORINE.values())


def test_a_raster_that_is_no_picture_is_refused(tmp_path):
    path = write(tmp_path / "codes.tif", np.ones((1, 40, 40), "uint8"))
    with pytest.raises(LabelMapError, match=r"is no picture: it has 1 bands of uint8.*label_map\.classes"):
        LabelMap(uri=path, palette=OSM).fractions(UTM, EVERYTHING)


def test_the_section_names_a_palette_or_gives_one():
    osm = build(LabelMapSection, {"uri": "x.tif", "palette": "osm"})
    assert LabelMap(**osm.arguments()) == LabelMap(uri="x.tif", palette=dict(OSM))
    own = build(LabelMapSection, {"uri": "x.tif", "palette": {"water": [0, 0, 200], "nodata": [0, 0, 0]}, "tolerance": 40, "nodata": 7})
    label_map = LabelMap(**own.arguments())
    assert (label_map.names, label_map.tolerance, label_map.nodata) == (("water",), 40, 7)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either `classes`"),
        ({"classes": {1: "a"}, "palette": "osm"}, "either `classes`"),
        ({"palette": "clc"}, "'osm' or 'corine'"),
        ({"palette": {"water": [0, 0, 256]}}, "255"),
        ({"palette": {"nodata": [0, 0, 0]}}, "at least one class"),
        ({"palette": "osm", "tolerance": 0}, "tolerance"),
    ],
)
def test_mistakes_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(LabelMapSection, {"uri": "x.tif"} | keys)


def test_a_label_map_is_codes_or_colours():
    with pytest.raises(ValueError, match="either"):
        LabelMap(uri="x.tif")
