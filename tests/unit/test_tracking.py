from __future__ import annotations

import threading

import pytest
from mlflow import MlflowClient

from rayjobs import tracking
from rayjobs.tracking import TrackingSection, tracked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy has deprecated


def track(tmp_path, settings=None, **more):
    said = []
    block = tracked(
        settings or TrackingSection(),
        workspace=f"file:{tmp_path}",
        run="one",
        parameters={"loss": {"margin": 0.2}},
        say=said.append,
        **more,
    )
    return block, said


def log_and_fail(block, seen):
    with block as tracker:
        seen.append(tracker.run_id)
        tracker.metrics({"train/loss": 2.0}, step=1)
        tracker.tags({"set_version": "abc"})
        tracker.files({"report.json": b"{}"})
        raise RuntimeError("the work failed")


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_is_in_the_workspace_s_database_and_goes_on_when_resumed(tmp_path):
    block, said = track(tmp_path)
    seen = []
    with pytest.raises(RuntimeError, match="the work failed"):
        log_and_fail(block, seen)
    [run_id] = seen
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.get_run(run_id)
    assert (found.info.status, found.data.params, found.data.metrics) == ("FAILED", {"loss.margin": "0.2"}, {"train/loss": 2.0})
    assert found.data.tags["set_version"] == "abc"
    again, _ = track(tmp_path, resume=run_id)
    with again as tracker:
        tracker.metrics({"train/loss": 1.0}, step=2)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [entry.value for entry in client.get_metric_history(run_id, "train/loss")] == [2.0, 1.0]
    assert not said


def test_without_a_server_the_work_goes_on_and_the_person_is_told_once(tmp_path):
    block, said = track(tmp_path, TrackingSection(uri="nowhere://server"))
    with block as tracker:
        tracker.metrics({"x": 1.0}, step=0)
        tracker.files({"a": b""})
    assert tracker.run_id is None
    assert len(said) == 1
    assert "not tracked" in said[0]


def test_tracking_can_be_switched_off(tmp_path):
    block, said = track(tmp_path, TrackingSection(enabled=False))
    with block as tracker:
        tracker.metrics({"x": 1.0}, step=0)
    assert not said
    assert not (tmp_path / "mlflow.db").exists()


class Flaky:
    """A client whose server is away for a while."""

    def __init__(self):
        self.away, self.told = False, []

    def log_batch(self, _run_id, metrics):
        if self.away:
            raise ConnectionError("refused\nand more")
        self.told += [entry.step for entry in metrics]

    def set_terminated(self, _run_id, status):
        if self.away:
            raise ConnectionError("refused")
        self.told.append(status)


def test_what_a_server_misses_is_told_when_it_answers_again(monkeypatch):
    monkeypatch.setattr(tracking, "_AGAIN_S", 0.0)
    monkeypatch.setattr(tracking.time, "sleep", lambda _: None)
    client, said = Flaky(), []
    tracker = tracking.Tracker(client, "run", said.append)
    for step in range(6):
        client.away = step in {2, 3}
        tracker.metrics({"x": 1.0}, step=step)
    tracker.end("FINISHED")
    assert client.told == [0, 1, 2, 3, 4, 5, "FINISHED"]
    assert [line.split("MLflow ")[1] for line in said] == [
        "failed (refused); what it misses is kept and told later",
        "answers again, and has been told all",
    ]


def interrupted(client):
    said = []
    tracker = tracking.Tracker(client, "run", said.append)
    tracker.metrics({"x": 1.0}, step=0)
    tracker.drop("FAILED")
    return said


def test_work_that_was_interrupted_waits_for_no_server(monkeypatch):
    monkeypatch.setattr(tracking.time, "sleep", lambda _: pytest.fail("it waits"))
    monkeypatch.setattr(tracking, "_AGAIN_S", 0.0)
    client = Flaky()
    client.away = True
    assert len(interrupted(client)) == 1
    client.away = False
    monkeypatch.setattr(tracking, "_HASTE_S", 60.0)
    assert not interrupted(client)
    assert client.told == [0, "FAILED"]
    monkeypatch.setattr(tracking, "_HASTE_S", 0.0)
    never = threading.Event()
    monkeypatch.setattr(client, "set_terminated", lambda *_: never.wait())
    interrupted(client)
    never.set()


def test_an_interrupt_leaves_the_block_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.Tracker, "end", lambda *_: pytest.fail("it waits"))
    monkeypatch.setattr(tracking, "_HASTE_S", 60.0)
    block, _ = track(tmp_path)
    seen = []

    def interrupt(tracker):
        seen.append(tracker.run_id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), block as tracker:
        interrupt(tracker)
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(seen[0]).info.status == "FAILED"


def test_a_server_that_stays_away_is_waited_for_a_little(monkeypatch):
    monkeypatch.setattr(tracking, "_AGAIN_S", 0.0)
    monkeypatch.setattr(tracking, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(tracking.time, "sleep", lambda _: None)
    client, said = Flaky(), []
    client.away = True
    tracker = tracking.Tracker(client, "run", said.append)
    tracker.metrics({"x": 1.0}, step=0)
    tracker.end("FAILED")
    assert not client.told
    assert "2 entries of this run are lost to it" in said[-1]


def test_what_mlflow_never_takes_keeps_nothing_back(tmp_path):
    said = []
    settings = TrackingSection(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.tracked(settings, workspace=f"file:{tmp_path}", run="x", parameters={}, say=said.append, tags={"a": "b"}) as tracker:
        tracker.metrics({"what*is this?": 1.0}, step=0)
        tracker.metrics({"val/recall@10": 0.5}, step=1)
    assert [line for line in said if "left out" in line]
    found = tracking.history(settings, workspace=f"file:{tmp_path}", run_id=tracker.run_id)
    assert found == {"val/recall_at_10": [(1, 0.5)]}


def test_a_run_that_was_left_open_is_closed_and_one_that_ended_stays(tmp_path):
    settings = TrackingSection(uri=f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(settings.uri)
    experiment = client.create_experiment("x")
    left, ended = (client.create_run(experiment).info.run_id for _ in range(2))
    client.set_terminated(ended, "FINISHED")
    for run_id in (left, ended, "no-such-run"):
        tracking.close(settings, workspace=f"file:{tmp_path}", run_id=run_id, status="KILLED")
    assert [client.get_run(run_id).info.status for run_id in (left, ended)] == ["KILLED", "FINISHED"]
