"""Against MLflow's own SQLite store, and against a client whose server is away for a while."""

from __future__ import annotations

import importlib.metadata
import threading

import pytest
from mlflow import MlflowClient

import rayjobs
from rayjobs.tracking import Dataset, Model, TrackingSection, register, tracked, tracker
from rayjobs.tracking.client import AwayError, Client
from rayjobs.tracking.entries import ENTRY, File, Metrics, Status
from rayjobs.tracking.spool import Spool, spool_of, spools_at
from rayjobs.tracking.tracker import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy has deprecated


def track(tmp_path, settings=None, **more):
    said = []
    block = tracked(
        settings or TrackingSection(),
        workspace=f"file:{tmp_path}",
        verb=more.pop("verb", "train"),
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


class Away:
    """Has MLflow not answer while `now` is true."""

    def __init__(self, monkeypatch):
        self.now = False
        ask = Client.ask

        def asked(client, call):
            if self.now:
                raise AwayError("refused\nand more")
            return ask(client, call)

        monkeypatch.setattr(Client, "ask", asked)


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


@pytest.mark.parametrize("uri", ["nowhere://server", "postgresql://127.0.0.1:9/mlflow"])  # the latter without its driver
def test_an_address_that_is_none_is_said_once_and_the_work_goes_on(tmp_path, uri):
    block, said = track(tmp_path, TrackingSection(uri=uri))
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=0)
        tracking.files({"a": b""})
    assert tracking.run_id is None
    assert len(said) == 1
    assert "it is not tracked" in said[0]
    assert not spools_at(uri)


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
        "is away (refused); what it misses is kept and told later",
        "answers again, and has been told all",
    ]
    assert not list((tmp_path / "home").rglob("*.json"))
    assert not list((tmp_path / "home" / ".cache" / "rayjobs" / "tracking").glob("*/*")), "nothing is left of a run that was told all"


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
        [first, _] = spool_of(f"sqlite:///{tmp_path}/mlflow.db", f"file:{tmp_path}", "train one").waiting()
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


def test_whatever_goes_wrong_with_tracking_the_work_goes_on(tmp_path, monkeypatch):
    block, said = track(tmp_path)

    def fail(*_arguments):
        raise RuntimeError("a fault of the program")

    with block as tracking:
        tracking.model(fail)
        monkeypatch.setattr(Spool, "waiting", fail)
        tracking.metrics({"x": 1.0}, step=1)
        tracking.files({"a": b""})
    assert len(said) == 1
    assert "it fails (a fault of the program), and the work goes on without it" in said[0]
    monkeypatch.setattr(tracker, "tracking_uri", fail)
    other, said = track(tmp_path)
    with other as tracking:
        tracking.metrics({"x": 1.0}, step=1)
    assert len(said) == 1


def test_rayjobs_need_not_be_installed(tmp_path, monkeypatch):
    """A job may bring it in its working directory, and then there is no distribution of that name."""

    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    block, said = track(tmp_path)
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=1)
    assert client_at(tmp_path).get_run(tracking.run_id).data.tags["rayjobs_version"] == rayjobs.__version__
    assert not said


@pytest.mark.usefixtures("at_once")
def test_runs_of_one_name_are_told_apart(tmp_path, away):
    """A training and a sweep may have one name; and each evaluation is a run of its own."""
    away.now = True
    verbs = ("train", "tune", "evaluate", "evaluate")
    for number, verb in enumerate(verbs):
        block, _ = track(tmp_path, verb=verb)
        with block as tracking:
            tracking.metrics({"x": float(number)}, step=0)
    away.now = False
    other, _ = track(tmp_path, run="other")
    with other:
        pass
    assert sorted(run.data.metrics["x"] for run in runs_at(tmp_path) if run.info.run_name == "one") == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.usefixtures("at_once")
def test_what_belongs_to_a_command_under_way_is_left_to_it(tmp_path, away):
    first, _ = track(tmp_path)
    with first as tracking:
        away.now = True
        tracking.metrics({"x": 1.0}, step=1)
        away.now = False
        other, told = track(tmp_path, run="other")
        with other:
            pass
        assert not told
        assert len(spools_at(f"sqlite:///{tmp_path}/mlflow.db")) == 1
    assert not spools_at(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.usefixtures("at_once")
def test_two_commands_of_one_run_do_not_mix_their_entries(tmp_path, away):
    away.now = True
    blocks = [track(tmp_path, resume=None)[0] for _ in range(2)]
    with blocks[0] as one, blocks[1] as two:
        one.metrics({"x": 1.0}, step=1)
        two.metrics({"x": 2.0}, step=1)
    found = [[entry.kind for entry in kept(spool)] for spool in spools_at(f"sqlite:///{tmp_path}/mlflow.db")]
    assert found == [["begin", "parameters", "metrics", "status"]] * 2


def test_a_run_that_was_deleted_is_begun_anew(tmp_path):
    block, said = track(tmp_path, resume="0" * 32)
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=1)
    [run] = runs_at(tmp_path)
    assert (tracking.run_id, run.data.metrics) == (run.info.run_id, {"x": 1.0})
    assert not said


@pytest.mark.usefixtures("at_once")
def test_a_beginning_that_was_told_before_is_not_told_twice(tmp_path, monkeypatch):
    """MLflow made the run, and the answer was lost."""
    lost, ask = [], Client.ask

    def asked(client, call):
        found = ask(client, call)
        if not lost:
            lost.append(found)
            raise AwayError("the answer is lost")
        return found

    monkeypatch.setattr(Client, "ask", asked)
    block, _ = track(tmp_path)
    with block as tracking:
        tracking.metrics({"x": 1.0}, step=1)
    [run] = runs_at(tmp_path)
    assert lost == [run.info.run_id]
    assert run.info.status == "FINISHED"


@pytest.mark.usefixtures("at_once")
def test_a_model_is_registered_though_mlflow_was_away_all_the_time(tmp_path, away):
    away.now = True
    block, _ = track(tmp_path)
    with block:
        pass
    said = []
    names = {"workspace": f"file:{tmp_path}", "run": "one", "run_id": None, "say": said.append}
    model = Model(name="places", fingerprint="abc", alias="champion")
    register(TrackingSection(), **names, files=lambda: {"data/encoder/model.json": b"{}"}, model=model)
    away.now = False
    other, _ = track(tmp_path, run="other")
    with other:
        pass
    found = client_at(tmp_path).get_model_version_by_alias("places", "champion")
    assert found.tags["encoder_fingerprint"] == "abc"
    assert client_at(tmp_path).get_run(found.run_id).info.run_name == "one"


def test_numbers_and_bytes_are_kept_as_they_are():
    for values in ({"x": float("nan"), "y": float("inf")}, {"x": -0.1}):
        entry = Metrics(values=values, step=3)
        again = ENTRY.validate_json(ENTRY.dump_json(entry))
        assert str(again) == str(entry)
    file = File(name="a/b.png", data=bytes(range(256)))
    assert ENTRY.validate_json(ENTRY.dump_json(file)) == file
    assert ENTRY.validate_json(ENTRY.dump_json(Status(status="KILLED", at_ms=5))) == Status(status="KILLED", at_ms=5)


def kept(spool):
    return [spool.read(path) for path in spool.waiting()]


def test_the_end_of_interrupted_work_is_written_down_before_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker.time, "sleep", lambda _: pytest.fail("it waits"))
    answer, told = threading.Event(), []

    def asked(_client, _call):
        answer.wait(60)
        told.append("status")
        return "one"

    monkeypatch.setattr(Client, "ask", asked)
    spool = Spool(tmp_path / "spool")
    slow = Tracker(Client("x"), spool, pytest.fail, run_id="one")
    monkeypatch.setattr(tracker, "_HASTE_S", 0.05)
    slow.drop("FAILED")
    assert [entry.status for entry in kept(spool)] == ["FAILED"], "a server that is slow to answer has not been told"
    assert spool.run_id == "one"
    answer.set()
    [ending] = [thread for thread in threading.enumerate() if thread.name == "tracking"]
    ending.join(60)
    assert told == ["status"]
    assert not spool.folder.exists()


def test_interrupted_work_asks_no_server_that_is_away(tmp_path, monkeypatch, away):
    spool = Spool(tmp_path / "spool")
    interrupted = Tracker(Client("x"), spool, lambda _: None, run_id="one")
    away.now = True
    interrupted.metrics({"x": 1.0}, step=0)
    monkeypatch.setattr(Client, "ask", lambda *_: pytest.fail("it asks"))
    interrupted.drop("FAILED")
    assert [entry.kind for entry in kept(spool)] == ["metrics", "status"]
    interrupted.release()


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
