"""Mining beside training where storage fails or training has gone on: it is said, done without, and read by rank 0 alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import ray

from rayjobs.errors import StorageError
from rayjobs.storage import Artefact, Lease, Version
from rayjobs.train import background
from rayjobs.train.background import BackgroundMining, mine_checkpoint
from rayjobs.train.mine import Mined
from rayjobs.train.state import mined_table, save
from tests.small_run import COUNT, IDS, opened


@pytest.fixture
def run(tmp_path):
    uri = f"file:{tmp_path}/workspace"
    workspace = opened(uri, "").workspace
    with Lease(workspace.store, workspace.lease) as lease:
        yield opened(uri, lease.token)


def refuse(*_):
    raise StorageError("the store said 503 SlowDown")


def reasons(run):
    return [message["reason"] for message in run.told if message["kind"] == "mining_failed"]


def arrived(monkeypatch, come):
    """Return mining whose task has come, and ended as `come` says."""
    monkeypatch.setattr(background.ray, "wait", lambda tasks, **_: (tasks, []))
    monkeypatch.setattr(background.ray, "get", lambda _: come())

    def having(run):
        mining = BackgroundMining(run.plan)
        mining._task = object()
        return mining

    return having


def table(run, generation):
    candidates = (np.arange(COUNT)[:, None] + [1, 2]) % COUNT
    scores = np.ones((COUNT, 2), np.float32)
    mined = Mined(candidates=candidates, scores=scores, positives=candidates[:, :0], positive_scores=scores[:, :0], refused={}, search="")
    return candidates, mined_table(run.plan, mined, IDS, generation=generation, encoder_fingerprint="f")


def test_storage_that_does_not_tell_the_newest_checkpoint_is_said(run, monkeypatch):
    monkeypatch.setattr(Artefact, "current", refuse)
    mining = BackgroundMining(run.plan)
    mining.begin(run.state)
    assert mining._task is None
    assert reasons(run) == ["the store said 503 SlowDown"]


def test_a_table_that_cannot_be_read_back_is_said_and_done_without(run, monkeypatch):
    having = arrived(monkeypatch, lambda: table(run, 1)[1])
    monkeypatch.setattr(Version, "read", refuse)
    having(run).take(run.state, IDS)
    assert reasons(run) == ["the store said 503 SlowDown"]
    assert (run.state.mined, run.state.generation) == (None, None)


def test_rank_0_hands_what_was_mined_to_the_others(run, monkeypatch):
    candidates, made = table(run, 1)
    handed = []
    monkeypatch.setattr(background, "from_rank_zero", lambda value: handed.append(value) or value)
    mining = arrived(monkeypatch, lambda: made)(run)
    mining.take(run.state, IDS)
    np.testing.assert_array_equal(run.state.mined.negatives, candidates)
    assert run.state.generation == 1
    other = SimpleNamespace(mined=None, generation=None, epoch=2)
    monkeypatch.setattr(background, "rank", lambda: 1)
    monkeypatch.setattr(background, "from_rank_zero", lambda _: handed[0])
    monkeypatch.setattr(Artefact, "at", refuse)  # a rank that reads would fail
    mining.take(other, IDS)
    np.testing.assert_array_equal(other.mined.negatives, candidates)
    assert other.generation == 1


def test_a_checkpoint_that_was_removed_while_its_task_waited_is_said_and_training_goes_on(run, monkeypatch):
    for epoch in (1, 2, 3):
        run.state.epoch = epoch
        save(run.plan, run.state, run.objective)
    assert "epoch-0001" not in run.workspace.checkpoints.finished()

    def task():
        try:
            return mine_checkpoint._function(run.plan, "epoch-0001")
        except StorageError as error:
            raise ray.exceptions.RayTaskError("mine_checkpoint", "Traceback", error) from None

    mining = arrived(monkeypatch, task)(run)
    mining.take(run.state, IDS)
    assert reasons(run) == ["checkpoint epoch-0001 was removed before mining read it; raise train.keep_checkpoints"]
    assert mining._task is None, "the next one may begin"
