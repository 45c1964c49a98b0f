"""Runs that MLflow knows already: what they measured, whether they are open, and how to close one that was left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rayjobs.tracking.entries import Status
from rayjobs.tracking.section import tracking_uri
from rayjobs.tracking.spool import spool_of
from rayjobs.tracking.tracker import Tracker, client_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayjobs.tracking.entries import Ended, Entry, Model
    from rayjobs.tracking.section import TrackingSection
    from rayjobs.tracking.spool import Spool

logger = logging.getLogger(__name__)


def history(settings: TrackingSection, *, workspace: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every metric of an MLflow run, by name; empty where tracking is off or cannot be read."""
    if not settings.enabled:
        return {}
    try:
        client = client_of(tracking_uri(settings, workspace))
        names = sorted(client.get_run(run_id).data.metrics)
        return {name: [(entry.step, entry.value) for entry in client.get_metric_history(run_id, name)] for name in names}
    except Exception:  # noqa: BLE001  whatever a tracking server does, work goes on
        return {}


def is_open(settings: TrackingSection, *, workspace: str, run_id: str) -> bool:
    """Whether a run was begun and not ended; False where tracking is off or does not answer."""
    return settings.enabled and _status(settings, workspace, run_id) == "RUNNING"


def close(settings: TrackingSection, *, workspace: str, run: str, run_id: str | None, status: Ended, say: Callable[[str], None]) -> None:
    """Close a run that another process left open, or where MLflow does not answer have a later command close it.

    Args:
        settings: the experiment's tracking section.
        workspace: the workspace's URI.
        run: name of the run.
        run_id: its id, if MLflow has given it one.
        status: how it ended.
        say: tells the person that the server failed.
    """
    if settings.enabled and (
        _spool(settings, workspace, run).waiting() or (run_id and _status(settings, workspace, run_id) in {"RUNNING", None})
    ):
        _tell(Status(status=status), settings, workspace, run, run_id, say)


def register(settings: TrackingSection, *, workspace: str, run: str, run_id: str | None, model: Model, say: Callable[[str], None]) -> None:
    """Make what a run has learned, which was logged, a version of a registered model.

    Args:
        settings: the experiment's tracking section.
        workspace: the workspace's URI.
        run: name of the run.
        run_id: its id, if MLflow has given it one.
        model: what it is registered as.
        say: tells the person that it cannot be.
    """
    if not run_id and not _spool(settings, workspace, run).waiting():
        say(f"tracking         run {run} was not tracked; it cannot be registered as {model.name}")
    else:
        _tell(model, settings, workspace, run, run_id, say)


def _tell(entry: Entry, settings: TrackingSection, workspace: str, run: str, run_id: str | None, say: Callable[[str], None]) -> None:
    spool = _spool(settings, workspace, run)
    Tracker(client_of(tracking_uri(settings, workspace)), spool, say, run_id=run_id or spool.run_id).tell(entry)


def _spool(settings: TrackingSection, workspace: str, run: str) -> Spool:
    return spool_of(tracking_uri(settings, workspace), workspace, run)


def _status(settings: TrackingSection, workspace: str, run_id: str) -> str | None:
    """Return how a run stands; None where MLflow does not say."""
    try:
        return str(client_of(tracking_uri(settings, workspace)).get_run(run_id).info.status)
    except Exception:  # whatever a tracking server does, work goes on
        logger.warning("run %s of MLflow could not be asked for", run_id, exc_info=True)
        return None
