from __future__ import annotations

import errno
import json

import pyarrow.parquet as pq
import pytest

from rayjobs.errors import ConfigError, LabelError, StorageError
from rayjobs.labelling import job
from rayjobs.storage import open_store
from tests.unit.labels.small_set import TILES, publish_set


@pytest.fixture
def labels(tmp_path):
    """Runs `rayjobs labels` in this process."""
    config = tmp_path / "experiment.yaml"
    config.write_text(
        json.dumps(
            {
                "name": "small",
                "workspace": {"uri": f"file:{tmp_path}/workspace"},
                "rasters": {"sources": [{"kind": "files", "uris": [f"{tmp_path}/*.tif"]}]},
            }
        )
    )

    def run(action, *arguments):
        options, overrides = job.parser().parse_known_args([action, "--config", str(config), *map(str, arguments)])
        return job.run(options, overrides)

    return run


def test_labels_come_in_and_go_out(labels, tmp_path):
    publish_set(open_store(f"file:{tmp_path}/workspace"), "small")
    made = labels("create", "--taxonomy", "land", "--class", "field:f", "--class", "water")
    assert made == {"taxonomy": "land", "version": 1, "classes": ["field", "water"]}
    given = tmp_path / "given.csv"
    names = ["field", "water", "", "field"]
    given.write_text("tile_id,label\n" + "".join(f"{tile},{name}\n" for tile, name in zip(TILES, names, strict=False)))
    arguments = ("--taxonomy", "land", "--input", given, "--person", "anna")
    assert labels("import", *arguments, "--dry-run") == {"events": 4, "tiles_in_no_set": 0}
    assert labels("import", *arguments) == {"accepted": 4, "already": 0, "tiles_in_no_set": 0}
    assert labels("import", *arguments) == {"accepted": 0, "already": 4, "tiles_in_no_set": 0}
    assert labels("show") == {"land": 4}
    shown = labels("show", "--taxonomy", "land")
    assert (shown["classes"], shown["unsure"], shown["people"]) == ({"field": 2, "water": 1}, 1, {"anna": 4})
    for name in ("out.csv", "out.geojson", "out.parquet"):
        assert labels("export", "--taxonomy", "land", "--output", tmp_path / name)["tiles"] == 4
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 3
    features = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon"}
    assert labels("import", "--taxonomy", "land", "--input", tmp_path / "out.csv", "--person", "ben")["accepted"] == 4
    pictures = labels("export", "--taxonomy", "land", "--output", tmp_path / "out")["pictures"]
    assert pictures == {"field": 2, "unsure": 1, "water": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .*file: Not a directory"):
        labels("export", "--taxonomy", "land", "--output", tmp_path / "file")
    drawn = labels("export", "--taxonomy", "land", "--output", tmp_path / "triplets.parquet", "--triplets", 5)
    assert (drawn["triplets"], "tiles" in drawn) == (5, False)
    assert pq.read_table(tmp_path / "triplets.parquet").column_names == ["anchor_id", "positive_id", "negative_id"]


@pytest.mark.parametrize("other", [None, "other"])
def test_labels_of_tiles_that_no_set_knows_are_counted(labels, tmp_path, capsys, other):
    """They may be given before their set; any set of the workspace may know them."""
    store = open_store(f"file:{tmp_path}/workspace")
    labels("create", "--taxonomy", "land", "--class", "a", "--class", "b")
    there, absent = TILES[:3], ["e" * 20, "f" * 20]
    (tmp_path / "given.csv").write_text("tile_id,label\n" + "".join(f"{tile},{'ab'[tile > TILES[1]]}\n" for tile in there + absent))
    arguments = ("import", "--taxonomy", "land", "--input", tmp_path / "given.csv", "--person", "anna")
    assert labels(*arguments, "--dry-run") == {"events": 5, "tiles_in_no_set": 5}
    publish_set(store, other or "small")
    capsys.readouterr()
    assert labels(*arguments) == {"accepted": 5, "already": 0, "tiles_in_no_set": 2}
    assert f"2 labelled tiles are in no set of the workspace, such as {absent[0]}" in capsys.readouterr().out
    done = labels("export", "--taxonomy", "land", "--output", tmp_path / "out.csv")
    assert (done["tiles"], done["tiles_in_no_set"]) == (5, 2)
    done = labels("export", "--taxonomy", "land", "--output", tmp_path / "triplets.parquet", "--triplets", 50)
    assert (done["triplets"], done["tiles_in_no_set"]) == (50, 2)
    assert not {tile for column in pq.read_table(tmp_path / "triplets.parquet").columns for tile in column.to_pylist()} & set(absent)
    if other is None:
        done = labels("export", "--taxonomy", "land", "--output", tmp_path / "out")
        assert (sum(done["pictures"].values()), done["left_out"], done["tiles_in_no_set"]) == (3, 2, 2)


def test_labels_come_in_and_go_out_beside_a_set_that_cannot_be_read(labels, tmp_path, capsys):
    labels("create", "--taxonomy", "land", "--class", "a", "--class", "b")
    publish_set(open_store(f"file:{tmp_path}/workspace"), "small")
    (tmp_path / "workspace" / "sets" / "small" / "CURRENT").write_text("")
    (tmp_path / "given.csv").write_text(f"tile_id,label\n{TILES[0]},a\n")
    done = labels("import", "--taxonomy", "land", "--input", tmp_path / "given.csv", "--person", "anna")
    assert done == {"accepted": 1, "already": 0}
    assert "the sets cannot be read" in capsys.readouterr().out
    done = labels("export", "--taxonomy", "land", "--output", tmp_path / "out.csv")
    assert (done["tiles"], "tiles_in_no_set" in done) == (1, False)
    with pytest.raises(StorageError):
        labels("export", "--taxonomy", "land", "--output", tmp_path / "out.parquet", "--triplets", 1)


def test_a_workspace_without_taxonomies_says_how_to_make_one(labels, capsys):
    assert labels("show") == {}
    assert "no taxonomy yet; `rayjobs labels create` makes one" in capsys.readouterr().out


def test_a_class_is_renamed(labels, tmp_path):
    labels("create", "--taxonomy", "land", "--class", "positive", "--class", "negative")
    (tmp_path / "given.csv").write_text(f"tile_id,label\n{TILES[0]},positive\n")
    labels("import", "--taxonomy", "land", "--input", tmp_path / "given.csv", "--person", "anna")
    with pytest.raises(LabelError, match="--formerly NEW=positive"):
        labels("create", "--taxonomy", "land", "--class", "lake", "--class", "negative")
    made = labels("create", "--taxonomy", "land", "--class", "lake", "--class", "negative", "--formerly", "lake=positive")
    assert (made["version"], made["classes"]) == (2, ["lake", "negative"])
    assert labels("show", "--taxonomy", "land")["classes"] == {"lake": 1, "negative": 0}


def test_a_folder_of_somebody_else_is_refused_at_first(labels, tmp_path):
    publish_set(open_store(f"file:{tmp_path}/workspace"), "small")
    labels("create", "--taxonomy", "land", "--class", "a", "--class", "b")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    for how in ([], ["--dry-run"]):
        with pytest.raises(ConfigError, match=r"holds files already, and no _labels\.json"):
            labels("export", "--taxonomy", "land", "--output", tmp_path / "out", *how)
    assert labels("export", "--taxonomy", "land", "--output", tmp_path / "new", "--dry-run")["tiles"] == 0
    assert not (tmp_path / "new").exists()


def test_a_file_stays_until_the_next_is_whole(labels, tmp_path, monkeypatch):
    labels("create", "--taxonomy", "land", "--class", "a", "--class", "b")
    arguments = ("export", "--taxonomy", "land", "--output", tmp_path / "out.csv")
    (tmp_path / "real.csv").write_text("before")
    (tmp_path / "out.csv").symlink_to("real.csv")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(job.os, "fsync", full)
        with pytest.raises(ConfigError, match=r"--output .*/out\.csv: No space left"):
            labels(*arguments)
    assert (tmp_path / "out.csv").read_text() == "before"
    assert not list(tmp_path.glob(".*")), "nothing is left aside"
    labels(*arguments)
    assert (tmp_path / "real.csv").read_text().startswith("tile_id,label")
    assert (tmp_path / "out.csv").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create",), "needs --taxonomy"),
        (("import", "--taxonomy", "land"), "needs --input"),
        (("import", "--taxonomy", "land", "--person", "<b>", "--input", "absent.csv"), "absent.csv"),
        (("export", "--taxonomy", "land"), "needs --output"),
        (("export", "--taxonomy", "land", "--output", "x.txt"), "needs --output"),
        (("export", "--taxonomy", "land", "--output", "x", "--triplets", "5"), "--triplets is a table"),
        (("export", "--taxonomy", "land", "--output", "x.geojson", "--triplets", "5"), "--triplets is a table"),
        (("export", "--taxonomy", "land", "--output", "x.csv", "--triplets", "-5"), "--triplets -5: give 1 or more"),
        (("export", "--taxonomy", "land", "--output", "x.csv", "--triplets", "0"), "--triplets 0: give 1 or more"),
        (("create", "--taxonomy", "land", "--class", "c", "--class", "b", "--formerly", "a"), "--formerly 'a' must be NEW=OLD"),
        (("create", "--taxonomy", "land", "--class", "c", "--class", "b", "--formerly", "d=a"), "--formerly 'd=a' must be NEW=OLD"),
        (("export", "--taxonomy", "land", "--output", "/nowhere/x.csv"), "--output /nowhere/x.csv: No such file"),
    ],
)
def test_what_is_missing_is_said(labels, arguments, words):
    labels("create", "--taxonomy", "land", "--class", "a", "--class", "b")
    with pytest.raises(ConfigError, match=words):
        labels(*arguments)


def test_a_file_that_is_no_table_of_labels_is_refused(labels, tmp_path):
    labels("create", "--taxonomy", "land", "--class", "a", "--class", "b")
    for content, error in (
        ("tile,name\nx,a\n", ConfigError),
        ("", ConfigError),
        ("tile_id,label\nx\n", ConfigError),
        (f"tile_id,label\n{TILES[0]},a\nx,a\n", ConfigError),
        (f"tile_id,label\n{TILES[0].upper()}A,a\n", ConfigError),
        (f"tile_id,label\n{TILES[0]},a\n{TILES[1]},c\n", ConfigError),
        (f"tile_id,label\n{TILES[0]},Gew\u00e4sser\n".encode("latin-1"), ConfigError),
    ):
        (tmp_path / "given.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        for how in (["--dry-run"], []):
            with pytest.raises(error):
                labels("import", "--taxonomy", "land", "--input", tmp_path / "given.csv", "--person", "anna", *how)
    assert labels("show") == {"land": 0}


def test_a_file_is_taken_whole_or_not_at_all(labels, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_AT_ONCE", 2)
    labels("create", "--taxonomy", "land", "--class", "a", "--class", "b")
    (tmp_path / "given.csv").write_text("tile_id,label\n" + "".join(f"{tile},a\n" for tile in TILES[:5]) + f"{TILES[5]},c\n")
    with pytest.raises(ConfigError, match=r"/given\.csv, row 6: taxonomy 'land' has no class 'c'"):
        labels("import", "--taxonomy", "land", "--input", tmp_path / "given.csv", "--person", "anna")
    assert labels("show") == {"land": 0}
    (tmp_path / "given.csv").write_text(f"tile_id,label\n{TILES[0]},a\nfirst,a\n")
    with pytest.raises(ConfigError, match=r"/given\.csv, row 2: the tile_id is 'first'"):
        labels("import", "--taxonomy", "land", "--input", tmp_path / "given.csv", "--person", "anna")
