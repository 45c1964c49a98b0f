"""Imagery from a map server that fails, fetched on a cluster of three nodes into a real S3 server, and sampled."""

from __future__ import annotations

import json
import os
import random
import secrets
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from rayjobs.storage import open_store
from rayjobs.tiles.table import read_tiles
from tests import faulty_s3, map_server
from tests.map_server import SIDE
from tests.three_nodes import options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = Path(__file__).parents[2] / "configs" / "gibs.yaml"
LAYER = "MODIS_Terra_CorrectedReflectance_TrueColor"
LEVEL, ROW, COL = 7, 40, 60
PIXEL = map_server.LEVELS["geo"][LEVEL]


@pytest.fixture(scope="module")
def pictures(data):
    """Aerial imagery of two dates, of 6 x 8 tiles, (h, w, 3)."""
    found = {}
    for date, name in {"2024-06-01": "20100629", "2024-06-02": "20120731"}.items():
        with rasterio.open(data("naip_nd") / f"m_4709963_se_14_1_{name}.tif") as file:
            values = np.moveaxis(file.read([1, 2, 3]), 0, -1)
        found[date] = np.ascontiguousarray(values[: 6 * SIDE, : 8 * SIDE])
    return found


def test_what_a_failing_service_has_is_fetched_and_sampled(cluster, s3_server, pictures, tmp_path):
    os.environ.update(s3_server.environment)
    workspace = s3_server.bucket(f"fetch-{secrets.token_hex(4)}")
    height, width = pictures["2024-06-01"].shape[:2]
    tiles = 2 * height // SIDE * (width // SIDE)
    west, north = -180 + COL * SIDE * PIXEL, 90 - ROW * SIDE * PIXEL
    aoi = [west + PIXEL, north - (height - 1) * PIXEL, west + (width - 1) * PIXEL, north - PIXEL]
    layer = {"title": "Corrected Reflectance", "format": "image/png", "times": list(pictures)}
    with map_server.serve(tmp_path, {LAYER: layer}) as server, faulty_s3.before(server.endpoint) as proxy:
        for date, picture in pictures.items():
            server.publish(LAYER, "geo", date, LEVEL, (ROW, COL), picture)
        source = {
            "kind": "gibs", "layer": LAYER, "dates": ["2024-06-01/2024-06-07"], "resolution_m": PIXEL * 111_320, "channels": 3,
            "url": f"{proxy.endpoint}/wmts/1.0.0/WMTSCapabilities.xml",
        }  # fmt: skip
        polite = {"requests_per_second": 500, "tries": 3, "backoff_s": 0.02, "tiles_per_piece": 16}
        keys = {
            "rasters.sources": [source],
            "rasters.aoi": aoi,
            "fetch": polite,
            "tiles.size": 64,
            "tiles.splits": {"train": 1, "val": 0, "test": 0},
        }
        told = options(CONFIG, workspace, *(part for key, value in keys.items() for part in (f"--{key}", json.dumps(value))))

        whole = []
        fate = random.Random(0)

        def rule(_, path):
            fault = "503" if path.endswith(f"/{ROW}/{COL}.png") else random_fault(fate) if path.endswith(".png") else None
            whole.extend([path] if fault is None and path.endswith(".png") else [])
            return fault

        proxy.rule = rule
        first = cluster.run("fetch", *told)
        assert first.code == 1, first.err
        named = {row["url"] for row in first.result["missing"]}
        assert {url.removeprefix(proxy.endpoint) for url in named} >= {
            f"/wmts/{LAYER}/default/{date}/geo/07/{ROW}/{COL}.png" for date in pictures
        }
        proxy.rule = lambda _, path: whole.append(path) if path.endswith(".png") else None
        second = cluster.run("fetch", *told)
        assert second.code == 0, second.err
        assert second.result["asked"] == len(named)
        assert len(whole) == len(set(whole)) == tiles, "each tile was sent once"

        sampled = cluster.run("sample", *told, "--workspace.set", "direct")
        assert sampled.code == 0, sampled.err
    store = open_store(workspace)
    assert pq.read_table(store.fetch(second.result["requests"].removeprefix(f"{workspace}/"), tmp_path)).num_rows == tiles
    for scene, address in second.result["files"].items():
        path = store.fetch(address.removeprefix(f"{workspace}/"), tmp_path)
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), pictures[scene.partition("@")[2][:10]])
    kept = read_tiles(store.read(f"sets/direct/{sampled.result['version']}/tiles.parquet"))
    assert set(kept["scene_id"].to_pylist()) == set(second.result["files"])
    assert sampled.result["counts"]["unreadable"] == 0


def random_fault(fate):
    return fate.choice(["500", "503", "429", "reset", "cut"]) if fate.random() < 0.3 else None
