"""What other tools read of an index: valid STAC, the fields of `emb`, and vectors that can be read by what it says."""

from __future__ import annotations

import datetime
import hashlib
import json
import posixpath

import numpy as np
import pystac
import pytest
from jsonschema import Draft7Validator
from pystac.extensions.mlm import MLMExtension
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

from rayjobs.config import build
from rayjobs.index.stac import EMB, chip_layout
from rayjobs.models.spec import ModelSpec
from rayjobs.tiles.section import TilesSection
from tests.unit.index.index_made import DIM, Made, code_of, tile_id, vector_of

CORE = "https://schemas.stacspec.org/v1.1.0/{kind}-spec/json-schema/{kind}.json"


@pytest.fixture
def made(tmp_path):
    index = Made(f"file:{tmp_path}/workspace", kind="sq8")
    index.build(range(100))
    index.append(range(120))
    return index


@pytest.fixture
def documents(made):
    version = made.current().version
    names = [entry.name for entry in version.files if entry.name.startswith("stac/")]
    return {name.removeprefix("stac/").removesuffix(".json"): json.loads(version.read(name)) for name in names}


def faults(document):
    """What the core schemas that pystac bundles say of a document."""
    cache = get_local_schema_cache()
    registry = Registry().with_resources([(uri, Resource.from_contents(schema)) for uri, schema in cache.items()])
    kind = "collection" if document["type"] == "Collection" else "item"
    return [fault.message for fault in Draft7Validator(cache[CORE.format(kind=kind)], registry=registry).iter_errors(document)]


def test_every_document_is_valid_stac(documents):
    assert set(documents) == {"collection", "encoder", "segment-00000", "segment-00001", "segment-00002"}
    for name, document in documents.items():
        assert faults(document) == [], name
        assert pystac.read_dict(document).to_dict(include_self_link=False, transform_hrefs=False)["id"] == document["id"]


def test_the_check_finds_faults(documents):
    del documents["collection"]["license"]
    documents["encoder"]["properties"]["datetime"] = "yesterday"
    assert faults(documents["collection"])
    assert faults(documents["encoder"])


def test_the_collection_has_what_the_proposal_asks_for(made, documents):
    collection = documents["collection"]
    assert EMB in collection["stac_extensions"]
    assert (collection["emb:type"], collection["emb:dimensions"], collection["data_type"]) == ("chip", DIM, "float32")
    assert (collection["gsd"], collection["emb:temporal_resolution"]) == (10.0, "single_acquisition")
    links = {link["rel"]: link["href"] for link in collection["links"]}
    assert links["emb:model"] == "./encoder.json"
    assert links["emb:source-data"].endswith("sets/made/s1/scenes.parquet")
    here = f"{made.current().version.prefix}stac"
    assert posixpath.normpath(posixpath.join(here, links["emb:source-data"])) == "sets/made/s1/scenes.parquet"
    assert sorted(link["href"] for link in collection["links"] if link["rel"] == "item") == [
        f"./segment-{number:05d}.json" for number in range(3)
    ]
    assert collection["extent"]["spatial"]["bbox"] == [[0.0, 10.0, 59.9, 10.4]]
    assert collection["extent"]["temporal"]["interval"] == [["2021-01-01T00:00:00Z", "2021-04-30T00:00:00Z"]]
    assert "120 tiles" in collection["description"]


def test_vectors_can_be_read_by_what_an_item_says(made, documents):
    version = made.current().version
    item = documents["segment-00001"]
    asset = item["assets"]["embeddings"]
    key = posixpath.normpath(posixpath.join(version.prefix, "stac", asset["href"]))
    data = made.store.read(key)
    assert len(data) == asset["file:size"]
    assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    vectors = np.frombuffer(data, "<f4", count=20 * DIM, offset=asset["file:header_size"]).reshape(-1, DIM)
    ids = sorted(map(tile_id, range(80, 100)))
    by_id = {tile_id(number): vector_of(number) for number in range(100)}
    assert np.array_equal(vectors, np.stack([by_id[name] for name in ids]))
    assert item["properties"]["emb:quantization"] == {"method": "none", "original_dtype": "float32"}
    assert item["properties"]["start_datetime"] == "2021-03-22T00:00:00Z"
    assert set(item["assets"]) == {"embeddings", "tiles", "index"}
    assert not [name for asset in item["assets"].values() for name in asset if name.startswith("emb:")]


def test_codes_can_be_read_by_what_an_item_says(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSpec, "gives_codes", True)
    made = Made(f"file:{tmp_path}/workspace", kind="hamming")
    version = made.build(range(50)).version
    item, collection = (json.loads(version.read(f"stac/{name}.json")) for name in ("segment-00000", "collection"))
    asset = item["assets"]["embeddings"]
    data = made.store.read(posixpath.normpath(posixpath.join(version.prefix, "stac", asset["href"])))
    packed = np.frombuffer(data, np.uint8, count=50 * DIM // 8, offset=asset["file:header_size"]).reshape(50, -1)
    vectors = np.where(np.unpackbits(packed, axis=1), 1 / np.sqrt(DIM), -1 / np.sqrt(DIM))
    by_id = {tile_id(number): code_of(number) for number in range(50)}
    np.testing.assert_array_equal(vectors, np.stack([by_id[name] for name in sorted(by_id)]))
    assert "50 codes of 16 bits" in asset["description"]
    assert item["properties"]["emb:quantization"] == {"method": "binary", "original_dtype": "float32"}
    assert (collection["emb:dimensions"], collection["data_type"]) == (DIM, "uint8")


def links(document):
    """Where a document leads to."""
    assets = document["assets"].values() if "assets" in document else ()
    return [entry["href"] for entry in (*document["links"], *assets)]


def test_every_relative_link_leads_to_a_file_whatever_was_done(tmp_path):
    made = Made(f"file:{tmp_path}/workspace", kind="sq8")
    made.store.write("sets/made/s1/scenes.parquet", b"of the set")
    actions = {
        "build": lambda: made.build(range(100)),
        "append": lambda: made.append(range(120)),
        "delete": lambda: made.delete(range(10)),
        "compact": made.compact,
    }
    for action, act in actions.items():
        version = act().version
        names = [entry.name for entry in version.files if entry.name.startswith("stac/")]
        for name in names:
            for link in links(json.loads(version.read(name))):
                key = posixpath.normpath(posixpath.join(version.prefix, "stac", link))
                there = {posixpath.normpath(f"{version.prefix}{other}") for other in names}
                assert key in there or made.store.size(key), (action, name, link)
        parent = made.current().version.manifest["parents"]["embeddings"]
        assert parent.startswith("made/" if action == "build" else "made-appended/"), action


def test_items_are_the_same_in_a_version_that_takes_the_segment_over(made, documents):
    later = json.loads(made.delete([1]).version.read("stac/segment-00000.json"))
    assert later["assets"] == documents["segment-00000"]["assets"]
    assert later["bbox"] == documents["segment-00000"]["bbox"]


def test_the_encoder_is_told_by_mlm(documents):
    item = pystac.Item.from_dict(documents["encoder"])
    told = MLMExtension.ext(item)
    assert told.mlm_name.startswith("encoder-")
    assert [str(task) for task in told.tasks] == ["similarity-search"]
    assert told.framework == "PyTorch"
    [given], [output] = told.input, told.output
    assert given.bands == ["a", "b", "c", "d"]
    assert given.properties["value_scaling"][0] == {"type": "z-score", "mean": 0.0, "stddev": 1.0}
    assert output.result.shape == [-1, DIM]
    assert item.assets["weights"].roles == ["mlm:model"]
    assert item.geometry is None


def test_tiles_without_places_and_dates_are_valid_too(made):
    import dataclasses

    from rayjobs.index.stac import documents

    published = made.current()
    manifest = dataclasses.replace(
        published.manifest,
        segments=tuple(dataclasses.replace(entry, bounds=None, dates=None) for entry in published.manifest.segments),
    )
    draft = made.index.draft("other")
    draft.adopt(published.version, [*published.shared(), *published.files_of(manifest.segments)])
    found = documents(draft, manifest, published.spec, published.version.manifest["parents"], made.experiment.tiles)
    for data in found.values():
        assert faults(json.loads(data)) == []
    item = json.loads(found["stac/segment-00000.json"])
    assert (item["geometry"], item["properties"]["rayjobs:dated"]) == (None, False)
    published_at = datetime.datetime.fromisoformat(item["properties"]["datetime"])
    assert abs(published_at - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)


def test_a_box_over_the_antimeridian_is_cut(tmp_path):
    published = Made(f"file:{tmp_path}/workspace").build(range(320, 400))
    item = json.loads(published.version.read("stac/segment-00000.json"))
    assert faults(item) == []
    assert item["bbox"][0] > item["bbox"][2]
    assert item["geometry"]["type"] == "MultiPolygon"


@pytest.mark.parametrize(
    ("tiles", "layout"),
    [
        ({"sampler": {"kind": "grid"}, "size": 64}, {"layout_type": "regular_grid", "chip_size": [64, 64], "stride": [64, 64]}),
        (
            {"sampler": {"kind": "grid", "stride": 32}, "size": 64},
            {"layout_type": "regular_grid", "chip_size": [64, 64], "stride": [32, 32]},
        ),
        ({"sampler": {"kind": "random"}, "size": 64}, {"layout_type": "variable_grid", "chip_size": [64, 64]}),
        ({"size": None}, {"layout_type": "variable_grid"}),
    ],
    ids=["grid", "overlapping", "random", "pictures"],
)
def test_how_tiles_were_chosen_is_told(tiles, layout):
    assert chip_layout(build(TilesSection, tiles)) == layout
