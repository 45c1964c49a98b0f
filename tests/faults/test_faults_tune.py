"""Sweeps whose reports pile up, and sweeps that are killed; docs/reliability.md has the pass lines."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from rayjobs.tune.trials import all_known
from tests.faults.mlflow_server import tracking_server
from tests.three_nodes import free_port, options

SPACE = {"loss": [{"kind": "triplet", "margin": [0.1, 0.2, 0.3]}, {"kind": "ntxent"}]}
SWEEP = [
    "--tune.space", json.dumps(SPACE), "--tune.final_seeds", "0", "--tune.concurrent", "2", "--train.cpus_per_worker", "1",
    "--train.num_workers", "1", "--train.epochs", "2", "--train.steps_per_epoch", "6", "--mining.every", "0", "--workspace.sweep",
]  # fmt: skip
TRIALS = 4


@pytest.mark.fault("U1")
def test_reports_pile_up(row, tmp_path):
    """No trial hangs though Ray Tune takes seconds over each report (ray.md, section 0.1), and none is lost."""
    command = [sys.executable, "-m", "tests.faults.sweeping", str(tmp_path), str(row.tries)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 10 * row.tries, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["errors"] == 0
    assert told["ended"] == ["finished"] * row.tries
    assert all(sorted(history) == ["1", "2"] for history in told["history"])
    row.lost = f"no report of {2 * row.tries}, and no trial hung"


@pytest.mark.fault("U2")
def test_the_sweep_is_killed(begin, cluster, config, sampled, store_of, row, tmp_path):
    """The same command tries what has not ended: each trial ends once, and none is left running in MLflow."""
    tracking = ["--tracking.enabled", "true", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    for number in range(row.tries):
        sweep = f"killed-{number}"
        arguments = options(config, sampled, *SWEEP, sweep, *tracking)
        command = begin("tune", *arguments)
        command.wait_for(rf"{sweep}-\w+ has ended", count=1 + number % (TRIALS - 1), seconds=600)
        command.kill()
        again = begin("tune", *arguments, "--json")
        done = again.ended(900)
        assert done.code == 0, done.err
        assert json.loads(done.out.splitlines()[-1])["trials"] == {"finished": TRIALS}
        found = all_known(_workspace(store_of, sampled, sweep))
        assert sorted(one.values["loss"].get("margin", 0) for one in found) == [0, 0.1, 0.2, 0.3]
        assert all(sorted(one.history) == [1, 2] for one in found)
        _assert_tracked_once(tmp_path, sweep, {one.run for one in found})
    row.lost = f"no trial of {TRIALS * row.tries}; each ended once, none is left RUNNING in MLflow"


@pytest.mark.fault("U3")
@pytest.mark.filterwarnings("ignore")  # of MLflow's client, which uses what SQLAlchemy has deprecated
def test_the_tracking_server_goes_away(begin, cluster, config, sampled, row, tmp_path):
    """MLflow is killed when the first trial has ended and comes back after a while: all trials are there in the end, whole and once."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    arguments = options(config, sampled, *SWEEP, "untold", "--tracking.enabled", "true", "--tracking.uri", uri, "--json")
    with tracking_server(port, tmp_path) as server:
        command = begin("tune", *arguments)
        command.wait_for(r"untold-\w+ has ended", seconds=600)
        server.kill()
        server.wait()
        time.sleep(row.tries)
    with tracking_server(port, tmp_path):
        done = command.ended(900)
        assert done.code == 0, done.err
        assert done.result["trials"] == {"finished": TRIALS}
        client = MlflowClient(uri)
        found = client.search_runs([each.experiment_id for each in client.search_experiments()])
        [sweep] = [run for run in found if run.info.run_name == "untold"]
        trials = [run for run in found if run is not sweep]
        assert {run.info.status for run in found} == {"FINISHED"}
        assert len({run.info.run_name for run in trials}) == len(trials) == TRIALS
        for run in trials:
            assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
            assert [entry.step for entry in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
            assert client.list_artifacts(run.info.run_id, "model/data/encoder")
    row.lost = f"no metric and no model of {TRIALS} trials"


def _workspace(store_of, bucket, sweep):
    class Workspace:
        store = store_of(bucket)
        sweep_folder = f"sweeps/{sweep}/"

    return Workspace()


def _assert_tracked_once(folder, sweep, runs):
    """In MLflow's own tables: one run of each trial and one of the sweep, its parent; all have ended well."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as base:
        rows = base.execute(
            "SELECT r.run_uuid, r.name, r.status FROM runs r JOIN tags t USING (run_uuid) WHERE t.key='sweep' AND t.value=?", [sweep]
        )
        found = {name: (run_id, status) for run_id, name, status in rows}
        parents = dict(base.execute("SELECT run_uuid, value FROM tags WHERE key='mlflow.parentRunId'"))
        [count] = base.execute("SELECT count(*) FROM tags WHERE key='sweep' AND value=?", [sweep]).fetchone()
    assert found.keys() == {sweep, *runs}
    assert count == len(found), "none twice"
    assert {status for _, status in found.values()} == {"FINISHED"}
    assert all(parents[run_id] == found[sweep][0] for name, (run_id, _) in found.items() if name != sweep)
