"""Runs that MLflow knows already: what they measured and whether they are open; how to close one, and register what it learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayjobs.tracking.client import AwayError, Client, RefusedError
from rayjobs.tracking.entries import Status
from rayjobs.tracking.section import tracking_uri
from rayjobs.tracking.tracker import tracker_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow import MlflowClient

    from rayjobs.tracking.entries import Model, RunStatus
    from rayjobs.tracking.section import TrackingSection

History = dict[str, list[tuple[int, float]]]


def history(settings: TrackingSection, *, workspace: str, run_id: str) -> History:
    """Return (step, value) of every metric of an MLflow run, by name; empty where tracking is off or cannot be read."""
    if not settings.enabled:
        return {}
    try:
        return Client(tracking_uri(settings, workspace)).ask(lambda client: _history(client, run_id))
    except (AwayError, RefusedError, OSError):  # whatever a tracking server does, work goes on
        return {}


def _history(client: MlflowClient, run_id: str) -> History:
    names = sorted(client.get_run(run_id).data.metrics)
    return {name: [(entry.step, entry.value) for entry in client.get_metric_history(run_id, name)] for name in names}


def is_open(settings: TrackingSection, *, workspace: str, run_id: str) -> bool:
    """Whether a run was begun and not ended; False where tracking is off or does not answer."""
    return settings.enabled and _status(settings, workspace, run_id) == "RUNNING"


def close(
    settings: TrackingSection, *, workspace: str, run: str, run_id: str | None, status: RunStatus, say: Callable[[str], None]
) -> None:
    """Close a training run that another process left open; where MLflow is away, have a later command close it.

    Args:
        settings: the experiment's tracking section.
        workspace: the workspace's URI.
        run: name of the run.
        run_id: its id, if the workspace knows it.
        status: how it ended.
        say: tells the person what is wrong with MLflow.
    """
    tracker = tracker_of(settings, workspace=workspace, verb="train", run=run, say=say, run_id=run_id)
    if tracker.waits or (tracker.run_id and _status(settings, workspace, tracker.run_id) in {"RUNNING", None}):
        tracker.tell(Status(status=status))
    tracker.release()


def register(
    settings: TrackingSection,
    *,
    workspace: str,
    run: str,
    run_id: str | None,
    files: Callable[[], Mapping[str, bytes]],
    model: Model,
    say: Callable[[str], None],
) -> None:
    """Make what a finished training run has learned a version of a registered model.

    Args:
        settings: the experiment's tracking section.
        workspace: the workspace's URI.
        run: name of the run.
        run_id: its id, if the workspace knows it.
        files: returns the files of an MLflow model, by name; they are logged anew, since whoever trained may not have come to it.
        model: what it is registered as.
        say: tells the person why it cannot be.
    """
    if not settings.enabled:
        return
    tracker = tracker_of(settings, workspace=workspace, verb="train", run=run, say=say, run_id=run_id)
    if tracker.run_id or tracker.waits:
        tracker.model(files, model)
    else:
        say(f"tracking         run {run} was not tracked; it cannot be registered as {model.name}")
    tracker.release()


def _status(settings: TrackingSection, workspace: str, run_id: str) -> str | None:
    """Return how a run stands; None where MLflow does not say."""
    try:
        return str(Client(tracking_uri(settings, workspace)).ask(lambda client: client.get_run(run_id)).info.status)
    except (AwayError, RefusedError, OSError):  # whatever a tracking server does, work goes on
        return None
