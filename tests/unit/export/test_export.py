"""A set as other programs read it: image folders, Parquet, and TFRecords that TensorBoard's own reader takes apart."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import yaml
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from rayjobs.errors import ConfigError
from rayjobs.export import job
from rayjobs.export.examples import Example, example
from rayjobs.export.write import class_folder
from rayjobs.storage import open_store
from rayjobs.tiles import chips
from tests.unit.rasters.rasters_made import noise
from tests.unit.sample.conftest import experiment, sample  # noqa: F401  fixtures


@pytest.fixture
def exported(sample, tmp_path, monkeypatch, capfd):  # noqa: F811  the fixture
    """Sample a folder of pictures of two classes, and export it."""
    for number in range(6):
        folder = tmp_path / "pictures" / ("pond", "field")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise(16, 16, 3, seed=number)).save(folder / f"{number}.png")
    done = sample({"kind": "images", "root": str(tmp_path / "pictures")})
    path = tmp_path / "experiment.yaml"
    raw = {"name": "made-up", "workspace": {"uri": str(tmp_path / "workspace")}, "rasters": {"sources": [{"kind": "images", "root": "x"}]}}
    path.write_text(yaml.safe_dump(raw))
    monkeypatch.setattr(job, "joined", lambda *_, **__: contextlib.nullcontext())
    shards = [done.version.read(file.name) for file in done.version.files if file.name.startswith("chips/")]
    pixels = {chip.tile_id: chip.pixels for shard in shards for chip in chips.read_chips(shard)}
    tiles = {row["tile_id"]: row for row in done.tiles}

    def run(*arguments):
        capfd.readouterr()
        code = job.main(["--config", str(path), "--json", *arguments])
        out = capfd.readouterr().out.strip()
        return code, json.loads(out.splitlines()[-1]) if out else None

    return run, pixels, tiles


def test_an_image_folder(exported):
    run, pixels, tiles = exported
    code, result = run()
    assert (code, result["tiles"], result["files"]) == (0, 6, 6)
    found = sorted(Path(result["to"]).rglob("*.png"))
    assert {path.parent.name for path in found} == {"pond", "field"}
    for path in found:
        assert tiles[path.stem]["label"] == path.parent.name
        np.testing.assert_array_equal(np.moveaxis(np.asarray(PIL.Image.open(path)), -1, 0), pixels[path.stem])


def test_parquet(exported, tmp_path):
    run, pixels, tiles = exported
    code, result = run("--form", "parquet", "--to", str(tmp_path / "out"), "--split", "train")
    assert (code, result["to"]) == (0, str(tmp_path / "out"))
    rows = [row for path in (tmp_path / "out").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["tile_id"] for row in rows} == set(pixels)
    for row in rows:
        shape = row["bands"], row["height"], row["width"]
        np.testing.assert_array_equal(np.frombuffer(row["pixels"], row["dtype"]).reshape(shape), pixels[row["tile_id"]])
        assert (row["label"], row["west"]) == (tiles[row["tile_id"]]["label"], None)


def test_tfrecords(exported, tmp_path):
    run, pixels, tiles = exported
    assert run("--form", "tfrecord", "--to", str(tmp_path / "out"))[0] == 0
    found = {}
    for path in (tmp_path / "out").glob("*.tfrecord"):
        reader = PyRecordReader_New(str(path))
        with contextlib.suppress(OutOfRangeError):
            while True:
                reader.GetNext()  # compares the sums of each record
                feature = Example.FromString(reader.record()).features.feature
                found[feature["tile_id"].bytes_list.value[0].decode()] = feature
    assert set(found) == set(pixels)
    for tile_id, feature in found.items():
        assert feature["label"].bytes_list.value[0].decode() == tiles[tile_id]["label"]
        assert feature["width"].int64_list.value[0] == 16
        assert feature["pixels"].bytes_list.value[0] == pixels[tile_id].tobytes()
        assert feature["date"].WhichOneof("kind") is None
        assert feature["west"].WhichOneof("kind") is None, "or a default that is a number is refused"


def test_an_example_byte_by_byte():
    """By hand, by the wire format: field 1 of Example, of Features, then entries of key and value."""
    entry = b"\x0a\x01a" + b"\x12\x05" + b"\x1a\x03" + b"\x0a\x01\x07"
    assert example({"a": 7}) == b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry
    entry = b"\x0a\x01b" + b"\x12\x06" + b"\x0a\x04" + b"\x0a\x02xy"
    assert example({"b": "xy"}) == b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry


def test_what_is_not_known_is_of_no_kind():
    """TensorFlow's parser takes it with a default of any type; a list of bytes it refuses, where numbers are wanted."""
    entry = b"\x0a\x01w" + b"\x12\x00"
    assert example({"w": None}) == b"\x0a" + bytes([len(entry) + 2]) + b"\x0a" + bytes([len(entry)]) + entry


def test_a_split_without_tiles_and_a_dry_run(exported):
    run, *_ = exported
    assert run("--split", "val") == (1, None)
    code, plan = run("--dry-run", "--form", "tfrecord")
    assert (code, plan["tiles"]) == (0, 6)
    assert plan["chip_bytes"] == 6 * 16 * 16 * 3
    assert not Path(plan["to"]).exists()


def test_a_folder_holds_one_export(exported, tmp_path, capfd):
    run, *_ = exported
    (_, everything), (_, trained) = run("--form", "parquet"), run("--form", "parquet", "--split", "train")
    assert [Path(result["to"]).name for result in (everything, trained)] == ["all", "train"]
    assert pq.read_table(trained["to"]).num_rows == 6, "the note is passed over"
    there = ["--to", str(tmp_path / "out"), "--split", "train"]
    assert [run(*there)[0] for _ in range(2)] == [0, 0]
    written = sorted((tmp_path / "out").rglob("*"))
    for other in (["--to", there[1]], [*there, "--form", "parquet"], [*there, "--dry-run", "--form", "tfrecord"]):
        assert run(*other)[0] == 2
    assert sorted((tmp_path / "out").rglob("*")) == written
    note = json.loads((tmp_path / "out" / "_export.json").read_text())
    assert (note["split"], note["form"], note["tiles"], note["files"]) == ("train", "imagefolder", 6, 6)
    (tmp_path / "out" / "_export.json").unlink()
    assert run(*there)[0] == 2


def test_a_file_in_place_of_the_folder_is_said_to_be_that_of_the_option(exported, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match=r"/out is a file; choose another folder \(--to\), or move the file"):
        open_store(str(tmp_path / "out")).check("folder (--to)")
    assert exported[0]("--to", str(tmp_path / "out"))[0] == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_an_export_that_was_ended_does_not_look_whole(exported, tmp_path, monkeypatch):
    run, *_ = exported
    there = ["--to", str(tmp_path / "out")]
    with monkeypatch.context() as patched:
        patched.setattr(job, "export_shard", lambda *_, **__: 1 / 0)
        assert run(*there)[0] != 0
    note = tmp_path / "out" / "_export.json"
    assert "tiles" not in json.loads(note.read_text())
    assert [run(*there)[0] for _ in range(2)] == [0, 0]
    assert json.loads(note.read_text())["tiles"] == 6


def test_each_class_has_one_folder_of_its_own():
    names = [
        "water",
        "Wald & Wiese",
        "Trees/Shrub",
        "Trees%2FShrub",
        "..",
        ".",
        "a.",
        "a",
        "a\\b",
        "C:",
        "Gew\u00e4sser",
        "unlabelled",
        "a\n",
        "CON",
        "nul",
        "Aux.tar.gz",
        "com\u00b9",
        "LPT1 .txt",
        "con.\tx",
        "Unlabelled",
        "%43ON",
        "console",
        "CON1",
        "w" * 255,
        "w" * 256,
        "w" * 256 + "a",
        "\u00e4" * 200,
        "*" * 100,
    ]
    folders = [class_folder(name) for name in [*names, None]]
    assert len(set(folders)) == len(folders)
    assert folders[:5] == ["water", "Wald & Wiese", "Trees%2FShrub", "Trees%252FShrub", "%2E%2E"]
    assert all("/" not in folder and folder.strip(". ") == folder for folder in folders)
    assert class_folder("Gew\u00e4sser") == "Gew\u00e4sser"
    assert [class_folder(name) for name in ("CON", "nul", "Aux.tar.gz", "con.\tx")] == ["%43ON", "%6Eul", "%41ux.tar.gz", "%63on.%09x"]
    assert [class_folder(name) for name in ("console", "CON1", "w" * 255)] == ["console", "CON1", "w" * 255]
    assert max(len(folder.encode()) for folder in folders) == 255
