"""The life of an index on a cluster of three nodes and a real S3 server: built, appended to, deleted from, merged, taken back."""

from __future__ import annotations

import json
import os
import secrets

import pytest

from rayjobs.index.versions import newest
from rayjobs.retrieval.search import Searcher
from rayjobs.retrieval.shards import load_shards
from rayjobs.storage import Artefact, open_store
from tests.three_nodes import options, write_scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BRIEF = ["--train.epochs", "1", "--mining.every", "0", "--index.kind", "ivf_flat", "--index.rows_per_segment", "600"]


@pytest.fixture(scope="module")
def workspace(s3_server):
    os.environ.update(s3_server.environment)
    return s3_server.bucket(f"index-{secrets.token_hex(4)}")


def done(command):
    assert command.code == 0, command.err
    return command.result


def opened(published, cache):
    return Searcher(load_shards(published.version, published.manifest, cache), tombstones=published.tombstones)


def test_an_index_lives(cluster, config, workspace, tmp_path):
    index = Artefact(open_store(workspace), "indexes", "made-up")
    write_scene(tmp_path / "one.tif")
    source = ["--rasters.sources", json.dumps([{"kind": "files", "uris": [f"{tmp_path}/*.tif"]}])]
    given = options(config, workspace, *source, *BRIEF)
    for verb in ("sample", "train"):
        done(cluster.run(verb, *given))
    built = done(cluster.run("index", *given))
    assert (built["kind"], built["fresh"], built["rows"]) == ("ivf_flat", True, 1024)
    assert not done(cluster.run("index", *given))["fresh"]

    write_scene(tmp_path / "two.tif", left=500000)
    done(cluster.run("sample", *given))
    plan = done(cluster.run("index", "append", *given, "--dry-run"))
    assert (plan["tiles"], plan["held_already"]) == (1024, 1024)
    appended = done(cluster.run("index", "append", *given))
    assert (appended["rows"], appended["told"]["appended"]) == (2048, 1024)
    assert not done(cluster.run("index", "append", *given))["fresh"]

    deleted = done(cluster.run("index", "delete", *given, "--scene", "one"))
    assert (deleted["rows"], deleted["deleted"]) == (1024, 1024)
    before = opened(newest(index), tmp_path / "cache")
    compacted = done(cluster.run("index", "compact", *given))
    assert (compacted["rows"], compacted["deleted"]) == (1024, 0)
    after = opened(newest(index), tmp_path / "cache")
    for row in range(0, 1024, 100):
        tile = after.take([row])["tile_id"][0].as_py()
        answers = [one.search(one.vector_of(tile), 5, exact=True) for one in (before, after)]
        ids = [one.take(hits.rows)["tile_id"].to_pylist() for one, hits in zip((before, after), answers, strict=True)]
        assert ids[0] == ids[1]
        assert answers[0].scores.tolist() == answers[1].scores.tolist()

    back = done(cluster.run("index", "rollback", *given, "--to", built["version"]))
    assert (back["version"], back["rows"]) == (built["version"], 1024)
    listed = done(cluster.run("index", "list", *given))
    assert [entry["action"] for entry in listed["versions"]] == ["build", "append", "delete", "compact"]
    assert [entry["current"] for entry in listed["versions"]] == [True, False, False, False]
