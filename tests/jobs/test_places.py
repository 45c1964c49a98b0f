"""Codes that find the same place on another date, on a cluster of three nodes and a real S3 server: sampled, trained, measured, indexed."""

from __future__ import annotations

import io
import json
import os
import secrets
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayjobs.index.versions import newest
from rayjobs.retrieval.search import open_searcher
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles.table import read_tiles
from tests.three_nodes import options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CONFIG = Path(__file__).parents[2] / "configs" / "crossdate-siamese.yaml"
BITS = 32


@pytest.fixture(scope="module")
def given(s3_server, data):
    """The experiment that ships, on the imagery at hand, with a small network that hashes."""
    os.environ.update(s3_server.environment)
    source = {
        "kind": "files",
        "uris": [str(data("naip_nd") / "m_*.tif")],
        "pattern": r"_(?P<date>\d{8})\.tif$",
        "bands": ["red", "green", "blue", "nir"],
    }
    keys = {
        "rasters.sources": [source],
        "model": {"backbone": "resnet10t", "input_size": 64, "pool_cells": 2, "freeze": "all", "projection": "hash", "dim": BITS},
        "mining": {"every": 1, "first": 1, "negatives": 3, "skip_in_top": 2},
        "train.epochs": 2,
        "train.steps_per_epoch": 3,
        "train.batch_size": 32,
        "train.num_workers": 2,
        "evaluate.umap": False,
        "evaluate.probes": [],
    }
    workspace = s3_server.bucket(f"places-{secrets.token_hex(4)}")
    return options(CONFIG, workspace, *(part for key, value in keys.items() for part in (f"--{key}", json.dumps(value)))), workspace


def test_codes_find_places_on_other_dates(cluster, given, tmp_path):
    options, workspace = given
    found = {}
    for verb in ("sample", "train", "evaluate", "index"):
        done = cluster.run(verb, *options)
        assert done.code == 0, done.err
        found[verb] = done.result

    store = open_store(workspace)
    tiles = read_tiles(Artefact(store, "sets", "crossdate-siamese").current().read("tiles.parquet"))
    days = tiles["datetime"].to_numpy().astype("datetime64[D]")
    mined = pq.read_table(io.BytesIO(Artefact(store, "runs/crossdate-siamese", "mining").at("generation-0001").read("mined.parquet")))
    day = dict(zip(tiles["tile_id"].to_pylist(), days, strict=True))
    assert mined.num_rows > 20
    assert all(
        day[anchor] != day[other] for anchor, other in zip(mined["anchor_id"].to_pylist(), mined["candidate_id"].to_pylist(), strict=True)
    )

    rows = [row["name"] for row in found["evaluate"]["rows"]]
    assert rows == ["random-init", "image-statistics", "trained-float", "trained"]
    pairs = found["evaluate"]["dates"]["trained"]
    assert len(pairs) == 4 * 3
    assert {pair["gallery"] for pair in pairs} == {154}
    assert all(set(pair["metrics"]) >= {"MRR@5", "recall@1", "recall@10"} and pair["median_rank"] >= 1 for pair in pairs)
    years = {(pair["asking"][:4], pair["asked"][:4]): pair["gap_days"] for pair in pairs}
    assert 2900 < years["2010", "2018"] == -years["2018", "2010"]

    assert (found["index"]["kind"], found["index"]["rows"]) == ("hamming", 616)
    published = newest(Artefact(store, "indexes", "crossdate-siamese"))
    searcher = open_searcher(published.version, published.manifest, tmp_path)
    vectors = np.stack([searcher.vector_of(tile) for tile in tiles["tile_id"].to_pylist()])
    assert np.allclose(np.abs(vectors), BITS**-0.5)
    hits = searcher.search(vectors[0], 616)
    exact = np.sort((vectors @ vectors[0]).astype(np.float32))[::-1]
    assert hits.scores.tolist() == pytest.approx(exact.tolist(), abs=1e-6)
    bytes_of_codes = [entry.size for entry in published.version.files if entry.name.endswith(".vectors")]
    assert sum(bytes_of_codes) < 616 * (BITS // 8 + 1) + 500
