from __future__ import annotations

import pytest
from mlflow import MlflowClient

from rayjobs import tracking
from rayjobs.tracking import Model, TrackingSection, spools_at, tracked
from rayjobs.tracking.client import AwayError, Client

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy has deprecated


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return TrackingSection(uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_a_run_that_was_left_open_is_closed_and_one_that_ended_stays(settings):
    client = MlflowClient(settings.uri)
    experiment = client.create_experiment("x")
    left, ended = (client.create_run(experiment).info.run_id for _ in range(2))
    client.set_terminated(ended, "FINISHED")
    for run_id in (left, ended, None):
        tracking.close(settings, workspace="file:/x", run="x", run_id=run_id, status="KILLED", say=pytest.fail)
    assert [client.get_run(run_id).info.status for run_id in (left, ended)] == ["KILLED", "FINISHED"]
    assert not tracking.is_open(settings, workspace="file:/x", run_id=left)


def test_a_run_cannot_be_closed_now_and_is_closed_later(settings, monkeypatch):
    client = MlflowClient(settings.uri)
    left = client.create_run(client.create_experiment("x")).info.run_id
    said = []
    with monkeypatch.context() as without:
        without.setattr(Client, "ask", _away)
        tracking.close(settings, workspace="file:/x", run="x", run_id=left, status="KILLED", say=said.append)
    assert client.get_run(left).info.status == "RUNNING"
    assert len(spools_at(settings.uri)) == 1
    with tracked(settings, workspace="file:/x", verb="train", run="next", parameters={}, say=said.append):
        pass
    assert client.get_run(left).info.status == "KILLED"


def _away(*_arguments):
    raise AwayError("refused")


def test_the_history_of_a_run(settings, tmp_path):
    with tracked(settings, workspace=f"file:{tmp_path}", verb="train", run="x", parameters={}, say=pytest.fail, tags={"a": "b"}) as tracker:
        tracker.metrics({"train/loss": 2.0, "val/recall@10": 0.5}, step=1)
        tracker.metrics({"train/loss": 1.0}, step=2)
    found = tracking.history(settings, workspace=f"file:{tmp_path}", run_id=tracker.run_id)
    assert found == {"train/loss": [(1, 2.0), (2, 1.0)], "val/recall_at_10": [(1, 0.5)]}
    assert tracking.history(settings, workspace=f"file:{tmp_path}", run_id="no such run") == {}


def test_a_run_that_was_not_tracked_cannot_be_registered(settings):
    said = []
    model = Model(name="places", fingerprint="0")
    tracking.register(settings, workspace="file:/x", run="one", run_id=None, files=pytest.fail, model=model, say=said.append)
    assert said == ["tracking         run one was not tracked; it cannot be registered as places"]
    off = TrackingSection(enabled=False)
    tracking.register(off, workspace="file:/x", run="one", run_id="1", files=pytest.fail, model=model, say=pytest.fail)
