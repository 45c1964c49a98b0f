"""Where MLflow keeps its runs: whether it is there, and takes what is logged."""

from __future__ import annotations

import functools
import os
import sqlite3
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from rayjobs.doctor.checks import Check, Look, Patient, caution, fault, ok
from rayjobs.storage import open_store
from rayjobs.tracking import connected, spools_at, tracking_uri

if TYPE_CHECKING:
    from rayjobs.tracking import TrackingSection

_SQLITE = "sqlite:///"
_PATIENCE_S = 10
_SERVER = "start the server, or correct tracking.uri or MLFLOW_TRACKING_URI; work goes on without it, and what it misses is told later"
_DENIED = {401, 403}


def looks(patient: Patient) -> dict[str, Look]:
    """Return what to look at."""
    if not patient.tracking.enabled:
        return {"tracking/server": lambda: ok("tracking/server", "tracking.enabled is false: nothing is logged")}
    workspace = "" if patient.experiment is None else open_store(patient.experiment.workspace.uri).uri
    return {
        "tracking/server": functools.partial(server, patient.tracking, workspace),
        "tracking/kept": functools.partial(kept, patient.tracking, workspace),
    }


def kept(settings: TrackingSection, workspace: str) -> Check:
    """Count what could not be told yet, for a workspace by its URI."""
    found = [len(spool.waiting()) for spool in spools_at(tracking_uri(settings, workspace, make=False))]
    if not found:
        return ok("tracking/kept", "nothing waits for MLflow on this machine")
    return caution(
        "tracking/kept",
        f"{sum(found):,} entries of {len(found):,} runs wait for MLflow on this machine",
        "the next train, tune or evaluate that it answers tells them, unless a command is at it already",
    )


def server(settings: TrackingSection, workspace: str) -> Check:
    """Look at the place that the settings name, for a workspace by its URI."""
    uri = tracking_uri(settings, workspace, make=False)
    if uri.startswith(_SQLITE):
        return database(Path(uri.removeprefix(_SQLITE)))
    if uri.startswith(("http://", "https://")):
        answer = _answer(uri)
        if isinstance(answer, Check):
            return answer
    return _logged(settings, uri)


def database(path: Path) -> Check:
    """Look at a database of SQLite without changing it."""
    if not path.exists():
        above = next(folder for folder in path.parents if folder.exists())
        if not os.access(above, os.W_OK):
            return fault("tracking/server", f"{above} cannot be written, where MLflow's database would be made", "set tracking.uri")
        return ok("tracking/server", f"SQLite: the first run makes {path}")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        [(runs,)] = connection.execute("select count(*) from runs")
    except sqlite3.Error as error:
        return fault("tracking/server", f"{path} is no database of MLflow ({error})", "move it away: the next run makes a new one")
    finally:
        connection.close()
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        return fault("tracking/server", f"{path} cannot be written", "allow it, or set tracking.uri")
    return ok("tracking/server", f"SQLite: {path} has {runs:,} runs")


def _answer(uri: str) -> Check | None:
    """Ask a server for its health, briefly; return what is wrong."""
    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=_PATIENCE_S)
    except httpx.HTTPError as error:
        return fault("tracking/server", f"{uri} does not answer ({error or type(error).__name__})", _SERVER)
    if answer.status_code in _DENIED:
        return None  # a server that asks who one is; MLflow's client knows the variables for that
    return None if answer.is_success else fault("tracking/server", f"{uri} answers {answer.status_code} to /health", _SERVER)


def _logged(settings: TrackingSection, uri: str) -> Check:
    """Make a run, or where the experiment is yet to be made an experiment, and delete it again."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  it takes seconds to import

    client = connected(uri)
    try:
        found = client.get_experiment_by_name(settings.experiment)
    except MlflowException as error:
        remedy = "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; check tracking.uri"
        return fault("tracking/server", f"{uri} cannot be read: {str(error).partition(chr(10))[0]}", remedy)
    try:
        if found is None:  # a name that nobody will want: MLflow keeps the names of deleted experiments
            client.delete_experiment(client.create_experiment(f"rayjobs-doctor-{uuid.uuid4().hex}"))
        else:
            client.delete_run(client.create_run(found.experiment_id, run_name="rayjobs doctor").info.run_id)
    except MlflowException as error:
        remedy = f"ask for the right to write to the experiment {settings.experiment!r}, or name another with --tracking.experiment"
        return fault("tracking/server", f"{uri} takes nothing: {str(error).partition(chr(10))[0]}", remedy)
    return ok("tracking/server", f"{uri} answers, and takes what is logged")
