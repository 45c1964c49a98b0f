"""STAC items: assets to bands, scales and offsets, relative addresses."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from rayjobs.config import build
from rayjobs.errors import BandError, ConfigError, EmptySearchError, NotFoundError
from rayjobs.geo import Window
from rayjobs.rasters import stac as stac_module
from rayjobs.rasters.reader import RasterReader
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import StacApiSource
from tests.unit.rasters.rasters_made import found, noise, write

COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def item(name="S2B_T1", **assets):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2023-06-01T10:10:31Z", "platform": "sentinel-2b"},
        "links": [],
        "assets": assets,
    }


def asset(href, **keys):
    return {"href": str(href), "type": COG, "roles": ["data"], **keys}


def save(path, document):
    path.write_text(json.dumps(document))
    return str(path)


def stac(*items, **keys):
    return {"kind": "stac", "items": [str(uri) for uri in items], **keys}


@pytest.fixture
def folder(tmp_path):
    """Three rasters: red, nir, and a layer of classes."""
    write(tmp_path / "red.tif", noise(1, 40, 50, dtype="uint16", high=9000))
    write(tmp_path / "nir.tif", noise(1, 40, 50, dtype="uint16", high=9000, seed=1))
    write(tmp_path / "scl.tif", noise(1, 20, 25, low=0, high=11), pixel=20)
    return tmp_path


def test_data_assets_become_bands_by_their_keys(folder):
    document = item(red=asset("red.tif"), nir=asset("./nir.tif"), thumbnail={"href": "t.png", "type": "image/png", "roles": ["thumbnail"]})
    scene = found(stac(save(folder / "item.json", document))).scenes[0]
    assert (scene.scene_id, scene.platform, list(scene.assets)) == ("S2B_T1", "sentinel-2b", ["red", "nir"])
    assert scene.datetime == datetime(2023, 6, 1, 10, 10, 31, tzinfo=UTC)
    with RasterReader() as reader:
        values = reader.read(scene, Window(row=0, col=0, height=40, width=50)).values
    assert (values[0] == noise(1, 40, 50, dtype="uint16", high=9000)[0]).all()


def test_bands_of_one_asset_have_the_items_names(folder):
    write(folder / "image.tif", noise(4, 40, 50))
    bands = [{"name": "B1", "common_name": "red"}, {"name": "B2", "common_name": "green"}, {"name": "B3"}, {"name": "nir"}]
    source = stac(save(folder / "item.json", item(image=asset("image.tif", **{"eo:bands": bands}))))
    assert list(found(source).scenes[0].assets) == ["red", "green", "B3", "nir"]
    scene = found({**source, "assets": {"nir": "image", "second": "image:2"}}).scenes[0]
    assert {name: entry.band_index for name, entry in scene.assets.items()} == {"nir": 4, "second": 2}


@pytest.mark.parametrize(
    "keys",
    [
        {"raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]},
        {"bands": [{"name": "red", "raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0}]},
        {"raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0},
    ],
)
def test_scale_offset_and_nodata_are_taken_from_either_version_of_stac(folder, keys):
    scene = found(stac(save(folder / "item.json", item(red=asset("red.tif", **keys)))), bands=["red"]).scenes[0]
    entry = scene.assets["red"]
    assert (entry.scale, entry.offset, entry.nodata) == (0.0001, -0.1, 0.0)


def test_an_asset_of_classes_masks_pixels(folder):
    document = item(red=asset("red.tif"), scl=asset("scl.tif"))
    source = stac(save(folder / "item.json", document), assets={"red": "red"}, quality={"asset": "scl", "classes": [3, 8, 9]})
    scene = found(source).scenes[0]
    assert list(scene.assets) == ["red"]
    with RasterReader() as reader:
        valid = reader.read(scene, Window(row=0, col=0, height=40, width=50)).valid
    codes = noise(1, 20, 25, low=0, high=11)[0]
    assert (valid == ~(codes.repeat(2, 0).repeat(2, 1)[..., None] == [3, 8, 9]).any(-1)).all()


def test_collections_of_items_globs_and_folders(folder):
    one, two = item("one", red=asset("red.tif")), item("two", red=asset("nir.tif"))
    save(folder / "both.json", {"type": "FeatureCollection", "features": [one, two]})
    (folder / "items").mkdir()
    save(folder / "items" / "one.json", item("one", red=asset("../red.tif")))
    save(folder / "items" / "collection.json", {"type": "Collection", "id": "c"})
    assert [scene.scene_id for scene in found(stac(folder / "both.json")).scenes] == ["one", "two"]
    assert [scene.scene_id for scene in found(stac(folder / "items")).scenes] == ["one"]
    assert [scene.scene_id for scene in found(stac(folder / "items" / "o*.json")).scenes] == ["one"]


def test_only_wanted_assets_are_opened(folder):
    document = item(red=asset("red.tif"), swir=asset("missing.tif"))
    discovery = found(stac(save(folder / "item.json", document)), bands=["red"])
    assert (len(discovery.scenes), discovery.unreadable) == (1, [])


def test_an_asset_that_is_not_there_is_named(folder):
    path = save(folder / "item.json", item(red=asset("red.tif")))
    with pytest.raises(BandError, match="item S2B_T1 has no asset 'B04'; it has 'red'"):
        found(stac(path, assets={"red": "B04"}))
    with pytest.raises(BandError, match="no asset 'scl'"):
        found(stac(path, quality={"asset": "scl", "bits": [1]}))


def test_items_without_rasters_are_explained(folder):
    path = save(folder / "item.json", item(preview={"href": "x.png", "type": "image/png", "roles": ["overview"]}))
    with pytest.raises(BandError, match="no raster asset; name them with `assets`; it has preview"):
        found(stac(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "neither a STAC Item"),
        ('{"type": "Topology"}', "neither a STAC Item"),
        ('{"type": "Feature", "id": "x", "assets": {}}', "not valid STAC: KeyError"),
        (
            '{"type": "Feature", "id": "x", "properties": {"datetime": "soon"}, "assets": {"a": {"href": "a.tif", "type": "image/tiff"}}}',
            "'soon' as a date",
        ),
    ],
)
def test_what_is_no_item_is_named(tmp_path, text, message):
    (tmp_path / "item.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        found(stac(tmp_path / "item.json"))


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError):
        found(stac(tmp_path / "gone.json"))
    save(tmp_path / "none.json", {"type": "FeatureCollection", "features": []})
    with pytest.raises(EmptySearchError, match="no STAC item"):
        found(stac(tmp_path / "none.json"))


def test_a_span_of_time_counts_from_its_start(folder):
    document = item(red=asset("red.tif"))
    document["properties"] = {"datetime": None, "start_datetime": "2023-01-01T00:00:00Z", "end_datetime": "2023-02-01T00:00:00Z"}
    scene = found(stac(save(folder / "item.json", document)), bands=["red"]).scenes[0]
    assert scene.datetime == datetime(2023, 1, 1, tzinfo=UTC)


class _Api:
    """Gives one page after the other, and the last one again and again."""

    def __init__(self, *pages):
        self.pages, self.asked = pages, 0

    def __call__(self, *_, **__):
        self.asked += 1
        page = self.pages[min(self.asked, len(self.pages)) - 1]
        return page if isinstance(page, bytes) else dumped(page)


def dumped(document):
    return json.dumps(document).encode()


def page(*items, following=None):
    return {"type": "FeatureCollection", "features": list(items), "links": [following] if following else []}


def listed(monkeypatch, *pages, **keys):
    api = _Api(*pages)
    monkeypatch.setattr(stac_module, "fetched", api)
    source = build(StacApiSource, {"url": "https://api.example", "collections": ["c"], **keys})
    return stac_module.list_found(source, Search(area=None, span=None)), api


NEXT = {"rel": "next", "href": "https://api.example/search", "method": "POST", "merge": True}


def named(name="S2B_T1", href="https://x/a.tif", **keys):
    return {**item(name, red=asset(href)), "collection": "c", **keys}


@pytest.mark.parametrize("href", ["/etc/x.tif", "file:///etc/x.tif", "/vsicurl/https://x/a.tif", "FILE:/etc/x.tif", "HTTP:x"])
def test_an_item_from_the_web_may_not_name_files_of_this_machine(monkeypatch, href):
    with pytest.raises(ConfigError, match="item S2B_T1 comes from the web, but names the file"):
        listed(monkeypatch, page(named(href=href)))
    monkeypatch.setattr(stac_module, "fetched", _Api(named(href=href)))
    with pytest.raises(ConfigError, match="item S2B_T1 comes from the web, but names the file"):
        found(stac("https://x/item.json"))


def test_nor_by_its_link_to_itself_nor_as_a_quality_layer(monkeypatch):
    with pytest.raises(ConfigError, match=r"names the file /etc/a\.tif"):
        listed(monkeypatch, page(named(href="a.tif", links=[{"rel": "self", "href": "/etc/item.json"}])))
    masked = {**named(), "assets": {"red": asset("s3://b/a.tif"), "scl": asset("/etc/x.tif")}}
    with pytest.raises(ConfigError, match=r"names the file /etc/x\.tif"):
        listed(monkeypatch, page(masked), assets={"red": "red"}, quality={"asset": "scl", "bits": [1]})


def test_pages_without_end_are_left(monkeypatch):
    with pytest.raises(ConfigError, match="without end"):
        listed(monkeypatch, page(named(), following=NEXT))
    turning = [page(named(), following={**NEXT, "body": {"token": str(number)}}) for number in range(9)]
    with pytest.raises(ConfigError, match="without end"):
        listed(monkeypatch, *turning, max_items=5)


def test_an_item_on_two_pages_is_one(monkeypatch):
    pages = page(named("a"), named("b"), following={**NEXT, "body": {"token": "1"}}), page(named("b"), named("c"))
    found, api = listed(monkeypatch, *pages, max_items=3)
    assert ([entry.scene_id for entry in found], api.asked) == (["a", "b", "c"], 2)


@pytest.mark.parametrize(
    "answer",
    [
        [], {}, {"features": None}, {"features": ["text"]}, page(following={"rel": "next"}), page(following="next"),
        page(following={**NEXT, "body": [1]}), page(named(properties=[1])), page(named(links=["self"])), page(named(assets=["red"])),
        page(named(properties={"datetime": 7})), page(named(assets={"red": "a.tif"})),
        page({**named(), "assets": {"red": asset("https://x/a.tif", nodata="none")}}), b"<html>",
    ],
)  # fmt: skip
def test_answers_of_another_kind_are_refused_in_a_line(monkeypatch, answer):
    with pytest.raises(ConfigError, match=r"https://api\.example/search "):
        listed(monkeypatch, answer)
