"""Active learning on a cluster of three nodes and a real S3 server: labelled by the oracle over four rounds."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3

import pytest

from rayjobs.labels.queue import queue_of
from rayjobs.labels.store import LabelStore
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles.table import read_geoparquet, read_tiles
from tests.three_nodes import options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CLASSES, EACH = ("Farmland", "Port", "StorageTanks"), 14


@pytest.fixture
def given(s3_server, data, tmp_path):
    os.environ.update(s3_server.environment)
    for name in CLASSES:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for picture in sorted((data("aid_15classes") / name).iterdir())[:EACH]:
            (tmp_path / "pictures" / name / picture.name).symlink_to(picture)
    raw = {
        "name": "ports",
        "rasters": {"sources": [{"kind": "images", "root": str(tmp_path / "pictures")}]},
        "tiles": {"size": None, "splits": {"by": "scene", "train": 0.7, "val": 0, "test": 0.3}},
        "model": {"backbone": "resnet10t", "dim": 16, "input_size": 32},
        "train": {"supervision": "views", "epochs": 1, "steps_per_epoch": 1, "batch_size": 8, "precision": "fp32"},
        "loss": {"kind": "ntxent"},
        "miner": {"kind": "none"},
        "mining": {"every": 0},
        "label": {
            "oracle": "tiles", "oracle_class": "Port", "budget": 16, "seed_tiles": 8, "round_tiles": 4, "measured": "test",
            "strategy": "uncertain_balanced", "diversity": "cluster",
        },
    }  # fmt: skip
    config = tmp_path / "experiment.yaml"
    config.write_text(json.dumps(raw))
    return config, s3_server.bucket(f"label-{secrets.token_hex(4)}")


def test_the_oracle_labels_and_the_next_command_goes_on(cluster, given):
    config, workspace = given
    for verb in ("sample", "train"):
        done = cluster.run(verb, *options(config, workspace, "--tracking.enabled", "false"))
        assert done.code == 0, done.err
    found = cluster.run("label", *options(config, workspace))
    assert found.code == 0, found.err
    result = found.result
    store = open_store(workspace)
    tiles = read_tiles(Artefact(store, "sets", "ports").current().read("tiles.parquet"))
    truth = dict(zip(tiles["tile_id"].to_pylist(), tiles["label"].to_pylist(), strict=True))
    said = LabelStore(store, "ports").events()
    assert {event.tile_id: event.label for event in said} == {
        event.tile_id: "positive" if truth[event.tile_id] == "Port" else "negative" for event in said
    }
    assert (result["labels"], len(said), result["round"]) == (16, 16, 3)
    assert result["measured"]["AP"] > 0

    current = queue_of(store, "ports").current()
    assert read_geoparquet(current.read("predictions.parquet")).num_rows == len(truth) == len(CLASSES) * EACH
    with contextlib.closing(sqlite3.connect(cluster.environment["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"))) as tracked:
        of_run = "FROM metrics JOIN runs USING (run_uuid) WHERE runs.name LIKE 'ports-0003%' AND key = 'measured/AP'"
        assert tracked.execute(f"SELECT step {of_run} ORDER BY step").fetchall() == [(8,), (12,), (16,)]
        [(files,)] = tracked.execute("SELECT artifact_uri FROM runs WHERE name LIKE 'ports-0003%'").fetchall()
    assert [key for key in open_store(files).list() if key.endswith("curve.png")]

    more = cluster.run("label", *options(config, workspace, "--label.budget", "20", "--tracking.enabled", "false"))
    assert more.code == 0, more.err
    assert (more.result["labels"], more.result["round"]) == (20, 4)
    assert "joining the cluster" not in more.err, "what is embedded needs no Ray"
