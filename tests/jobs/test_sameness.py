"""Results that do not depend on the number of workers, and that belong together or are refused."""

from __future__ import annotations

import io
import os
import secrets

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rayjobs.embed.stack import stack
from rayjobs.models.checkpoint import from_files
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles import chips
from tests.faults.running import Running
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


def test_heads_on_a_frozen_backbone_share_its_features(cluster, config, sampled, store_of):
    """One run on three nodes computes them, mines and learns from them; another head on two workers computes nothing."""
    frozen = ["--train.epochs", "1", "--model.freeze", "all", "--train.frozen_features", "1"]
    first = cluster.run("train", *options(config, sampled, *frozen, "--workspace.run", "head", "--train.num_workers", "3"))
    assert first.code == 0, first.err
    assert "1 version: computed in" in first.err
    kept = Artefact(store_of(sampled), "features", "made-up")
    version = kept.current()
    other = ["--workspace.run", "other-head", "--train.num_workers", "2", "--model.projection", "mlp"]
    second = cluster.run("train", *options(config, sampled, *frozen, *other))
    assert second.code == 0, second.err
    assert "1 version: found in the workspace" in second.err
    assert kept.finished() == [version.version]
    assert version.damage() is None


def test_what_is_mined_beside_training_is_that_of_the_checkpoint_it_names(cluster, config, sampled, store_of):
    arguments = options(config, sampled, "--workspace.run", "beside", "--mining.mode", "asynchronous", "--train.epochs", "900")
    training = Running(cluster.start("train", *arguments, "--train.keep_checkpoints", "900", "--mining.first", "1"))
    try:
        _, match = training.wait_for(r"generation (\d+) is used from now on, (\d+) epochs behind", seconds=400)
    finally:
        training.kill()
    store, epoch = store_of(sampled), int(match[1])
    mined = Artefact(store, "runs/beside", "mining").at(f"generation-{epoch:04d}")
    table = pq.read_table(io.BytesIO(mined.read("mined.parquet")))
    assert table.num_rows > 100
    vectors = embedded(Artefact(store, "runs/beside", "checkpoints").at(f"epoch-{epoch:04d}"), Artefact(store, "sets", "made-up").current())
    found = [
        vectors[one] @ vectors[other]
        for one, other in zip(*(table[name].to_pylist() for name in ("anchor_id", "candidate_id")), strict=True)
    ]
    np.testing.assert_allclose(table["score"].to_numpy(), found, atol=1e-4)


def embedded(checkpoint, tiles):
    """Embed all tiles of a set, a shard at a time."""
    encoder = from_files(model_json=checkpoint.read("model.json"), tensors=checkpoint.read("model.safetensors"))
    vectors = {}
    for entry in tiles.files:
        if entry.name.startswith("chips/"):
            found = chips.read_chips(tiles.read(entry.name), None)
            with torch.inference_mode():
                rows = encoder.module.eval()(*stack(found, encoder.spec.tile_size))
            vectors |= {chip.tile_id: row for chip, row in zip(found, rows.numpy(), strict=True)}
    return vectors
