"""A population of trials that take up each other's weights, on a cluster of three nodes."""

from __future__ import annotations

import json
import secrets

import pytest

from rayjobs.storage import Artefact, open_store
from tests.three_nodes import options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

POPULATION = [
    "--tune.space", "{train.learning_rate: {loguniform: [0.0001, 0.1]}, loss.temperature: [0.05, 0.5]}", "--tune.search", "random",
    "--tune.trials", "2", "--tune.scheduler", "{kind: pbt, every_epochs: 1, quantile: 0.5}", "--tune.final_seeds", "0",
    "--tune.concurrent", "2", "--train.cpus_per_worker", "1", "--train.epochs", "4", "--mining.every", "2",
]  # fmt: skip


def test_trials_take_up_weights_of_others(cluster, config, s3_server):
    bucket = s3_server.bucket(f"population-{secrets.token_hex(4)}")
    sampled = cluster.run("sample", *options(config, bucket))
    assert sampled.code == 0, sampled.err
    done = cluster.run("tune", *options(config, bucket, *POPULATION))
    assert done.code == 0, done.err
    told = json.loads(done.out.splitlines()[-1])
    assert told["trials"]["finished"] == 2
    store = open_store(bucket)
    report = json.loads(store.read(told["report"].removeprefix(f"{store.uri}/")))
    took_up = [trial for trial in report["trials"] if trial["run"].count("-") > report["sweep"].count("-") + 1]
    assert took_up, "nobody took up another's weights"
    for trial in took_up:
        first = min(epoch for epoch, _ in trial["history"])
        begun = Artefact(store, f"runs/{trial['run']}", "checkpoints").at(f"epoch-{first:04d}")
        copies = [
            other
            for other in report["trials"]
            if other is not trial and [first, begun.manifest["validation"]["val/recall@10"]] in other["history"]
        ]
        assert copies, "it begins with a checkpoint of another, and what that was measured to find"
