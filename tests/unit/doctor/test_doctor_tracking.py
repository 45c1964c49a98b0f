"""Where MLflow keeps its runs: real databases, and servers that do not answer."""

from __future__ import annotations

import http.server
import sqlite3
import threading

import pytest
from mlflow import MlflowClient

from rayjobs.doctor import tracking
from rayjobs.doctor.checks import Patient, looked
from rayjobs.tracking import TrackingSection
from rayjobs.tracking.entries import Metrics
from rayjobs.tracking.spool import spool_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy has deprecated


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", f"{tmp_path}-home")


def test_what_could_not_be_told_is_counted():
    settings = TrackingSection(uri="http://127.0.0.1:9")
    assert tracking.kept(settings, "").state == "ok"
    for run in ("one", "two"):
        spool = spool_of(settings.uri, "file:/x", run)
        spool.claim()
        for step in range(2):
            spool.append(Metrics(values={"x": 1.0}, step=step))
        spool.release(forget=True)
    check = tracking.kept(settings, "")
    assert (check.state, check.finding) == ("caution", "4 entries of 2 runs wait for MLflow on this machine")


def test_a_database_that_is_to_be_made_is_not_made(tmp_path):
    check = tracking.server(TrackingSection(), f"file:{tmp_path}/new/workspace")
    assert check.state == "ok"
    assert f"the first run makes {tmp_path}/new/workspace/mlflow.db" in check.finding
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_of_mlflow_is_told(tmp_path):
    (tmp_path / "mlflow.db").write_text("hello, this is no database")
    assert tracking.server(TrackingSection(), f"file:{tmp_path}").state == "fault"
    (tmp_path / "mlflow.db").unlink()
    sqlite3.connect(tmp_path / "mlflow.db").close()
    assert tracking.server(TrackingSection(), f"file:{tmp_path}").state == "fault"


@pytest.mark.slow
def test_a_store_is_written_to_and_shows_nothing_of_it(tmp_path):
    uri, settings = f"sqlite:///{tmp_path}/mlflow.db", TrackingSection()
    assert tracking._logged(settings, uri).state == "ok"
    client = MlflowClient(uri)
    assert [found.name for found in client.search_experiments()] == ["Default"]
    experiment = client.create_experiment("rayjobs", f"{tmp_path}/files")
    assert tracking._logged(settings, uri).state == "ok"
    assert client.search_runs([experiment]) == []
    assert "has 1 runs" in tracking.server(settings, f"file:{tmp_path}").finding


def test_a_server_that_is_not_there_is_told_without_its_password():
    settings = TrackingSection(uri="http://me:secret-word@127.0.0.1:9")
    [check] = looked({"tracking/server": lambda: tracking.server(settings, "")})
    assert check.state == "fault"
    assert "does not answer" in check.finding
    assert "secret-word" not in str(check)


def test_a_server_that_is_another_is_told():
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501 to all
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        check = tracking.server(TrackingSection(uri=f"http://127.0.0.1:{server.server_port}"), "")
    finally:
        server.shutdown()
        server.server_close()
    assert (check.state, "answers 501" in check.finding) == ("fault", True)


def test_no_tracking_is_no_fault(tmp_path):
    patient = Patient(experiment=None, ray=None, tracking=TrackingSection(enabled=False), folder=tmp_path, say=lambda _: None)
    [check] = looked(tracking.looks(patient))
    assert check.state == "ok"
