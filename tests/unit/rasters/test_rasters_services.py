"""Capabilities as GIBS writes them, the tiles of an area, and tiles that are no tiles."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import shapely

from rayjobs.config import build
from rayjobs.errors import BandError, ConfigError
from rayjobs.rasters import capabilities
from rayjobs.rasters.capabilities import chosen_format, chosen_style, moments, nearest_level, read_capabilities, template, unlisted
from rayjobs.rasters.received import pixels_of
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import GibsSource, RastersSection
from rayjobs.rasters.services import list_wmts
from rayjobs.rasters.stamps import stamps
from rayjobs.rasters.tiled import TiledImage, cut
from tests.unit.rasters.rasters_made import write

URL = "https://gibs.example/wmts/WMTSCapabilities.xml"
SIZES = [(2, 1), (3, 2), (5, 3), (10, 5), (20, 10), (40, 20), (80, 40), (160, 80), (320, 160)]
"""Columns and rows of GIBS's matrices of 250 m in EPSG:4326."""
LEVELS = "".join(
    f"<TileMatrix><ows:Identifier>{number}</ows:Identifier><ScaleDenominator>{223632905.6114871 / 2**number!r}</ScaleDenominator>"
    "<TopLeftCorner>-180 90</TopLeftCorner><TileWidth>512</TileWidth><TileHeight>512</TileHeight>"
    f"<MatrixWidth>{cols}</MatrixWidth><MatrixHeight>{rows}</MatrixHeight></TileMatrix>"
    for number, (cols, rows) in enumerate(SIZES)
)
ADDRESS = "https://gibs.example/best/{layer}/default{time}/{{TileMatrixSet}}/{{TileMatrix}}/{{TileRow}}/{{TileCol}}.jpg"
LAYER = """<Layer><ows:Title>{title}</ows:Title><ows:Identifier>{layer}</ows:Identifier>
<ows:WGS84BoundingBox crs="urn:ogc:def:crs:OGC:2:84"><ows:LowerCorner>-180 -90</ows:LowerCorner><ows:UpperCorner>180 90</ows:UpperCorner>
</ows:WGS84BoundingBox><Style isDefault="true"><ows:Identifier>default</ows:Identifier></Style><Format>image/jpeg</Format>
<Dimension><ows:Identifier>Time</ows:Identifier><UOM>ISO8601</UOM><Default>2024-02-03</Default><Current>false</Current>
<Value>2000-02-24/2000-08-05/P1D</Value><Value>2024-01-01/2024-02-03/P1D</Value></Dimension>
<TileMatrixSetLink><TileMatrixSet>250m</TileMatrixSet></TileMatrixSetLink>
<ResourceURL format="image/jpeg" resourceType="tile" template="{dated}"/>
<ResourceURL format="image/jpeg" resourceType="tile" template="{undated}"/>
<ResourceURL format="text/xml" resourceType="Domains" template="https://gibs.example/domains.xml"/></Layer>"""

DIMENSION = LAYER[LAYER.index("<Dimension>") : LAYER.index("<TileMatrixSetLink>")]
DATED, UNDATED = "/default/{Time}/", "/default/"
"""In addresses of tiles."""
KVP = """<ows:Operation name="GetTile"><ows:DCP><ows:HTTP><ows:Get xlink:href="https://x/kvp"/></ows:HTTP></ows:DCP></ows:Operation>"""


@pytest.fixture
def gibs(monkeypatch):
    """Capabilities in the form of GIBS."""
    layers = [("MODIS_Terra_TrueColor", "True Color (Terra / MODIS)"), ("MODIS_Aqua_TrueColor", "True Color (Aqua / MODIS)")]
    written = "".join(
        LAYER.format(layer=name, title=title, dated=ADDRESS.format(layer=name, time="/{Time}"), undated=ADDRESS.format(layer=name, time=""))
        for name, title in layers
    )
    body = (
        '<?xml version="1.0"?><Capabilities xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.0.0"><Contents>{written}<TileMatrixSet><ows:Identifier>250m'
        f"</ows:Identifier><ows:SupportedCRS>urn:ogc:def:crs:OGC:1.3:CRS84</ows:SupportedCRS>{LEVELS}</TileMatrixSet></Contents></Capabilities>"
    )
    monkeypatch.setattr(capabilities, "fetched", lambda _: body.encode())
    return read_capabilities(URL)


def altered(gibs, monkeypatch, *changes):
    """Read the same capabilities with texts replaced."""
    body = capabilities.fetched(gibs.url).decode()
    for old, new in changes:
        assert old in body
        body = body.replace(old, new)
    monkeypatch.setattr(capabilities, "fetched", lambda _: body.encode())
    return read_capabilities(gibs.url)


def address(found, name="MODIS_Terra_TrueColor"):
    return template(found, found.layer(name), matrix_set="250m", level="6", style="default", form="image/jpeg", time="2012-07-09")


def scenes_of(*dates, **keys):
    """List the scenes of a source that names the made-up service."""
    source = GibsSource(layer="MODIS_Terra_TrueColor", url=URL, dates=dates, resolution_m=1000, **keys)
    return list_wmts(source, Search(area=shapely.box(-17.9, 28.0, -14.0, 29.0)))


@pytest.mark.parametrize("odd", ["file:///etc/passwd?", "ftp://x/", "FILE:/etc/", "gopher://x/"])
def test_an_address_that_is_not_of_the_web_is_refused(gibs, monkeypatch, odd):
    with pytest.raises(ConfigError, match=r"for the tiles of MODIS_Terra_TrueColor, which is not of http\(s\)"):
        address(altered(gibs, monkeypatch, ('template="https://gibs.example/', f'template="{odd}')))
    with pytest.raises(ValueError, match="not of http"):
        TiledImage.from_uri(whole_world(gibs, (0, 0, 1, 1)).uri.replace("https://x/", odd))


def test_an_address_may_be_relative(gibs, monkeypatch):
    found = altered(gibs, monkeypatch, ('template="https://gibs.example/', 'template="../tiles/'))
    assert address(found).startswith("https://gibs.example/tiles/best/MODIS_Terra_TrueColor/")


def test_requests_with_parameters_go_where_these_are_taken(gibs, monkeypatch):
    get = (
        '<ows:Get xlink:href="https://x/{0}"><ows:Constraint name="GetEncoding"><ows:AllowedValues><ows:Value>{0}</ows:Value>'
        "</ows:AllowedValues></ows:Constraint></ows:Get>"
    )
    operation = '<ows:Operation name="GetTile"><ows:DCP><ows:HTTP>{}</ows:HTTP></ows:DCP></ows:Operation>'
    both = operation.format(get.format("RESTful") + get.format("KVP"))
    found = altered(gibs, monkeypatch, ("<Contents>", both + "<Contents>"), ('resourceType="tile"', 'resourceType="none"'))
    assert found.request == "https://x/KVP"
    assert address(found).startswith("https://x/KVP?SERVICE=WMTS&REQUEST=GetTile")
    assert altered(found, monkeypatch, (get.format("KVP"), "")).request is None


@pytest.mark.parametrize("corner", ["nowhere", "-180", "nan -90", "1 2 3"])
def test_one_odd_layer_does_not_spoil_a_service(gibs, monkeypatch, corner):
    terra = "<ows:Identifier>MODIS_Terra_TrueColor</ows:Identifier>\n"
    whole = '<ows:WGS84BoundingBox crs="urn:ogc:def:crs:OGC:2:84"><ows:LowerCorner>-180 -90<'
    found = altered(gibs, monkeypatch, (terra + whole, terra + whole.replace("-180 -90", corner)))
    assert found.layer("MODIS_Aqua_TrueColor").bounds == (-180, -90, 180, 90)
    with pytest.raises(BandError, match="describes the layer MODIS_Terra_TrueColor in a way that cannot be read"):
        found.layer("MODIS_Terra_TrueColor")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<TileWidth>512<", "<TileWidth>0<"),
        ("<ScaleDenominator>223632905.6114871<", "<ScaleDenominator>0<"),
        ("<ScaleDenominator>223632905.6114871<", "<ScaleDenominator>nan<"),
    ],
)
def test_levels_that_cannot_be_are_refused(gibs, monkeypatch, old, new):
    with pytest.raises(ConfigError, match="the level '0' has pixels of"):
        altered(gibs, monkeypatch, (old, new))


def test_the_levels_of_gibs(gibs):
    levels = gibs.matrix_sets["250m"].levels
    assert gibs.matrix_sets["250m"].crs == "EPSG:4326"
    assert [(level.columns, level.rows) for level in levels] == SIZES
    assert [level.pixel_width for level in levels] == [0.5625 / 2**number for number in range(9)]
    assert levels[-1].resolution_m == pytest.approx(244.6, abs=0.1)
    assert nearest_level(gibs.matrix_sets["250m"], 1000).identifier == "6"
    assert nearest_level(gibs.matrix_sets["250m"], None).identifier == "8"


def test_the_address_with_the_date_is_taken(gibs):
    layer = gibs.layer("MODIS_Terra_TrueColor")
    found = template(gibs, layer, matrix_set="250m", level="6", style="default", form=chosen_format(layer, None), time="2012-07-09")
    assert found == "https://gibs.example/best/MODIS_Terra_TrueColor/default/2012-07-09/250m/6/{row}/{col}.jpg"


@pytest.mark.usefixtures("gibs")
def test_the_dates_of_a_layer_are_scenes_of_one_series():
    found = scenes_of("2024-01-30", "2024-02-01/2024-02-02", name="a@2x")
    assert [entry.datetime.date().isoformat() for entry in found] == ["2024-01-30", "2024-02-01", "2024-02-02"]
    assert [entry.scene_id for entry in found][:1] == ["a@2x@2024-01-30.250m-6.r13c36"]
    assert {entry.series for entry in found} == {"a@2x.250m-6.r13c36"}
    assert len({entry.files[0].uri for entry in found}) == 3


@pytest.mark.parametrize("dates", ["2024-01-01", "2024-01-01/2024-01-03"])
def test_a_layer_without_dates_takes_none(gibs, monkeypatch, dates):
    altered(gibs, monkeypatch, (DIMENSION, ""))
    with pytest.raises(ConfigError, match=r"the layer MODIS_Terra_TrueColor of .* has no dates; leave `dates` out"):
        scenes_of(dates)
    (scene,) = scenes_of()
    assert (scene.scene_id, scene.datetime) == ("MODIS_Terra_TrueColor.250m-6.r13c36", None)


def test_an_address_that_leaves_the_date_out_is_not_taken_for_one(gibs, monkeypatch):
    altered(gibs, monkeypatch, (DATED, UNDATED))
    with pytest.raises(ConfigError, match="that holds a date; leave `dates` out"):
        scenes_of("2024-01-01")
    assert len(scenes_of()) == 1
    altered(gibs, monkeypatch, ("<Contents>", KVP + "<Contents>"))
    assert "https://x/kvp?" in scenes_of("2024-01-01")[0].files[0].uri
    assert "Time=2024-01-01" in scenes_of("2024-01-01")[0].files[0].uri


def test_without_dates_the_service_shows_what_it_shows(gibs, monkeypatch):
    (scene,) = scenes_of()
    assert (scene.datetime, "/default/2024-02-03/" in scene.files[0].uri) == (None, True)
    altered(gibs, monkeypatch, ("<Default>2024-02-03</Default>", ""))
    (scene,) = scenes_of()
    assert (scene.datetime, "/default/250m/" in scene.files[0].uri) == (None, True)
    altered(gibs, monkeypatch, (UNDATED + "{TileMatrixSet}", DATED + "{TileMatrixSet}"))
    with pytest.raises(ConfigError, match="nor a date to show by default; give the source `dates`"):
        scenes_of()


def test_formats_and_styles_that_a_layer_has_not(gibs, monkeypatch):
    layer = gibs.layer("MODIS_Terra_TrueColor")
    assert chosen_style(layer, None) == chosen_style(layer, "default") == "default"
    with pytest.raises(ConfigError, match="no tiles as png; write `format` as one of image/jpeg, or leave it out"):
        scenes_of("2024-01-01", format="png")
    with pytest.raises(ConfigError, match="no style 'ndvi'; write `style` as one of default, or leave it out"):
        scenes_of("2024-01-01", style="ndvi")
    silent = dataclasses.replace(layer, styles=())
    assert (chosen_style(silent, None), chosen_style(silent, "ndvi")) == ("default", "ndvi")
    altered(gibs, monkeypatch, ("<Format>image/jpeg</Format>", "<Format>application/vnd.mapbox-vector-tile</Format>"))
    with pytest.raises(BandError, match="has no pictures, but application/vnd"):
        scenes_of("2024-01-01")


def test_empty_entries_of_dates_are_none(gibs, monkeypatch):
    found = altered(gibs, monkeypatch, ("<Value>2000-02-24/2000-08-05/P1D</Value>", "<Value/><Value>2001-01-01, ,2001-01-03,</Value>"))
    assert found.layer("MODIS_Terra_TrueColor").times == ("2001-01-01", "2001-01-03", "2024-01-01/2024-02-03/P1D")
    assert len(scenes_of("2001-01-01/2001-01-31")) == 2


def test_layers_by_words_and_a_mistyped_layer(gibs):
    assert gibs.matching(["true", "AQUA"]) == ["MODIS_Aqua_TrueColor"]
    assert gibs.matching(["modis"]) == ["MODIS_Aqua_TrueColor", "MODIS_Terra_TrueColor"]
    with pytest.raises(BandError, match=r"no layer 'MODIS_Terra_TrueColour'; it has MODIS_Terra_TrueColor;"):
        gibs.layer("MODIS_Terra_TrueColour")


@pytest.mark.parametrize(
    ("asked", "listed", "expected"),
    [
        (["2024-02-01/2024-02-28"], ["2000-02-24/2000-08-05/P1D", "2024-01-01/2024-02-03/P1D"], "2024-02-01 2024-02-02 2024-02-03"),
        (["2023-05-01", "2024-02-03/2024-02-09"], ["2024-01-01/2024-02-03/P1D"], "2023-05-01 2024-02-03"),
        (["2024-01-10/2024-02-01"], ["2024-01-01/2024-12-31/P8D"], "2024-01-17 2024-01-25"),
        (["2023-11-01/2024-02-28"], ["2023-01-01/2024-12-01/P1M"], "2023-11-01 2023-12-01 2024-01-01 2024-02-01"),
        (["2020/2022"], ["2019-01-01", "2021-01-01", "2022-01-01"], "2021-01-01 2022-01-01"),
        (["2024-01-01T00:15/2024-01-01T00:25"], ["2024-01-01T00:00:00Z/2024-01-02T00:00:00Z/PT10M"], "2024-01-01T00:20:00Z"),
        (["2020-01-01/2020-12-31"], ["2020-01-31/2020-05-31/P1M"], "2020-01-31 2020-02-29 2020-03-31 2020-04-30 2020-05-31"),
        (["2024-02-28/2024-03-01"], [], "2024-02-28 2024-02-29 2024-03-01"),
        (["2024-01-01/2024-02-28"], ["2024-01-01T00:10:00.500Z", "20240105", "2024-02"], "2024-01-01T00:10:00.500Z 20240105 2024-02"),
        (["9999-12-01/9999-12-31"], ["9999-12-30/9999-12-31/P1D"], "9999-12-30 9999-12-31"),
        (["9999-12-01/9999-12-31"], ["9999-11-30/9999-12-31/P1M"], "9999-12-30"),
        (["2024-01-01/2024-02-01"], ["2024-01-01/2024-03-01/P99999Y"], "2024-01-01"),
        (["2024-03-01/2024-05-01"], ["0001-01-31/9999-12-31/P1M"], "2024-03-31 2024-04-30"),
        (["2024-01-01/2024-03-01"], ["1000-01-15/9999-12-31/P2M"], "2024-01-15"),
        (["2020-01-01/2024-12-31"], ["1000-03-01/2024-12-31/P1Y1D"], "2020-12-13 2021-12-14 2022-12-16 2023-12-17 2024-12-17"),
        (["2024-01-01/2024-02-01"], ["2024-01-01/2024-03-01/P9000000D"], "2024-01-01"),
    ],
)  # fmt: skip
def test_dates_that_a_layer_has(asked, listed, expected):
    assert moments(asked, listed) == expected.split()


@pytest.mark.parametrize(
    ("asked", "words"), [("1990-01-01/1990-02-01", "lists no date within"), ("2024-01-01/..", "is open"), ("soon", "cannot read 'soon'")]
)
def test_dates_that_it_has_not(asked, words):
    with pytest.raises(ValueError, match=words):
        moments([asked], ["2024-01-01/2024-02-03/P1D"])


@pytest.mark.parametrize("listed", [["2020-01-01/2999-12-31/PT1S"], ["2020-01-01/2999-12-31/PT1M"] * 3, []])
def test_more_dates_than_anyone_asks_for_are_refused(listed):
    with pytest.raises(ValueError, match="'1700-01-01/2999-12-31' holds more than 100,000 dates; write a shorter one"):
        moments(["1700-01-01/2999-12-31"], listed)


@pytest.mark.parametrize(
    ("asked", "listed", "expected"),
    [
        (["2024-02-03", "2024-02-04", "2030-01-01/2030-02-01"], ["2024-01-01/2024-02-03/P1D"], {"2024-02-04"}),
        (["2024-01-02", " 2024-01-09 "], ["2024-01-01/2024-12-31/P8D"], {"2024-01-02"}),
        (["2024-02-01", "2024-02"], ["2024-01-31/2024-12-31/P1M"], {"2024-02-01"}),
        (["2024-01-01", "2024-01-02T00:05"], ["2024-01-01T00:10:00.500Z", "2024-01-02/2024-01-03/PT10M"], {"2024-01-02T00:05"}),
        (["2024-01-01"], [], set()),
        (["2024-01-01"], ["2023-01-01/2023-12-31/no period"], set()),
    ],
)  # fmt: skip
def test_single_dates_that_a_service_does_not_list(asked, listed, expected):
    assert unlisted(asked, listed) == expected


@pytest.mark.parametrize("period", ["P0D", "P0M", "PT0S", "P", "P1W", "P99999999999D", "P99999999999Y"])
def test_a_period_of_no_length_or_beyond_all_is_refused(period):
    with pytest.raises(ValueError, match=f"'{period}' is no period"):
        moments(["2024-01-10/2024-01-20"], [f"2024-01-01/2024-02-03/{period}"])


def whole_world(gibs, bounds, level=8):
    matrix, world = gibs.matrix_sets["250m"].levels[level], (-180, -90, 180, 90)
    return cut(matrix, bounds, world, template="https://x/{row}/{col}", crs="EPSG:4326", bands=3, nodata=None)


def test_the_whole_earth_ends_where_it_ends_and_not_where_its_tiles_do(gibs):
    image = whole_world(gibs, (-180, -90, 180, 90))
    assert (image.width, image.height) == (163_840, 81_920)
    coarse = whole_world(gibs, (-180, -90, 180, 90), level=1)
    assert coarse.shape == (2, 3)
    assert (coarse.width, coarse.height) == (1280, 640)
    assert coarse.window(1, 2).width == 1280 - 2 * 512


def test_a_known_tile_of_gibs(gibs):
    """The example of the service's documentation: level 6, row 13, column 36."""
    image = whole_world(gibs, (-17.9, 28.0, -14.0, 29.0), level=6)
    assert list(image.tiles()) == [(13, 36)]
    assert image.address(13, 36) == "https://x/13/36"
    assert (image.left, image.top, image.width, image.height) == (-18, 31.5, 512, 512)


def test_tiles_cover_what_is_asked_and_no_more(gibs):
    random = np.random.default_rng(0)
    matrix = gibs.matrix_sets["250m"].levels[5]
    side = matrix.pixel_width * 512
    for west, south in zip(random.uniform(-179, 150, 50), random.uniform(-89, 60, 50), strict=True):
        east, north = west + random.uniform(0.01, 29), south + random.uniform(0.01, 29)
        image = whole_world(gibs, (west, south, east, north), level=5)
        meant = {
            (row, col)
            for row in range(matrix.rows)
            for col in range(matrix.columns)
            if -180 + col * side < east and -180 + (col + 1) * side > west and 90 - row * side > south and 90 - (row + 1) * side < north
        }
        assert set(image.tiles()) == meant
        assert TiledImage.from_uri(image.uri) == image


def test_an_area_that_only_touches_a_tile_does_not_meet_it(gibs):
    side = gibs.matrix_sets["250m"].levels[8].pixel_width * 512
    assert whole_world(gibs, (-180, 0, -180 + 3 * side, 1)).shape[1] == 3
    assert whole_world(gibs, (-180 + side * (3 - 1e-9), 0, -180 + side * 3, 1)) is None
    assert whole_world(gibs, (0, 90 - side * 2, 1, 90 - side * (2 - 1e-9))) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("&bands=3", ""),
        ("&bands=3", "&bands=2"),
        ("&bands=3", "&bands=3&x=1"),
        ("&bands=3", "&bands=3&template=x"),
        ("tile_width=512", "tile_width=0"),
        ("tile_height=512", "tile_height=-1"),
        ("&width=512", "&width=0"),
        ("&row=", "&row=-"),
        ("pixel_width=", "pixel_width=-"),
        ("pixel_height=", "pixel_height=nan&pixel_height=inf&nodata="),
        ("left=", "left=nan&nodata="),
        ("tile_width=512&", ""),
    ],
)
def test_an_address_of_no_picture_is_refused(gibs, old, new):
    uri = whole_world(gibs, (0.5, 0.5, 1, 1)).uri
    assert old in uri
    assert TiledImage.from_uri(uri).uri == uri
    with pytest.raises(ValueError, match="picture"):
        TiledImage.from_uri(uri.replace(old, new))


def test_a_pictures_stamp_is_its_address(gibs):
    one = whole_world(gibs, (0, 0, 1, 1))
    other = dataclasses.replace(one, template="https://x/other/{row}/{col}")
    found = stamps({image.uri: [image.uri] for image in (one, other)})
    assert len(set(found.values())) == 2


def test_short_forms_are_written_out():
    (source,) = build(RastersSection, {"sources": ["gibs:MODIS_Terra_TrueColor@2024-01-01,2024-02-01/2024-02-03"]}).sources
    assert (source.kind, source.layer, source.dates) == ("gibs", "MODIS_Terra_TrueColor", ("2024-01-01", "2024-02-01/2024-02-03"))
    assert source.url.startswith("https://gibs.earthdata.nasa.gov/wmts/epsg4326/best/")
    (static,) = build(RastersSection, {"sources": ["gibs:BlueMarble_NextGeneration"]}).sources
    assert (static.layer, static.dates) == ("BlueMarble_NextGeneration", ())
    for odd in ("gibs:", "gibs:MODIS_Terra_TrueColor@", "gibs:MODIS Terra@2024-01-01", "MODIS_Terra_TrueColor"):
        with pytest.raises(ConfigError, match="gibs:LAYER@2024-01-31"):
            build(RastersSection, {"sources": [odd]})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"url": "https://x/{z}/{x}.png", "zoom": 3}, "needs {y}"),
        ({"url": "https://x/{z}/{x}/{y}.png", "zoom": 3, "dates": ["2024-01-01"]}, "give both or neither"),
        ({"url": "https://x/{z}/{x}/{y}.png", "zoom": 3, "channels": 2}, "1 band"),
        ({"url": "https://{s}.x/{z}/{x}/{y}{r}.png", "zoom": 3}, r"has \{r\}, \{s\}, which nothing is put in place of"),
    ],
)
def test_what_an_xyz_source_must_say(keys, words):
    with pytest.raises(ConfigError, match=words):
        build(RastersSection, {"sources": [{"kind": "xyz", **keys}]})


def encoded(values, form, **keys):
    data = io.BytesIO()
    (values if isinstance(values, PIL.Image.Image) else PIL.Image.fromarray(values)).save(data, form, **keys)
    return data.getvalue()


def test_tiles_of_every_form_become_the_bands_that_are_wanted():
    colours = np.random.default_rng(0).integers(0, 255, (64, 48, 3)).astype(np.uint8)
    grey, opacity = colours[..., 0], np.full((64, 48), 255, np.uint8)
    few = PIL.Image.fromarray(colours).quantize(16)
    cases = [
        (colours, "PNG", 3, colours), (colours, "PNG", 4, np.dstack([colours, opacity])), (grey, "PNG", 1, grey[..., None]),
        (grey, "PNG", 3, np.dstack([grey] * 3)), (few, "PNG", 3, np.asarray(few.convert("RGB"))),
        (np.dstack([colours, grey]), "PNG", 4, np.dstack([colours, grey])), (np.dstack([colours, grey]), "PNG", 3, colours),
    ]  # fmt: skip
    for values, form, bands, expected in cases:
        found = pixels_of(encoded(values, form), bands=bands, height=64, width=48)
        np.testing.assert_array_equal(np.moveaxis(found, 0, -1), expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
def test_a_tile_that_is_cut_short_is_refused(form, part):
    data = encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8), form)
    assert pixels_of(data, bands=3, height=64, width=64).shape == (3, 64, 64)
    with pytest.raises(ValueError, match="cannot be decoded"):
        pixels_of(data[: int(len(data) * part)], bands=3, height=64, width=64)


def test_a_png_with_a_byte_changed_is_refused():
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match="cannot be decoded"):
        pixels_of(bytes(data), bands=3, height=64, width=64)


def test_a_tile_of_another_size_or_a_report_of_an_error_is_refused():
    with pytest.raises(ValueError, match="has 32 x 64 pixels"):
        pixels_of(encoded(np.zeros((32, 64, 3), np.uint8), "PNG"), bands=3, height=64, width=64)
    with pytest.raises(ValueError, match="cannot be decoded"):
        pixels_of(b"<ServiceExceptionReport/>", bands=3, height=64, width=64)


@pytest.mark.parametrize("bands", [5, 300])
def test_a_tile_of_many_bands_is_refused_unread(tmp_path, bands):
    data = Path(write(tmp_path / "a.tif", np.zeros((bands, 64, 64), np.uint8), compress="deflate")).read_bytes()
    with pytest.raises(ValueError, match=f"has {bands} bands, not 1 to 4"):
        pixels_of(data, bands=3, height=64, width=64)
