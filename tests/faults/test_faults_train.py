"""Training that is killed, cut off, starved of storage or of workers, and goes on; docs/reliability.md has the pass lines."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import multiprocessing
import os
import random
import secrets
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayjobs.storage import Artefact, Lease
from rayjobs.train import distributed
from rayjobs.train.batches import ByGeography, plan_epoch
from rayjobs.train.state import save
from tests import faulty_s3
from tests.faults.conftest import COUNTS, FULL
from tests.faults.mlflow_server import tracking_server
from tests.small_run import opened
from tests.three_nodes import RAY, free_port, options

EPOCHS = {"T1": 2 * COUNTS["T1"][FULL] + 4, "T2": 44 if FULL else 14, "T6": 400 if FULL else 40}
"""Of each test, where it must be long enough for all that happens to it; else 14."""
WITH_ALL = [
    "--train.steps_per_epoch", "6", "--mining.every", "4",
    "--train.ema", "0.9", "--memory.size", "64", "--memory.warm_up", "2", "--train.backbone_rate", "0.5",
]  # fmt: skip
"""With everything that a checkpoint has to bring back."""
CONTINUES = r"continues from checkpoint (\S+): (\d+) epochs"


def checkpoints_of(store_of, bucket, run):
    return Artefact(store_of(bucket), f"runs/{run}", "checkpoints")


def epoch_of(artefact):
    found = artefact.current()
    return found.manifest["epoch"] if found else 0


def wait_for_epoch(command, artefact, epoch):
    command.wait_until(lambda: epoch_of(artefact) >= epoch, f"epoch {epoch}")
    return epoch_of(artefact)


def what_was_learned(artefact):
    """The weights' bytes and every step's loss of a run's newest checkpoint, whose digests are compared."""
    version = artefact.current()
    assert version.damage() is None
    losses = pq.read_table(io.BytesIO(version.read("losses.parquet")))["loss"].to_numpy()
    return version.read("model.safetensors"), losses


def kill_worker(cluster, title="ray::RayTrainWorker"):
    """SIGKILL a random worker; return when."""
    workers = cluster.processes(title)
    assert workers, f"no {title}"
    now = time.monotonic()
    os.kill(random.choice(workers), signal.SIGKILL)
    return now


def epochs_of(test):
    return EPOCHS.get(test, 14)


def long(test):
    """The options of a test's run."""
    return ["--train.epochs", str(epochs_of(test)), *WITH_ALL]


@pytest.fixture(scope="module")
def run_unkilled(cluster, config, sampled):
    """Train as a test does, but with nothing happening to it; return the run's name."""

    @functools.cache
    def trained(epochs):
        run = f"unkilled-{epochs}"
        done = cluster.run("train", *options(config, sampled, "--train.epochs", str(epochs), *WITH_ALL, "--workspace.run", run))
        assert done.code == 0, done.err
        return run

    return lambda test: trained(epochs_of(test))


@pytest.fixture
def unkilled(run_unkilled, row):
    """The run of this test that nothing happens to."""
    return run_unkilled(row.test)


@pytest.fixture
def assert_same(unkilled, sampled, store_of, row):
    """That two runs have learned the same."""
    expected = what_was_learned(checkpoints_of(store_of, sampled, unkilled))

    def compare(learned):
        assert learned[1].tolist() == expected[1].tolist(), "the losses of all steps"
        assert len(learned[1]) == 6 * epochs_of(row.test)
        assert learned[0] == expected[0], "the weights, bit by bit"

    return compare


@pytest.mark.fault("T1")
def test_workers_are_killed(begin, cluster, config, sampled, store_of, assert_same, row):
    more = ["--train.max_failures", str(row.tries + 1), "--workspace.run", "worker-killed"]
    command = begin("train", *options(config, sampled, *long("T1"), *more))
    artefact = checkpoints_of(store_of, sampled, "worker-killed")
    recovered = []
    for kill in range(row.tries):
        before = wait_for_epoch(command, artefact, 1 + 2 * kill)
        killed = kill_worker(cluster)
        when, match = command.wait_for(CONTINUES, count=kill + 1)
        assert int(match[2]) >= before, "less than an interval is lost"
        recovered.append(when - killed)
    assert command.ended(900).code == 0, command.err
    assert_same(what_was_learned(artefact))
    row.lost, row.recovered = "< 1 interval each, weights bit-equal", f"p95 {np.quantile(recovered, 0.95):.1f} s"
    assert np.quantile(recovered, 0.95) <= (20 if FULL else 60), recovered  # a machine that others use, too, has its own pace


@pytest.mark.fault("T2")
def test_driver_and_controller_are_killed(begin, cluster, config, sampled, store_of, assert_same, row):
    arguments = options(config, sampled, *long("T2"), "--workspace.run", "driver-killed")
    artefact = checkpoints_of(store_of, sampled, "driver-killed")
    recovered, before = [], 0
    for kill, victim in itertools.product(range(row.tries), ("driver", "controller")):
        begun = time.monotonic()
        command = begin("train", *arguments)
        if before:
            when, match = command.wait_for(CONTINUES)
            assert int(match[2]) >= before, "less than an interval is lost"
            recovered.append(when - begun)
        before = wait_for_epoch(command, artefact, min(EPOCHS["T2"] - 2, before + 1 + kill % 2))
        if victim == "driver":
            command.kill()
        else:
            kill_worker(cluster, "ray::TrainController")
            done = command.ended()
            assert done.code == 1, done.err
            assert "Traceback" not in done.err
    done = begin("train", *arguments).ended()
    assert done.code == 0, done.err
    assert done.result["resumed_from"] >= before
    assert_same(what_was_learned(artefact))
    finished = begin("train", *arguments).ended()
    assert (finished.code, finished.result["resumed_from"]) == (0, EPOCHS["T2"]), finished.err
    other = begin("train", *arguments, "--loss.temperature", "0.5").ended()
    assert other.code == 2
    assert "loss.temperature: 0.1 -> 0.5" in other.err
    row.tries *= 2
    row.lost, row.recovered = "< 1 interval each, weights bit-equal", f"{max(recovered):.1f} s at most, with the command's start"


def save_for_ever(uri, environment, token, told):
    """Go on with a small run, and publish a checkpoint after another until killed."""
    os.environ.update(environment)
    run = opened(uri, token)
    told.send(run.state.epoch)
    while True:
        run.state.epoch += 1
        run.state.module.projection.bias.data.fill_(run.state.epoch)
        assert save(run.plan, run.state, run.objective)
        told.send(run.state.epoch)


@pytest.mark.fault("T3")
def test_the_writer_of_checkpoints_is_killed_at_any_moment(s3_server, store_of, row):
    """What was said to be published is there afterwards, whole; and what was half-written is swept."""
    uri = s3_server.bucket(f"halves-{secrets.token_hex(4)}")
    workspace = opened(uri, "").workspace
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.small_run"])
    recovered = []
    with Lease(workspace.store, workspace.lease) as lease:
        for _ in range(row.tries):
            here, there = context.Pipe(duplex=False)
            writer = context.Process(target=save_for_ever, args=(uri, s3_server.environment, lease.token, there))
            writer.start()
            there.close()
            assert here.poll(120)
            published = [here.recv()]
            assert here.poll(120)
            time.sleep(random.uniform(0, 0.5))
            writer.kill()
            writer.join()
            with contextlib.suppress(EOFError):
                while True:
                    published.append(here.recv())
            begun = time.monotonic()
            run = opened(uri, lease.token)
            recovered.append(time.monotonic() - begun)
            assert run.state.epoch in {published[-1], published[-1] + 1}
            assert float(run.state.module.projection.bias.data[0]) == run.state.epoch
            assert not [message for message in run.told if message["kind"] == "damaged"]
        run.state.epoch += 1
        assert save(run.plan, run.state, run.objective)
    checkpoints = run.workspace.checkpoints
    folders = {key.removeprefix(checkpoints.prefix).partition("/")[0] for key in checkpoints.store.list(f"{checkpoints.prefix}epoch")}
    assert folders == set(checkpoints.finished()), "no half-written folder stays"
    assert len(folders) == 2
    row.lost, row.recovered = "nothing that was said to be published", f"{max(recovered):.1f} s at most"


@pytest.mark.fault("T8")
def test_all_ranks_have_equal_steps(monkeypatch, row):
    """Of random sizes that do not divide: each rank takes as many steps as the others, and each tile of a batch is one rank's."""
    rng = np.random.default_rng(8)
    for _ in range(row.tries):
        tiles, group, workers = rng.integers(30, 200), rng.integers(2, 6), rng.integers(1, 9)
        batch, steps = int(group * rng.integers(workers, 12 + workers)), int(rng.integers(1, 9))
        near = SimpleNamespace(offsets=np.arange(tiles + 1), of=lambda anchor, tiles=tiles: np.array([(anchor + 1) % tiles]))
        planned = plan_epoch(
            ByGeography(near), np.random.default_rng(0), steps=steps, batch=batch, group=int(group), mined=None, mined_share=0.0
        )
        assert planned.members.shape == (steps, batch)
        monkeypatch.setattr(distributed, "world_size", lambda workers=workers: int(workers))
        shares = []
        for rank in range(workers):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(planned.members[0][distributed.share_of(batch)])
        assert np.concatenate(shares).tolist() == planned.members[0].tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert min(map(len, shares)) >= 1
    row.lost = "no tile, no step"


@pytest.mark.fault("T4")
def test_nodes_go_and_come(begin, cluster, config, sampled, store_of, row):
    """A node dies, a notice comes that another will, and nodes come back; batches of 25 are divided unevenly."""
    more = ["--train.epochs", "4000", "--train.steps_per_epoch", "10", "--mining.every", "0", "--train.batch_size", "25"]
    more += [
        "--train.tiles_per_group",
        "5",
        "--train.num_workers",
        "[1, 3]",
        "--train.max_failures",
        str(row.tries),
        "--train.ask_every",
        "5",
    ]
    arguments = options(config, sampled, *more, "--workspace.run", "elastic")
    command = begin("train", *arguments)
    artefact = checkpoints_of(store_of, sampled, "elastic")
    command.wait_for(r"3 workers", seconds=400)
    recovered = []
    for _ in range(row.tries):
        before = wait_for_epoch(command, artefact, epoch_of(artefact) + 1)
        seen = len(command.said(CONTINUES))
        killed = time.monotonic()
        kill_node(cluster)
        when, match = command.wait_for(CONTINUES, count=seen + 1, seconds=400)
        assert int(match[2]) >= before
        recovered.append(when - killed)
        command.wait_for(r"train +2 workers", seconds=30)
        cluster.add_node()
        command.wait_for(r"3 workers", count=1 + len(recovered), seconds=400)  # asked once a minute
    # max_failures is used up: what comes now must not count
    wait_for_epoch(command, artefact, epoch_of(artefact) + 1)
    seen = len(command.said(CONTINUES))
    drained = drain_node(cluster, seconds=15)
    command.wait_for(r"a node is about to be taken away: a checkpoint is made", seconds=30)
    when, match = command.wait_for(CONTINUES, count=seen + 1, seconds=400)
    recovered.append(when - drained - 15)
    kill_node(cluster)  # the drained one is the last still
    cluster.add_node()
    stopped = command.signal(signal.SIGTERM)
    assert command.ended(60).code == 1
    left = time.monotonic() - stopped
    assert "interrupted; the same command goes on from what is published" in command.err
    row.tries, row.lost = len(recovered), "< 1 interval each"
    row.recovered = f"{max(recovered[:-1]):.1f} s after a node was lost, {max(recovered[-1], 0):.1f} s after one of which there was notice"
    assert left < 30
    assert max(recovered) <= (45 if FULL else 90), recovered


def kill_node(cluster):
    """SIGKILL the last worker node: its raylet, with which its workers end, and what had started it."""
    node = cluster.nodes.pop()
    with contextlib.suppress(StopIteration, OSError):  # one that was drained may have ended by itself; what started it stays
        os.kill(cluster.raylet(node), signal.SIGKILL)
    os.killpg(node.pid, signal.SIGKILL)
    node.wait(60)


def drain_node(cluster, *, seconds):
    """Have the cluster know that the last worker node will be taken away in so many seconds."""
    command = Path(f"/proc/{cluster.raylet(cluster.nodes[-1])}/cmdline").read_text().split("\0")
    name = next(part.partition("=")[2] for part in command if part.startswith(("--node_id=", "--node-id=")))
    drained = [str(RAY), "drain-node", "--address", cluster.address, "--node-id", name, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    drained += ["--reason-message", "spot", "--deadline-remaining-seconds", str(seconds)]
    subprocess.run(drained, env=cluster.environment, check=True, capture_output=True, timeout=60)
    return time.monotonic()


@pytest.mark.fault("T5")
@pytest.mark.filterwarnings("ignore")  # of MLflow's client, which uses what SQLAlchemy has deprecated
def test_what_no_restart_mends(begin, cluster, config, sampled, store_of, row, tmp_path):
    """A loss that is not finite ends the run at once; a fault of the program after `max_failures` restarts; both are FAILED in MLflow."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = ["--tracking.enabled", "true", "--tracking.uri", uri]
    infinite = [*tracking, "--train.learning_rate", "1e30", "--workspace.run", "infinite"]
    done = begin("train", *options(config, sampled, *long("T5"), *infinite)).ended()
    assert done.code == 1
    assert "the loss is not finite" in done.err
    publish_without_chips(store_of(sampled), "unreadable")
    buggy = begin("train", *options(config, sampled, *long("T5"), *tracking, "--workspace.run", "buggy", "--workspace.set", "unreadable"))
    done = buggy.ended()
    assert done.code == 1
    assert "training failed 4 times" in done.err
    client = MlflowClient(uri)
    [experiment] = [found for found in client.search_experiments() if found.name == "rayjobs"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {"infinite": "FAILED", "buggy": "FAILED"}
    row.lost, row.recovered = "the run, as it should be", "-"


def publish_without_chips(store, name):
    """Publish the set again with chips that are none, as only a fault of the program would."""
    sound = Artefact(store, "sets", "made-up").current()
    draft = Artefact(store, "sets", name).draft(sound.version)
    for entry in sound.files:
        draft.write(entry.name, b"no chips" if entry.name.startswith("chips/") else sound.read(entry.name))
    kept = {key: value for key, value in sound.manifest.items() if key not in {"kind", "name", "version", "created", "files"}}
    draft.publish(kept)


@pytest.mark.fault("T9")
def test_mining_is_killed_midway(begin, cluster, config, sampled, s3_server, store_of, unkilled, assert_same, row):
    """The worker dies when the mined table is on its way; the generation before stays in use, and the table is the same in the end."""
    run = "mining-killed"
    mining = Artefact(store_of(sampled), f"runs/{run}", "mining")
    with faulty_s3.before(s3_server.endpoint) as faulty:
        slow = lambda method, path: 8.0 if method == "PUT" and f"{run}/mining/generation-0004" in path else None  # noqa: E731
        faulty.rule = slow
        more = ["--train.max_failures", str(row.tries + 1), "--workspace.run", run]
        command = begin("train", *options(config, sampled, *long("T9"), *more), AWS_ENDPOINT_URL=faulty.endpoint)
        recovered = []
        for kill in range(row.tries):
            command.wait_until(lambda kill=kill: len(faulty.faults) > kill, "a mined table on its way", seconds=600)
            seen = len(faulty.faults)
            killed = kill_worker(cluster)
            assert mining.finished() == ["generation-0000"]
            assert mining.current().damage() is None
            if kill == row.tries - 1:
                faulty.rule = lambda _method, _path: None
            recovered.append(command.wait_for(CONTINUES, count=kill + 1)[0] - killed)
            faulty.faults = faulty.faults[:seen]
        assert command.ended().code == 0, command.err
    assert_same(what_was_learned(checkpoints_of(store_of, sampled, run)))
    whole = Artefact(store_of(sampled), f"runs/{unkilled}", "mining")
    for name in whole.finished():
        assert mining.at(name).read("mined.parquet") == whole.at(name).read("mined.parquet")
    row.lost, row.recovered = "nothing, tables byte-equal", f"{max(recovered):.1f} s at most"


@pytest.mark.fault("T10")
def test_uploads_that_fail(begin, config, sampled, s3_server, store_of, unkilled, assert_same, row):
    """Storage says SlowDown to all writes of two checkpoints and a mining table: the run goes on, and all is there in the end."""
    run = "uploads-fail"
    refused = tuple(f"{run}/{name}" for name in ("checkpoints/epoch-0002", "checkpoints/epoch-0003", "mining/generation-0004"))
    with faulty_s3.before(s3_server.endpoint) as faulty:
        begun = []

        def rule(method, path):
            if method != "PUT" or not any(name in path for name in refused):
                return None
            begun.append(time.monotonic())
            return None if "generation" in path and time.monotonic() - begun[0] > 60 else "503"

        faulty.rule = rule
        command = begin("train", *options(config, sampled, *long("T10"), "--workspace.run", run), AWS_ENDPOINT_URL=faulty.endpoint)
        assert command.ended().code == 0, command.err
    assert "checkpoint epoch-0002 failed: " in command.err
    assert "it is tried again with the next checkpoint" in command.err
    assert_same(what_was_learned(checkpoints_of(store_of, sampled, run)))
    mining = Artefact(store_of(sampled), f"runs/{run}", "mining")
    assert mining.finished() == Artefact(store_of(sampled), f"runs/{unkilled}", "mining").finished()
    row.tries = len(faulty.faults)
    row.lost, row.recovered = "no step, weights bit-equal", "-"


@pytest.mark.fault("T6")
@pytest.mark.filterwarnings("ignore")  # of MLflow's client, which uses what SQLAlchemy has deprecated
def test_the_tracking_server_goes_away(begin, cluster, config, sampled, row, tmp_path):
    """MLflow is killed in the middle of a run and comes back: no step is lost, and no metric."""
    from mlflow import MlflowClient

    port = free_port()
    more = ["--train.epochs", str(EPOCHS["T6"]), "--train.steps_per_epoch", "6", "--mining.every", "0", "--tracking.enabled", "true"]
    more += ["--tracking.uri", f"http://127.0.0.1:{port}", "--workspace.run", "tracked"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(tracking_server(port, tmp_path))
        command = begin("train", *options(config, sampled, *more))
        command.wait_for(r"epoch 2: loss")
        server.kill()
        server.wait()
        command.wait_for(r"MLflow is away")
        time.sleep(row.tries)
        stack.enter_context(tracking_server(port, tmp_path))
        done = command.ended(900)
        assert done.code == 0, done.err
        client = MlflowClient(f"http://127.0.0.1:{port}")
        [run] = client.search_runs([found.experiment_id for found in client.search_experiments()])
        assert run.info.status == "FINISHED"
        logged = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(entry.step for entry in logged) == list(range(1, EPOCHS["T6"] + 1))
    row.lost, row.recovered = "no step, no metric", "-"
