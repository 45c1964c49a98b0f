"""Against MLflow's own SQLite store, and against a client whose server is away for a while."""

from __future__ import annotations

import threading

import pytest
from mlflow import MlflowClient

from rayjobs.tracking import Dataset, TrackingSection, tracked, tracker
from rayjobs.tracking.spool import spool_of, spools_at
from rayjobs.tracking.tracker import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy has deprecated


def track(tmp_path, settings=None, **more):
    said = []
    block = tracked(
        settings or TrackingSection(),
        workspace=f"file:{tmp_path}",
        run=more.pop("run", "one"),
        parameters={"loss": {"margin": 0.2}},
        say=said.append,
        **more,
    )
    return block, said


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(tracker, "_AGAIN_S", 0.0)
    monkeypatch.setattr(tracker, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(tracker.time, "sleep", lambda _: None)


_CALLS = ("get_experiment_by_name", "create_run", "log_batch", "set_tag", "log_artifact", "set_terminated", "update_run", "get_run")


class Away:
    """Keeps all runs of MLflow's client from their server while `now` is true."""

    def __init__(self, monkeypatch):
        self.now = False
        for name in _CALLS:
            monkeypatch.setattr(MlflowClient, name, self._of(getattr(MlflowClient, name)))

    def _of(self, method):
        def called(*arguments, **named):
            if self.now:
                raise ConnectionError("refused\nand more")
            return method(*arguments, **named)

        return called


@pytest.fixture
def away(monkeypatch):
    return Away(monkeypatch)


def client_at(tmp_path):
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def runs_at(tmp_path):
    client = client_at(tmp_path)
    return client.search_runs([found.experiment_id for found in client.search_experiments()])


def log_and_fail(block, seen):
    with block as tracking:
        seen.append(tracking.run_id)
        tracking.metrics({"train/loss": 2.0}, step=1)
        tracking.tags({"set_version": "abc"})
        tracking.files({"report.json": b"{}"})
        raise RuntimeError("the work failed")


def test_a_run_is_in_the_workspace_s_database_and_goes_on_when_resumed(tmp_path):
    opened = []
    block, said = track(tmp_path, opened=opened.append, dataset=Dataset(name="places", digest="0abc", address="file:/sets"))
    seen = []
    with pytest.raises(RuntimeError, match="the work failed"):
        log_and_fail(block, seen)
    [run_id] = seen
    assert opened == [run_id]
    client = client_at(tmp_path)
    found = client.get_run(run_id)
    assert (found.info.status, found.data.params, found.data.metrics) == ("FAILED", {"loss.margin": "0.2"}, {"train/loss": 2.0})
    assert found.data.tags["set_version"] == "abc"
    assert {"mlflow.user", "mlflow.source.name", "rayjobs_version"} <= found.data.tags.keys()
    [used] = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("places", "0abc")
    assert [file.path for file in client.list_artifacts(run_id)] == ["report.json"]
    again, _ = track(tmp_path, resume=run_id)
    with again as tracking:
        tracking.metrics({"train/loss": 1.0}, step=2)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [entry.value for entry in client.get_metric_history(run_id, "train/loss")] == [2.0, 1.0]
    assert not said


def test_an_address_that_is_none_is_said_once_and_the_work_goes_on(tmp_path):
    block, said = track(tmp_path, TrackingSection(uri="nowhere://server"))
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=0)
        tracking.files({"a": b""})
    assert tracking.run_id is None
    assert len(said) == 1
    assert "not tracked" in said[0]
    assert not spools_at("nowhere://server")


def test_tracking_can_be_switched_off(tmp_path):
    block, said = track(tmp_path, TrackingSection(enabled=False))
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=0)
    assert not said
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.usefixtures("at_once")
def test_what_a_server_misses_is_told_when_it_answers_again(tmp_path, away):
    block, said = track(tmp_path)
    with block as tracking:
        for step in range(6):
            away.now = step in {2, 3}
            tracking.metrics({"x": float(step)}, step=step)
            if step == 3:
                tracking.files({"pictures/a.png": b"a picture"})
    [run] = runs_at(tmp_path)
    assert run.info.status == "FINISHED"
    client = client_at(tmp_path)
    assert [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, "x")] == [(n, float(n)) for n in range(6)]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/a.png"]
    assert [line.split("MLflow ")[1] for line in said] == [
        "failed (refused); what it misses is kept and told later",
        "answers again, and has been told all",
    ]
    assert not list((tmp_path / "home").rglob("*.json"))


@pytest.mark.usefixtures("at_once")
def test_a_run_of_which_the_server_never_heard_is_told_by_the_next_command(tmp_path, away):
    away.now = True
    block, said = track(tmp_path)
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=1)
        tracking.files({"a": bytes(range(256))})
    assert tracking.run_id is None
    assert "5 entries of this run are kept" in said[-1]  # begin, parameters, metrics, file, end
    away.now = False
    other, told = track(tmp_path, run="other")
    with other:
        pass
    assert "5 entries of other runs" in told[-1]
    found = {run.info.run_name: run for run in runs_at(tmp_path)}
    assert {name: run.info.status for name, run in found.items()} == {"one": "FINISHED", "other": "FINISHED"}
    assert (found["one"].data.metrics, found["one"].data.params) == ({"x": 1.0}, {"loss.margin": "0.2"})
    assert not spools_at(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.usefixtures("at_once")
def test_a_run_begun_without_a_server_goes_on_as_the_same_run(tmp_path, away):
    away.now = True
    block, _ = track(tmp_path)
    with pytest.raises(RuntimeError, match="the work failed"):
        log_and_fail(block, [])
    away.now = False
    other, _ = track(tmp_path, run="other")  # another command tells MLflow of it
    with other:
        pass
    opened = []
    again, _ = track(tmp_path, opened=opened.append)
    with again as tracking:
        tracking.metrics({"train/loss": 1.0}, step=2)
    [run] = [run for run in runs_at(tmp_path) if run.info.run_name == "one"]
    assert tracking.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    assert [entry.step for entry in client_at(tmp_path).get_metric_history(run.info.run_id, "train/loss")] == [1, 2]


@pytest.mark.usefixtures("at_once")
def test_a_kept_entry_that_is_damaged_keeps_nothing_back(tmp_path, away):
    block, said = track(tmp_path)
    with block as tracking:
        away.now = True
        tracking.metrics({"x": 1.0}, step=1)
        tracking.metrics({"x": 2.0}, step=2)
        [first, _] = spool_of(f"sqlite:///{tmp_path}/mlflow.db", f"file:{tmp_path}", "one").waiting()
        first.write_bytes(first.read_bytes()[:20])
        away.now = False
    assert [line for line in said if "is damaged" in line and str(first) in line]
    assert [entry.step for entry in client_at(tmp_path).get_metric_history(tracking.run_id, "x")] == [2]


@pytest.mark.usefixtures("at_once")
def test_where_nothing_can_be_kept_the_work_goes_on(tmp_path, away):
    (tmp_path / "home").write_text("no folder")
    away.now = True
    block, said = track(tmp_path)
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=1)
    assert [line for line in said if "cannot be kept either" in line]


class Flaky:
    """A client whose server is away for a while."""

    def __init__(self):
        self.away, self.told = False, []

    def log_batch(self, _run_id, metrics):
        if self.away:
            raise ConnectionError("refused")
        self.told += [entry.step for entry in metrics]

    def set_terminated(self, _run_id, status, _at):
        if self.away:
            raise ConnectionError("refused")
        self.told.append(status)


def interrupted(client):
    said = []
    tracking = Tracker(client, spool_of("there", "here", "run"), said.append, run_id="run")
    tracking.metrics({"x": 1.0}, step=0)
    tracking.drop("FAILED")
    return said


def test_work_that_was_interrupted_waits_for_no_server(monkeypatch):
    monkeypatch.setattr(tracker.time, "sleep", lambda _: pytest.fail("it waits"))
    client = Flaky()
    client.away = True
    assert len(interrupted(client)) == 1
    [spool] = spools_at("there")
    assert [spool.read(path).kind for path in spool.waiting()] == ["metrics", "status"]
    for path in spool.waiting():
        path.unlink()
    client.away = False
    monkeypatch.setattr(tracker, "_HASTE_S", 60.0)
    assert not interrupted(client)
    assert client.told == [0, "FAILED"]
    monkeypatch.setattr(tracker, "_HASTE_S", 0.0)
    never = threading.Event()
    monkeypatch.setattr(client, "set_terminated", lambda *_: never.wait())
    interrupted(client)
    never.set()


def test_an_interrupt_leaves_the_block_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "end", lambda *_: pytest.fail("it waits"))
    monkeypatch.setattr(tracker, "_HASTE_S", 60.0)
    block, _ = track(tmp_path)
    seen = []

    def interrupt(tracking):
        seen.append(tracking.run_id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), block as tracking:
        interrupt(tracking)
    assert client_at(tmp_path).get_run(seen[0]).info.status == "FAILED"


def test_what_mlflow_never_takes_keeps_nothing_back(tmp_path):
    block, said = track(tmp_path)
    with block as tracking:
        tracking.metrics({"what*is this?": 1.0}, step=0)
        tracking.metrics({"val/recall@10": 0.5}, step=1)
    assert [line for line in said if "left out" in line]
    assert client_at(tmp_path).get_run(tracking.run_id).data.metrics == {"val/recall_at_10": 0.5}
