"""What a job tells and leaves when it fails, is stopped, or is begun twice."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import time

import pytest

from rayjobs.storage import Artefact
from tests.faults.conftest import FULL
from tests.three_nodes import RAY, ROOT, options

RUN = ["--train.epochs", "400", "--train.steps_per_epoch", "10", "--mining.every", "0", "--train.ask_every", "1"]
STOPS = (signal.SIGTERM, signal.SIGINT)
"""`ray job stop`, and Ctrl-C, in turn."""
_MORE = 4
"""How many interrupts more until one leaves a checkpoint of the very step, which a busy machine does not manage in time each time."""


def submit(cluster, name, *arguments):
    command = [str(RAY), "job", "submit", "--address", cluster.dashboard, "--submission-id", name, "--working-dir", ".", "--"]
    command += ["python", "-m", "rayjobs.train", *arguments]
    return subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.fault("J1")
def test_exit_codes_ends_and_doubles(begin, cluster, config, sampled, store_of, row):
    planned = options(config, sampled, "--dry-run", "--workspace.run", "job")
    name = f"job-{secrets.token_hex(4)}"
    done = submit(cluster, name, *planned)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    again = submit(cluster, name, *planned)
    assert again.returncode != 0, "a submission id is taken once"
    assert name in again.stderr + again.stdout
    failed = submit(cluster, f"{name}-failed", *planned, "--train.batch_sice", "3")
    assert failed.returncode == 1

    arguments = options(config, sampled, *RUN, "--workspace.run", "job")
    artefact = Artefact(store_of(sampled), "runs/job", "checkpoints")
    seconds, made = [], 0
    tries = max(row.tries, len(STOPS))
    while (stop := len(seconds)) < tries or (not made and stop < tries + _MORE):
        command = begin("train", *arguments)
        command.wait_for(r"epoch \d+: loss", count=2)
        if stop == 0:
            second = begin("train", *arguments).ended()
            assert second.code == 1
            assert "is held by process" in second.err.strip().splitlines()[-1]
        before = artefact.current().version
        stopped = command.signal(STOPS[stop % len(STOPS)])
        command.wait_for(r"interrupted; the same command goes on from what is published")
        seconds.append(time.monotonic() - stopped)
        assert command.ended(60).code == 1, command.err
        assert "Traceback" not in command.err
        assert json.loads(store_of(sampled).read("runs/job/lease"))["expires"] == 0.0, "the lease is given back"
        after = artefact.current()
        assert after.version >= before
        assert after.damage() is None
        made += bool(command.said("the command is to end: a checkpoint is made"))
    again = begin("train", *arguments)
    again.wait_for(rf"continues from checkpoint {after.version}:")
    again.kill()
    assert made, "a checkpoint of the very step is made at least once"
    row.tries, row.lost = len(seconds), f"{made} of {len(seconds)} left a checkpoint of the very step, the others the one before"
    row.recovered = f"gone after {max(seconds):.1f} s"
    assert max(seconds) < (4 if FULL else 20), seconds
