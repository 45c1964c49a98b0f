"""Runs that are killed and taken up again, and results that do not depend on the number of workers."""

from __future__ import annotations

import io
import json
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayjobs.storage import Artefact, open_store
from tests.three_nodes import options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def store_of(s3_server):
    os.environ.update(s3_server.environment)
    return open_store


def test_distributed_equals_single(cluster, config, s3_server, store_of):
    """The tile table and its chips from three nodes and from one process, and the negatives mined by one worker and by three."""
    buckets = {count: s3_server.bucket(f"equal-{secrets.token_hex(4)}") for count in (1, 3)}
    done = cluster.run("sample", *options(config, buckets[3]))
    assert done.code == 0, done.err
    alone = cluster.run("sample", *options(config, buckets[1], "--ray.num_cpus", "1"), RAY_ADDRESS="")
    assert alone.code == 0, alone.err
    files = {count: Artefact(store_of(bucket), "sets", "made-up").current().files for count, bucket in buckets.items()}
    of_tiles = {count: [entry for entry in entries if entry.name != "experiment.yaml"] for count, entries in files.items()}
    assert of_tiles[1] == of_tiles[3]
    assert len(of_tiles[1]) > 5

    mined = {}
    for count, bucket in buckets.items():
        trained = cluster.run("train", *options(config, bucket, "--train.epochs", "1", "--train.num_workers", str(count)))
        assert trained.code == 0, trained.err
        version = Artefact(store_of(bucket), "runs/made-up", "mining").at("generation-0000")
        mined[count] = version.read("mined.parquet")
    assert pq.read_table(io.BytesIO(mined[1])).num_rows > 100
    assert mined[1] == mined[3]


@pytest.fixture(scope="module")
def sampled(cluster, config, s3_server):
    bucket = s3_server.bucket(f"faults-{secrets.token_hex(4)}")
    done = cluster.run("sample", *options(config, bucket))
    assert done.code == 0, done.err
    return bucket


def wait_for_checkpoint(store, run, epoch, process):
    checkpoints = Artefact(store, f"runs/{run}", "checkpoints")
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        found = checkpoints.current()
        if found and found.manifest["epoch"] >= epoch:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    raise AssertionError("no checkpoint came")


LONG = [
    "--train.epochs", "8", "--train.steps_per_epoch", "6", "--mining.every", "4",
    "--train.ema", "0.9", "--memory.size", "64", "--memory.warm_up", "2", "--train.backbone_rate", "0.5",
]  # fmt: skip
"""With everything that a checkpoint has to bring back."""


def test_a_killed_driver_is_taken_up_from_its_last_checkpoint(cluster, config, sampled, store_of):
    arguments = options(config, sampled, *LONG, "--workspace.run", "driver-killed")
    process = cluster.start("train", *arguments)
    wait_for_checkpoint(store_of(sampled), "driver-killed", 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = cluster.run("train", *arguments)
    assert again.code == 0, again.err
    assert again.result["resumed_from"] >= 2
    assert again.result["epochs"] == 8
    assert "continues from checkpoint" in again.err
    finished = cluster.run("train", *arguments)
    assert finished.code == 0, finished.err
    assert finished.result["resumed_from"] == 8
    other = cluster.run("train", *arguments, "--loss.temperature", "0.5")
    assert other.code == 2
    assert "loss.temperature: 0.1 -> 0.5" in other.err


def test_a_killed_worker_is_replaced(cluster, config, sampled, store_of):
    process = cluster.start("train", *options(config, sampled, *LONG, "--workspace.run", "worker-killed", "--train.seed", "1"))
    wait_for_checkpoint(store_of(sampled), "worker-killed", 1, process)
    workers = subprocess.run(["pgrep", "-f", "ray::RayTrainWorker"], capture_output=True, text=True, check=True).stdout.split()
    ours = [pid for pid in workers if cluster.environment["RAY_TMPDIR"].encode() in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(ours[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert json.loads(out.strip().splitlines()[-1])["epochs"] == 8
    assert "continues from checkpoint" in err


def test_an_index_of_another_encoder_is_not_served(cluster, config, sampled):
    """Runs after the two above, whose runs have different weights."""
    indexed = cluster.run("index", *options(config, sampled, *LONG, "--workspace.run", "driver-killed"))
    assert indexed.code == 0, indexed.err
    refused = cluster.run("serve", *options(config, sampled, *LONG, "--workspace.run", "worker-killed", "--train.seed", "1"))
    assert refused.code == 1, refused.err
    line = refused.err.strip().splitlines()[-1]
    assert indexed.result["encoder_fingerprint"][:12] in line
    assert "rayjobs index" in line
