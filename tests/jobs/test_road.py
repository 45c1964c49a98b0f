"""From rasters in a bucket to an answer over HTTP, on a cluster of three nodes, by the commands that people type."""

from __future__ import annotations

import json
import os
import signal
import time
import zlib

import httpx
import numpy as np
import pytest
import rasterio
import rasterio.windows

from rayjobs.embed.job import read_embeddings
from rayjobs.storage import Artefact, open_store
from tests.faults.running import Running
from tests.three_nodes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FAST = ["--train.epochs", "2", "--train.steps_per_epoch", "3", "--train.batch_size", "32", "--mining.every", "1", "--mining.first", "1"]

SWEEP = [
    "--tune.space", "{loss: [{kind: triplet, margin: {uniform: [0.1, 0.5]}}, {kind: ntxent}], model.dim: [32, 64]}",
    "--tune.search", "optuna", "--tune.trials", "2", "--tune.scheduler", "{kind: asha}", "--tune.final_seeds", "1",
    "--train.num_workers", "2", "--tracking.model", "road",
]  # fmt: skip
"""Two trials of two workers each; the better one is registered, and its values are trained anew."""


@pytest.fixture(scope="module")
def zion(data, s3_server, cluster):
    """The Zion scene and its land cover in a bucket, and the options that point the shipped configuration there."""
    os.environ.update(s3_server.environment)
    bucket = s3_server.bucket("zion-road")
    for path in data("zion_north").glob("*.tif"):
        s3_server.upload(path, f"{bucket}/imagery/{path.name}")
    sources = [{"kind": "files", "uris": [f"{bucket}/imagery/landsat_b*.tif"], "pattern": r"landsat_(?P<band>b\d)\.tif$", "name": "zion"}]
    return [
        "--config", "configs/zion-landcover.yaml", "--json", "--workspace.uri", f"{bucket}/workspace",
        "--rasters.sources", json.dumps(sources), "--rasters.label_map.uri", f"{bucket}/imagery/nlcd2011.tif",
        "--tiles.sampler", "{kind: grid, stride: 36}", "--tiles.splits.block_m", "2500",
        "--evaluate.resamples", "200", "--evaluate.ks", "[1, 5, 10]", "--evaluate.umap", "false",
        "--evaluate.segmentation", "{tiles: 40, cells: 2000}",
    ]  # fmt: skip


def submitted(cluster, verb, options):
    done = cluster.submit(verb, *options)
    assert done.code == 0, done.out[-3000:] + done.err[-2000:]
    lines = [line for line in done.out.splitlines() if line.startswith('{"verb"')]
    return json.loads(lines[-1])


def test_the_whole_road_through_the_job_api(cluster, zion, data, tmp_path):
    sampled = submitted(cluster, "sample", zion)
    assert sampled["counts"]["kept"] > 400
    assert sampled["counts"]["by_split"].keys() >= {"train", "val", "test"}

    trained = submitted(cluster, "train", [*zion, *FAST, "--train.num_workers", "2"])
    assert trained["epochs"] == 2

    tuned = submitted(cluster, "tune", [*zion, *FAST, *SWEEP])
    assert tuned["trials"] in ({"finished": 2}, {"finished": 1, "pruned": 1})
    [final] = tuned["finals"]
    assert final["run"] == f"{tuned['best']['run']}-seed-{final['seed']}"
    assert final["seed"] != 0  # the seed that the sweep itself trained with
    assert final["metrics"]["MAP@R"]["low"] <= final["metrics"]["MAP@R"]["value"] <= final["metrics"]["MAP@R"]["high"]

    evaluated = submitted(cluster, "evaluate", [*zion, *FAST])
    rows = {row["name"]: row["metrics"] for row in evaluated["rows"]}
    assert rows.keys() == {"random-init", "image-statistics", "frozen-pretrained", "trained"}
    for metrics in rows.values():
        assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in metrics.values())
    assert rows["frozen-pretrained"]["MAP@R"] != rows["random-init"]["MAP@R"]
    assert [row["name"] for row in evaluated["segmentation"]["rows"]] == ["majority-class", *rows]
    assert_report(evaluated)
    for name in ("image-statistics", "trained"):
        assert rows[name]["precision@1"]["value"] == pytest.approx(share_of_like_neighbours(zion, name), abs=1e-9)

    indexed = submitted(cluster, "index", [*zion, *FAST])
    assert indexed["rows"] == sampled["counts"]["kept"]
    assert indexed["encoder_fingerprint"] == trained["encoder_fingerprint"]

    served_and_asked(cluster, [*zion, *FAST], indexed, data("zion_north"), tmp_path)
    assert_champion_is_indexed(cluster, [*zion, *FAST, "--workspace.encoder", "models:/road@champion"], tuned)


def assert_champion_is_indexed(cluster, options, tuned):
    """The registry's name stands for what the best trial has learned: another index is made of it, and this one is not served under it."""
    indexed = cluster.run("index", *options, "--workspace.index", "champion")
    assert indexed.code == 0, indexed.err
    workspace = open_store(options[options.index("--workspace.uri") + 1])
    learned = Artefact(workspace, f"runs/{tuned['best']['run']}", "checkpoints").current()
    assert indexed.result["encoder_fingerprint"] == learned.manifest["encoder_fingerprint"]
    assert cluster.run("serve", *options, "--workspace.index", "champion", "--dry-run").code == 0
    refused = cluster.run("serve", *options, "--dry-run")
    assert refused.code == 1
    assert "but the experiment's is models:/road@champion, version 1" in refused.err


def assert_report(evaluated):
    """The page and its pictures lie beside the figures, and the page says what the figures say."""
    store = open_store(evaluated["page"].rpartition("/")[0])
    page = store.read("report.html").decode()
    assert page.count("data:image/png;base64,") >= 10
    for row in evaluated["rows"]:
        assert f"{row['metrics'][evaluated['objective']]['value']:.3f}" in page
    assert store.read("pictures/neighbours/trained.png").startswith(b"\x89PNG")
    assert store.read("tensorboard/sprite.png").startswith(b"\x89PNG")


def share_of_like_neighbours(options, name):
    """Of the test tiles that have another of their class, how many have one as their nearest: from the published embeddings, all pairs."""
    workspace = options[options.index("--workspace.uri") + 1]
    found = read_embeddings(Artefact(open_store(workspace), "embeddings", f"zion-landcover-{name}").current())
    labels = np.array([label or "" for label in found.table["label"].to_pylist()])
    vectors = found.vectors.astype(np.float64)
    apart = ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    same = (labels[:, None] == labels[None]) & (labels != "")[:, None]
    np.fill_diagonal(same, val=False)
    asked = same.any(axis=1)
    return same[np.arange(len(labels)), apart.argmin(axis=1)][asked].mean()


def served_and_asked(cluster, options, indexed, imagery, tmp_path):
    port = free_port()
    options = [*options, "--serve.port", str(port)]
    service = Running(cluster.start("serve", *options))
    url = f"http://127.0.0.1:{port}"
    try:
        service.wait_for("ready: ", seconds=300)
        assert httpx.get(f"{url}/healthz", timeout=60).is_success
        elsewhere = httpx.post(f"{url}/v1/search", json={"positives": [{"point": {"lon": 10.0, "lat": 50.0}}], "limit": 3}, timeout=60)
        assert elsewhere.status_code == 404
        assert "km away" in elsewhere.json()["detail"]
        bounds = httpx.get(f"{url}/v1/info", timeout=60).json()["bounds"]
        middle = {"lon": (bounds[0] + bounds[2]) / 2, "lat": (bounds[1] + bounds[3]) / 2}
        answer = httpx.post(f"{url}/v1/search", json={"positives": [{"point": middle}], "limit": 5}, timeout=60).json()
        assert answer["index_version"] == indexed["version"]
        assert answer["exact"] is True
        assert answer["candidates"] == indexed["rows"] - 1
        scores = [feature["properties"]["score"] for feature in answer["features"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)

        asked = cluster.run("query", *options, "--tile", answer["features"][0]["id"], "--limit", "2")
        assert asked.code == 0, asked.err
        assert len(asked.result["features"]) == 2

        thumbnail = httpx.get(f"{url}/v1/tiles/{answer['features'][0]['id']}/thumbnail.png", timeout=60)
        assert thumbnail.headers["content-type"] == "image/png"
        picture = tmp_path / "picture.png"
        picture.write_bytes(thumbnail.content)
        by_picture = cluster.run("query", *options, "--image", str(picture), "--limit", "1")
        assert by_picture.code == 1
        assert "type uint8, the tiles uint16" in by_picture.err
        chip = cut_out(imagery, answer["features"][0]["properties"]["window"], tmp_path / "chip.tif")
        by_chip = cluster.run("query", *options, "--image", str(chip), "--limit", "1")
        assert by_chip.code == 0, by_chip.err
        [found] = by_chip.result["features"]
        assert (found["id"], found["properties"]["score"]) == (answer["features"][0]["id"], pytest.approx(1, abs=1e-3))

        assert_bad_requests(url, tmp_path)
        service.signal(signal.SIGTERM)  # as systemd and containers end it
        ended = service.ended(120)
        assert ended.code == 0, ended.err
    finally:
        service.kill()


def cut_out(imagery, window, path):
    """Write the pixels of a tile as a GeoTIFF that lies where they do."""
    place = rasterio.windows.Window(window["col"], window["row"], window["width"], window["height"])
    with rasterio.open(imagery / "landsat_b4.tif") as file:
        profile = {"crs": file.crs, "transform": file.window_transform(place), "dtype": file.dtypes[0]}
    with rasterio.open(path, "w", driver="GTiff", count=3, width=window["width"], height=window["height"], **profile) as file:
        for number, band in enumerate(("b4", "b3", "b2"), 1):
            with rasterio.open(imagery / f"landsat_{band}.tif") as source:
                file.write(source.read(1, window=place), number)
    return path


def assert_bad_requests(url, tmp_path):
    five = tmp_path / "five.tif"
    with rasterio.open(
        five, "w", driver="GTiff", dtype="uint16", count=5, width=24, height=24, transform=rasterio.Affine(30, 0, 0, 0, -30, 0)
    ) as file:
        file.write(np.ones((5, 24, 24), np.uint16))
    refused = httpx.post(f"{url}/v1/search/image", files={"image": five.read_bytes()}, timeout=60)
    assert refused.status_code == 400
    assert "5 bands" in refused.json()["detail"]

    claims = (
        b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + (20_000).to_bytes(4, "big") + (15_000).to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    )
    claims += zlib.crc32(claims[12:29]).to_bytes(4, "big") + b"\x00\x00\x00\x00IEND\xaeB`\x82"
    bomb = httpx.post(f"{url}/v1/search/image", files={"image": claims}, timeout=60)
    assert bomb.status_code == 413, bomb.text

    large = httpx.post(f"{url}/v1/search/image", content=b"x" * (40 * 2**20), timeout=60)
    assert large.status_code == 413

    unknown = httpx.post(f"{url}/v1/search", json={"positives": [{"tile_id": "0" * 20}]}, timeout=60)
    assert unknown.status_code == 404
    wrong = httpx.post(f"{url}/v1/search", json={"positives": [{"embedding": [1.0, 2.0]}]}, timeout=60)
    assert wrong.status_code == 400
    assert wrong.headers["content-type"] == "application/problem+json"


def test_sampling_again_reads_only_what_is_missing(cluster, zion, s3_server):
    """Runs after the road: the set is there; a lost pointer and two lost shards are made good without reading the others."""
    workspace = zion[zion.index("--workspace.uri") + 1]
    store = open_store(workspace)
    artefact = Artefact(store, "sets", "zion-landcover")
    before = artefact.current()
    shards = [entry for entry in before.files if entry.name.startswith("chips/")]
    client = s3_server.client()
    bucket, _, prefix = workspace.removeprefix("s3://").partition("/")
    stamps = {
        entry.name: client.head_object(Bucket=bucket, Key=f"{prefix}/{before.prefix}{entry.name}")["LastModified"] for entry in shards
    }
    store.delete(artefact.pointer)
    for entry in shards[:2]:
        store.delete(before.prefix + entry.name)
    time.sleep(1.1)  # the server's time stamps have seconds
    again = cluster.run("sample", *zion)
    assert again.code == 0, again.err
    after = artefact.current()
    assert after.version == before.version
    assert after.files == before.files
    for entry in shards:
        stamp = client.head_object(Bucket=bucket, Key=f"{prefix}/{before.prefix}{entry.name}")["LastModified"]
        assert (stamp > stamps[entry.name]) == (entry in shards[:2])
