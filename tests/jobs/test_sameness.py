"""Results that do not depend on the number of workers, and that belong together or are refused."""

from __future__ import annotations

import io
import os
import secrets

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
    bucket = s3_server.bucket(f"same-{secrets.token_hex(4)}")
    done = cluster.run("sample", *options(config, bucket))
    assert done.code == 0, done.err
    return bucket


BRIEF = ["--train.epochs", "1", "--mining.every", "0"]


def test_an_index_of_another_encoder_is_not_served(cluster, config, sampled):
    for run in ("one", "other"):
        trained = cluster.run("train", *options(config, sampled, *BRIEF, "--workspace.run", run, "--train.seed", str(len(run))))
        assert trained.code == 0, trained.err
    indexed = cluster.run("index", *options(config, sampled, *BRIEF, "--workspace.run", "one", "--train.seed", "3"))
    assert indexed.code == 0, indexed.err
    refused = cluster.run("serve", *options(config, sampled, *BRIEF, "--workspace.run", "other", "--train.seed", "5"))
    assert refused.code == 1, refused.err
    line = refused.err.strip().splitlines()[-1]
    assert indexed.result["encoder_fingerprint"][:12] in line
    assert "rayjobs index" in line
