"""The life of an index on a cluster of three nodes and a real S3 server: built, appended to, deleted from, merged, taken back."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest
import rasterio
import rasterio.windows

from rayjobs.index.versions import newest
from rayjobs.retrieval.search import open_searcher
from rayjobs.serve.answers import Answers
from rayjobs.serve.schema import SearchRequest
from rayjobs.storage import Artefact, open_store
from tests.faults.running import Running
from tests.three_nodes import free_port, options, write_scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHARDS = ["--serve.shards", "2", "--serve.shard_cpus", "0", "--serve.watch_s", "0"]
BRIEF = ["--train.epochs", "1", "--mining.every", "0", "--index.kind", "ivf_flat", "--index.rows_per_segment", "600"]


@pytest.fixture(scope="module")
def workspace(s3_server):
    os.environ.update(s3_server.environment)
    return s3_server.bucket(f"index-{secrets.token_hex(4)}")


def done(command):
    assert command.code == 0, command.err
    return command.result


def opened(published, cache):
    return open_searcher(published.version, published.manifest, cache)


@contextlib.contextmanager
def served(cluster, options):
    """Run `rayjobs serve` until the block ends."""
    port = free_port()
    service = Running(cluster.start("serve", *options, "--serve.port", str(port)))
    try:
        service.wait_for("ready: ", seconds=300)
        yield f"http://127.0.0.1:{port}", service
        service.signal(signal.SIGTERM)
        assert service.ended(120).code == 0, service.err
    finally:
        service.kill()


def taken_up(url, service, version):
    """Wait until the service answers from a version."""
    assert httpx.post(f"{url}/v1/refresh", timeout=120).json()["index_version"] == version
    service.wait_until(lambda: httpx.get(f"{url}/v1/info", timeout=60).json()["index_version"] == version, "the swap")


def assert_thumbnail_is_of_the_scene(url, scene, folder):
    """The picture of a tile shows the scene's pixels, stretched: what is darker here is darker there."""
    asked = {"positives": [{"embedding": [1.0] * 8}], "limit": 1, "scenes": [scene]}
    [hit] = httpx.post(f"{url}/v1/search", json=asked, timeout=60).json()["features"]
    shown = PIL.Image.open(io.BytesIO(httpx.get(f"{url}/v1/tiles/{hit['id']}/thumbnail.png", timeout=60).content))
    said = hit["properties"]["window"]
    window = rasterio.windows.Window(said["col"], said["row"], said["width"], said["height"])
    with rasterio.open(folder / f"{scene}.tif") as file:
        pixels = file.read(window=window).astype(float)
    small = np.asarray(shown.convert("RGB").resize((said["width"], said["height"]), PIL.Image.Resampling.BOX), float).transpose(2, 0, 1)
    assert np.corrcoef(pixels.ravel(), small.ravel())[0, 1] > 0.9


def assert_answers_as_one_process(url, published, cache):
    """Searches of each sort have the very answers that a process has which holds all segments."""
    answers = Answers(published.version, cache=cache, max_limit=1000)
    liked, other = (answers.searcher.take([row])["tile_id"][0].as_py() for row in answers.searcher.all.rows[[5, -5]].tolist())
    west, south, east, north = published.manifest.bounds
    for asked in (
        {"limit": 50},
        {"limit": 7, "offset": 3, "exact": True},
        {"limit": 20, "bbox": [west, south, east, (south + north) / 2]},
        {"limit": 10, "spread_m": 700},
        {"limit": 10, "negatives": [{"tile_id": other}], "method": "linear"},
    ):
        request = {"positives": [{"tile_id": liked}], **asked}
        wanted = SearchRequest.model_validate(request)
        vector, examples = answers.query_vector(wanted.positives, wanted.negatives, method=wanted.method)
        found = httpx.post(f"{url}/v1/search", json=request, timeout=60)
        assert found.status_code == 200, found.text
        assert found.json() == json.loads(answers.search(vector, wanted, without=examples).geojson())
        assert len(found.json()["features"]) == asked["limit"]


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

    with served(cluster, [*given, *SHARDS]) as (url, service):
        assert len([pid for pid in cluster.processes("ray::ServeReplica:") if "Shard" in Path(f"/proc/{pid}/cmdline").read_text()]) == 2
        for scene in ("one", "two"):  # each in a set of its own
            assert_thumbnail_is_of_the_scene(url, scene, tmp_path)
        deleted = done(cluster.run("index", "delete", *given, "--scene", "one"))
        assert (deleted["rows"], deleted["deleted"]) == (1024, 1024)
        before = opened(newest(index), tmp_path / "cache")
        taken_up(url, service, deleted["version"])
        assert_answers_as_one_process(url, newest(index), tmp_path / "cache")
        compacted = done(cluster.run("index", "compact", *given))
        assert (compacted["rows"], compacted["deleted"]) == (1024, 0)
        taken_up(url, service, compacted["version"])
        assert_answers_as_one_process(url, newest(index), tmp_path / "cache")
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
    swept = done(cluster.run("gc", *given, "--older-than", "0"))
    assert swept["removed"] == 2
    assert swept["bytes"] > 0
    listed = done(cluster.run("index", "list", *given))
    # the current one, and the newest, which was current before
    assert [entry["action"] for entry in listed["versions"]] == ["build", "compact"]
    assert [newest(index).version.damage(), index.at(compacted["version"]).damage()] == [None, None]
