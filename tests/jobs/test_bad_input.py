"""What people get wrong: one line that names the item and the remedy, an honest exit code, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import secrets

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from rayjobs.storage import Artefact, open_store
from tests.three_nodes import options, write_scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def workspace(s3_server):
    os.environ.update(s3_server.environment)
    return s3_server.bucket(f"bad-{secrets.token_hex(4)}")


def complaint(done, verb, code):
    """The one line in which a verb says what is wrong."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert not done.out.strip()
    last = done.err.strip().splitlines()[-1]
    assert last.startswith(f"rayjobs {verb}: "), done.err
    return last


def files(*uris, **more):
    return ["--rasters.sources", json.dumps([{"kind": "files", "uris": [str(uri) for uri in uris], **more}])]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tiles.sice", "24"], 2, ["tiles.sice", "tiles.size"]),
        (["--rasters.bands", "[b9]"], 1, ["b9", "red"]),
        (files("s3://no-such-bucket-of-ours/*.tif"), 1, ["no-such-bucket-of-ours"]),
        (["--workspace.uri", "s3://no-such-bucket-of-ours/workspace"], 1, ["no-such-bucket-of-ours"]),
        (files("/nowhere/*.tif"), 1, ["/nowhere/*.tif"]),
    ],
    ids=["unknown key", "missing band", "missing bucket of imagery", "missing bucket of the workspace", "no file"],
)
def test_what_is_refused_before_anything_is_read(cluster, config, workspace, arguments, code, words):
    line = complaint(cluster.run("sample", *options(config, workspace, "--name", "refused", *arguments)), "sample", code)
    assert all(word in line for word in words), line
    assert Artefact(open_store(workspace), "sets", "refused").current() is None


def test_an_unknown_key_in_the_file(cluster, config, workspace, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(config.read_text().replace('"tiles"', '"tile"'))
    line = complaint(cluster.run("sample", *options(wrong, workspace)), "sample", 2)
    assert "tile" in line
    assert "tiles" in line


def test_wrong_credentials(cluster, config, workspace):
    done = cluster.run("sample", *options(config, workspace), AWS_SECRET_ACCESS_KEY="wrong")
    line = complaint(done, "sample", 1)
    assert workspace.removeprefix("s3://").partition("/")[0] in line
    assert "AWS_" in line


def test_a_label_raster_elsewhere(cluster, config, workspace, tmp_path):
    labels = tmp_path / "labels.tif"
    grid = {"crs": "EPSG:32612", "transform": rasterio.Affine(10, 0, 900000, 0, -10, 4100000), "width": 64, "height": 64}
    with rasterio.open(labels, "w", driver="GTiff", dtype="uint8", count=1, **grid) as file:
        file.write(np.ones((1, 64, 64), np.uint8))
    done = cluster.run(
        "sample",
        *options(config, workspace, "--name", "unlabelled", "--rasters.label_map", json.dumps({"uri": str(labels), "classes": {1: "one"}})),
    )
    assert str(labels) in complaint(done, "sample", 1)
    assert Artefact(open_store(workspace), "sets", "unlabelled").current() is None


def test_no_tile_is_valid_enough(cluster, config, workspace, tmp_path):
    scene = write_scene(tmp_path / "empty.tif", nodata=0, valid_rows=8)
    done = cluster.run("sample", *options(config, workspace, "--name", "empty", "--tiles.min_valid_fraction", "0.9", *files(scene)))
    line = complaint(done, "sample", 1)
    assert "best valid_fraction seen is 0.500" in line
    assert "tiles.min_valid_fraction" in line
    assert Artefact(open_store(workspace), "sets", "empty").current() is None


def test_a_truncated_file_among_good_ones(cluster, config, workspace, tmp_path):
    """Its header is whole, so that only reading the pixels finds out; what lies before the cut is sampled, and all once it is repaired."""
    write_scene(tmp_path / "good.tif")
    broken = write_scene(tmp_path / "broken.tif", left=500000)
    with broken.open("r+b") as file:
        file.truncate(broken.stat().st_size * 9 // 10)
    sources = files(tmp_path / "*.tif")
    done = cluster.run("sample", *options(config, workspace, "--name", "truncated", "--rasters.max_bad_fraction", "0.2", *sources))
    assert done.code == 0, done.err
    counts = done.result["counts"]
    assert 0 < counts["unreadable"] < counts["kept"]
    assert counts["kept"] + counts["unreadable"] == counts["planned"]
    version = Artefact(open_store(workspace), "sets", "truncated").current()
    quarantined = pq.read_table(io.BytesIO(version.read("quarantine.parquet"))).to_pylist()
    assert len(quarantined) == counts["unreadable"]
    assert all("broken.tif" in row["reason"] for row in quarantined)
    strict = cluster.run("sample", *options(config, workspace, "--name", "strict", "--rasters.max_bad_fraction", "0.01", *sources))
    line = complaint(strict, "sample", 1)
    assert "rasters.max_bad_fraction" in line
    assert "broken.tif" in line
    assert Artefact(open_store(workspace), "sets", "strict").current() is None

    write_scene(tmp_path / "broken.tif", left=500000)
    repaired = cluster.run("sample", *options(config, workspace, "--name", "truncated", "--rasters.max_bad_fraction", "0.01", *sources))
    assert repaired.code == 0, repaired.err
    assert repaired.result["fresh"] is True
    assert repaired.result["version"] != done.result["version"]
    assert repaired.result["counts"]["unreadable"] == 0
    assert repaired.result["counts"]["kept"] == counts["planned"]
    assert version.read("quarantine.parquet"), "the version with holes stays as it was"
