from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rayjobs.errors import ConfigError, LabelError
from rayjobs.labels import export
from rayjobs.labels.current import current_labels
from rayjobs.labels.export import as_csv, as_geojson, label_table, triplets, with_labels, write_image_folder
from rayjobs.storage import open_store
from tests.unit.labels.saying import said
from tests.unit.labels.small_set import TILES, publish_set

NAMES = ["field", "field", "water", None, "water", "field"]
CURRENT = current_labels([said("anna", tile, name) for tile, name in zip(TILES, NAMES, strict=True)])


@pytest.fixture
def source(tmp_path):
    return publish_set(open_store(f"file:{tmp_path}/workspace"))


def test_csv_has_a_line_per_tile():
    rows = list(csv.DictReader(io.StringIO(as_csv(CURRENT).decode())))
    assert [(row["tile_id"], row["label"] or None) for row in rows] == list(zip(TILES, NAMES, strict=True))
    assert {row["agreement"] for row in rows} == {"1.0"}


def test_geojson_has_a_feature_per_tile():
    ground = {"type": "Point", "coordinates": [1.0, 2.0]}
    features = json.loads(as_geojson(CURRENT, {TILES[0]: ground}))["features"]
    assert [feature["properties"]["label"] for feature in features] == NAMES
    assert [feature["geometry"] for feature in features] == [ground, *[None] * 5]


def test_an_image_folder_holds_copies(source, tmp_path):
    assert write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land") == {"field": 3, "unsure": 1, "water": 2}
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert found == {f"{name or 'unsure'}/{tile}.png" for tile, name in zip(TILES, NAMES, strict=True)}
    assert np.asarray(Image.open(tmp_path / "out" / "field" / f"{TILES[0]}.png")).shape == (8, 8, 3)
    assert source.damage() is None, "nothing is moved"
    changed = current_labels([said("anna", tile, "water") for tile in TILES])
    write_image_folder(changed, source, tmp_path / "out", taxonomy="land")
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*.png")) == ["water"] * 6


def test_what_was_undone_leaves_the_image_folder(source, tmp_path):
    write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land")
    (tmp_path / "out" / "field" / "mine.png").write_bytes(b"")
    write_image_folder({tile: CURRENT[tile] for tile in TILES[1:3]}, source, tmp_path / "out", taxonomy="land")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert found == {f"field/{TILES[1]}.png", f"water/{TILES[2]}.png", "field/mine.png"}


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"_export.json": '{"set": "land"}'}, "holds what `rayjobs export` wrote"),
        ({"_labels.json": '{"taxonomy": "water"}'}, r"holds other labels .*water.*choose another folder \(--output\), or empty"),
        ({"_labels.json": ""}, "holds other labels"),
        ({}, "holds files already, and no _labels.json"),
    ],
)
def test_what_others_wrote_into_a_folder_stays(source, tmp_path, held, words):
    """Their pictures are named as ours are."""
    there = {**held, f"pond/{TILES[0]}.png": "theirs", f"pond/{'f' * 20}.png": "theirs"}
    (tmp_path / "out" / "pond").mkdir(parents=True)
    for name, content in there.items():
        (tmp_path / "out" / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land")
    found = {path.relative_to(tmp_path / "out").as_posix(): path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == there


@pytest.mark.parametrize("name", ["link", ".link", "water"])
def test_links_are_not_followed_out_of_a_folder(source, tmp_path, name):
    write_image_folder({tile: CURRENT[tile] for tile in TILES[:2]}, source, tmp_path / "out", taxonomy="land")
    theirs = tmp_path / "elsewhere" / f"{'f' * 20}.png"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    (tmp_path / "out" / name).symlink_to("../elsewhere")
    with pytest.raises(ConfigError, match=rf"out/{name} is a link to a folder"):
        write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land")
    assert [path.read_text() for path in theirs.parent.iterdir()] == ["theirs"]


def test_a_picture_takes_the_place_of_a_link(source, tmp_path):
    write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land")
    (tmp_path / "theirs").write_text("theirs")
    picture = tmp_path / "out" / "field" / f"{TILES[0]}.png"
    picture.unlink()
    picture.symlink_to(tmp_path / "theirs")
    write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not picture.is_symlink()


def test_an_export_that_was_ended_goes_on(source, tmp_path, monkeypatch):
    def ended(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(export, "png", ended)
        with pytest.raises(KeyboardInterrupt):
            write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land")
    assert json.loads((tmp_path / "out" / "_labels.json").read_text()) == {"taxonomy": "land"}
    assert write_image_folder(CURRENT, source, tmp_path / "out", taxonomy="land") == {"field": 3, "unsure": 1, "water": 2}


def test_tiles_take_the_labels_of_people():
    tiles = pa.table({"tile_id": [*TILES[::-1], "f" * 20], "label": pa.nulls(7, pa.string()), "row": list(range(7))})
    found = with_labels(tiles, label_table(CURRENT))
    assert found["label"].to_pylist() == [*NAMES[::-1], None]
    assert found["row"] == tiles["row"]


def test_triplets_are_of_two_classes():
    labels = label_table(CURRENT)
    known = dict(zip(labels["tile_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    drawn = triplets(labels, 200, seed=3).to_pylist()
    assert triplets(labels, 200, seed=3).to_pylist() == drawn
    for row in drawn:
        assert row["anchor_id"] != row["positive_id"]
        assert known[row["anchor_id"]] == known[row["positive_id"]] != known[row["negative_id"]]
    assert {known[row["anchor_id"]] for row in drawn} == {"field", "water"}
    assert len({row["anchor_id"] for row in drawn}) == 5


@pytest.mark.parametrize("names", [["field", "field"], ["field", "water"], []])
def test_triplets_need_two_classes_and_a_pair(names):
    labels = pa.table({"tile_id": pa.array(TILES[: len(names)], pa.string()), "label": pa.array(names, pa.string())})
    with pytest.raises(LabelError, match="make no triplet"):
        triplets(labels, 1)
