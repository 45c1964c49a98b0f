"""What other tools read of fetched scenes: valid STAC."""

from __future__ import annotations

import datetime
import json
from types import SimpleNamespace

import pystac
import pytest
from jsonschema import Draft7Validator
from pystac.extensions.eo import Band, EOExtension
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

from rayjobs.fetch.items import item_collection
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import StacSource
from rayjobs.rasters.stac import list_items
from rayjobs.rasters.tiled import TiledImage
from rayjobs.storage import FileDigest

CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"
DISK = "+proj=geos +h=35785831 +lon_0=-75 +sweep=x"
"""As a geostationary satellite sees the Earth: the corners of a whole picture are sky."""


TAKEN = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def item(crs="EPSG:4326", *, bands=3, side=10.0, taken=TAKEN):
    """The item of a square picture round the origin."""
    image = TiledImage(
        template="https://x/{row}/{col}.png", crs=crs, left=-side / 2, top=side / 2, pixel_width=side / 64, pixel_height=side / 64,
        tile_width=64, tile_height=64, row=0, col=0, height=64, width=64, bands=bands,
    )  # fmt: skip
    scene = SimpleNamespace(scene_id="a", image=image, datetime=taken)
    (found,) = item_collection([scene], {"a": FileDigest("a.tif", "0" * 64, 1, shared=True)})["features"]
    return json.loads(json.dumps(found))


def faults(document):
    """What the core schemas that pystac bundles say of an item; they are those of STAC 1.1, which asks no less."""
    cache = get_local_schema_cache()
    registry = Registry().with_resources([(uri, Resource.from_contents(schema)) for uri, schema in cache.items()])
    return [fault.message for fault in Draft7Validator(cache[CORE], registry=registry).iter_errors(document | {"stac_version": "1.1.0"})]


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_items_are_valid_stac_and_name_common_bands_alone(bands):
    found = item(bands=bands)
    assert faults(found) == []
    (asset,) = pystac.Item.from_dict(found).assets.values()
    named = EOExtension.ext(asset).bands
    assert [band.name for band in named] == (["grey"] if bands == 1 else ["red", "green", "blue"])
    common = [band.common_name for band in named if band.common_name]
    assert common == ([] if bands == 1 else ["red", "green", "blue"])
    assert all(Band.band_range(name) for name in common), "the extension knows them"


def test_an_item_off_the_ground_has_no_place():
    found = item(DISK, side=11e6)
    assert found["geometry"] is None
    assert "bbox" not in found
    assert faults(found) == []
    assert pystac.Item.from_dict(found).geometry is None
    assert item(DISK, side=1e6)["bbox"][0] == pytest.approx(-79.5, abs=0.5)


def test_an_item_that_nobody_can_date_is_valid_and_read_without_a_date(tmp_path):
    found = item(taken=None)
    assert faults(found) == []
    assert pystac.Item.from_dict(found).datetime is None
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [found]}))
    (read,) = list_items(StacSource(items=(str(tmp_path / "items.json"),)), Search())
    assert read.datetime is None


def test_the_check_finds_faults():
    found = item()
    assert faults(found | {"properties": {"datetime": None}})
    assert faults(found | {"geometry": None})
    assert faults(found | {"properties": {"datetime": "yesterday"}})
