from __future__ import annotations

import pytest
from mlflow import MlflowClient

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
