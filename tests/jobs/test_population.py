"""Trials that are ended early, and a population of trials that take up each other's weights."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys

import pytest

from rayjobs.storage import Artefact, open_store
from tests.three_nodes import options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

POPULATION = [
    "--tune.space", "{train.learning_rate: {loguniform: [0.0001, 0.1]}, loss.temperature: [0.05, 0.5]}", "--tune.search", "random",
    "--tune.trials", "2", "--tune.scheduler", "{kind: pbt, every_epochs: 1, quantile: 0.5}", "--tune.final_seeds", "0",
    "--tune.concurrent", "2", "--train.cpus_per_worker", "1", "--train.epochs", "6", "--mining.every", "2",
    "--train.steps_per_epoch", "60",
]  # fmt: skip


def test_trials_after_one_that_was_ended_early_are_run(tmp_path):
    """Each is worse than the one before, and its process still at work when it is ended; the next must not suffer for it."""
    command = [sys.executable, "-m", "tests.faults.sweeping", str(tmp_path), "5", "asha"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["errors"] == 0
    ended_early = [history for ended, history in zip(told["ended"], told["history"], strict=True) if not ended]
    assert len(ended_early) == 4
    assert all(list(history) == ["1"] for history in ended_early)


def test_trials_take_up_weights_of_others(cluster, config, s3_server):
    os.environ.update(s3_server.environment)
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
