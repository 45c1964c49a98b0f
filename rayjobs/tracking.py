"""Runs in MLflow: parameters, metrics and files of one experiment. Knows nothing of what is measured.

Tracking never stops work: where the server fails, the person is told once and the work goes on; what it should have been told is kept,
and told when it answers again.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rayjobs.config import flatten, section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_PARAMETER_LIMIT = 6000
_AGAIN_S = 5.0
"""Least time between two tries to reach a server that failed."""
_PATIENCE_S = 60.0
"""How long the end of the work waits for a server that failed."""
_HASTE_S = 0.3
"""How long the end of work that was interrupted waits for a server that answered so far."""
_MOST_KEPT = 100_000
"""Calls that are kept for it."""
REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Without these each call to a server that is gone would take minutes; we try again ourselves."""


@section
class TrackingSection:
    """Where runs are logged."""

    enabled: bool = True
    """False logs nothing to MLflow."""
    uri: str | None = None
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else SQLite: in a `file:` workspace, or in ~/.cache/rayjobs."""
    experiment: str = "rayjobs"
    """Name of the MLflow experiment that holds the runs."""


def tracking_uri(settings: TrackingSection, workspace: str, *, make: bool = True) -> str:
    """Return the MLflow tracking URI that holds for a workspace; the folder of a database of ours is made, unless `make` is False."""
    if chosen := settings.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return chosen
    folder = Path(workspace.removeprefix("file:")) if workspace.startswith("file:") else Path("~/.cache/rayjobs").expanduser()
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.absolute()}/mlflow.db"


class Tracker:
    """One MLflow run, or none where tracking is off or its server fails."""

    def __init__(self, client: MlflowClient | None, run_id: str | None, say: Callable[[str], None]) -> None:
        """Take an open run, both None for a tracker that logs nothing, and what tells the person that the server failed."""
        self._client, self.run_id, self._say = client, run_id, say
        self._kept: deque[Callable[[], object]] = deque()
        self._failed_at: float | None = None
        """When the server failed last; None while it answers."""
        self._turn = threading.Lock()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step; MLflow takes no `@` in their names, so that recall@10 is its `recall_at_10`."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        if self._client:
            self._attempt(
                "log_batch",
                self.run_id,
                metrics=[Metric(name.replace("@", "_at_"), float(value), now, step) for name, value in values.items()],
            )

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for name, value in values.items():
            self._attempt("set_tag", self.run_id, name, value)

    def files(self, files: Mapping[str, bytes]) -> None:
        """Log files by name; a name may have folders."""
        for name, data in files.items():
            self._later(functools.partial(self._log_file, name, data))

    def end(self, status: str) -> None:
        """Close the run as FINISHED or FAILED, and wait a little for a server that does not answer."""
        self._attempt("set_terminated", self.run_id, status)
        deadline = time.monotonic() + _PATIENCE_S
        while self._kept and time.monotonic() < deadline:
            time.sleep(1)
            self._tell_kept()
        if self._kept:
            self._say(f"tracking         MLflow still fails: {len(self._kept):,} entries of this run are lost to it")

    def drop(self, status: str) -> None:
        """Close the run where nobody may be kept waiting: tell a server that answers at once, and leave any other."""
        if self._failed_at is None:
            ending = threading.Thread(target=self._attempt, args=("set_terminated", self.run_id, status), name="tracking", daemon=True)
            ending.start()
            ending.join(_HASTE_S)

    def _log_file(self, name: str, data: bytes) -> None:
        if self._client is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            path.write_bytes(data)
            self._client.log_artifact(self.run_id, str(path), str(Path(name).parent) if "/" in name else None)

    def _attempt(self, action: str, *arguments: Any, **named: Any) -> None:
        if self._client is not None:
            self._later(functools.partial(getattr(self._client, action), *arguments, **named))

    def _later(self, call: Callable[[], object]) -> None:
        """Make a call after those that are kept; in the order in which they came."""
        if self._client is None:
            return
        if len(self._kept) < _MOST_KEPT:
            self._kept.append(call)
        self._tell_kept()

    def _tell_kept(self) -> None:
        if self._failed_at is not None and time.monotonic() - self._failed_at < _AGAIN_S:
            return
        with self._turn:
            try:
                while self._kept:
                    self._call(self._kept[0])
                    self._kept.popleft()
            except Exception as error:  # noqa: BLE001  whatever a tracking server does, work goes on
                if self._failed_at is None:
                    self._say(f"tracking         MLflow failed ({_first_line(error)}); what it misses is kept and told later")
                self._failed_at = time.monotonic()
                return
        if self._failed_at is not None:
            self._say("tracking         MLflow answers again, and has been told all")
        self._failed_at = None

    def _call(self, call: Callable[[], object]) -> None:
        """Make a call. What MLflow will never take is said and left out: kept, it would keep back all that comes after it."""
        try:
            call()
        except Exception as error:
            if getattr(error, "error_code", None) != "INVALID_PARAMETER_VALUE":
                raise
            self._say(f"tracking         MLflow refuses an entry ({_first_line(error)}); it is left out")


def history(settings: TrackingSection, *, workspace: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every metric of an MLflow run, by name; empty where tracking is off or cannot be read."""
    from mlflow import MlflowClient  # noqa: PLC0415  it takes seconds to import

    if not settings.enabled:
        return {}
    try:
        client = MlflowClient(tracking_uri(settings, workspace))
        names = sorted(client.get_run(run_id).data.metrics)
        return {name: [(entry.step, entry.value) for entry in client.get_metric_history(run_id, name)] for name in names}
    except Exception:  # noqa: BLE001  whatever a tracking server does, work goes on
        return {}


def is_open(settings: TrackingSection, *, workspace: str, run_id: str) -> bool:
    """Whether a run was begun and not ended; False where tracking is off or does not answer."""
    from mlflow import MlflowClient  # noqa: PLC0415  it takes seconds to import

    if not settings.enabled:
        return False
    try:
        return bool(MlflowClient(tracking_uri(settings, workspace)).get_run(run_id).info.status == "RUNNING")
    except Exception:  # whatever a tracking server does, work goes on
        logger.warning("run %s of MLflow could not be asked for", run_id, exc_info=True)
        return False


def close(settings: TrackingSection, *, workspace: str, run_id: str, status: str) -> None:
    """Close a run that another process left open, where tracking is on and answers."""
    from mlflow import MlflowClient  # noqa: PLC0415  it takes seconds to import

    try:
        if is_open(settings, workspace=workspace, run_id=run_id):
            MlflowClient(tracking_uri(settings, workspace)).set_terminated(run_id, status)
    except Exception:  # whatever a tracking server does, work goes on
        logger.warning("run %s of MLflow could not be closed", run_id, exc_info=True)


@contextmanager
def tracked(
    settings: TrackingSection,
    *,
    workspace: str,
    run: str,
    parameters: Mapping[str, Any],
    say: Callable[[str], None],
    resume: str | None = None,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Tracker]:
    """Log the block as one MLflow run: FINISHED when it ends, FAILED when it raises; interrupted work waits for no server.

    Args:
        settings: the experiment's tracking section.
        workspace: the workspace's URI; files are kept below it.
        run: name of the run.
        parameters: nested; logged under dotted keys.
        say: tells the person that the server failed.
        resume: id of an earlier MLflow run to go on with.
        tags: of a run that begins.
    """
    tracker = _open(settings, workspace, run, parameters, say, resume, tags) if settings.enabled else Tracker(None, None, say)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.drop("FAILED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end("FINISHED")


def _open(
    settings: TrackingSection,
    workspace: str,
    run: str,
    parameters: Mapping[str, Any],
    say: Callable[[str], None],
    resume: str | None,
    tags: Mapping[str, str],
) -> Tracker:
    from mlflow import MlflowClient  # noqa: PLC0415  it takes seconds to import
    from mlflow.entities import Param  # noqa: PLC0415

    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    for name, value in REQUESTS.items():
        os.environ.setdefault(name, value)
    try:
        client = MlflowClient(tracking_uri(settings, workspace))
        if resume:
            client.update_run(resume, status="RUNNING")
            return Tracker(client, resume, say)
        found = client.get_experiment_by_name(settings.experiment)
        experiment = found.experiment_id if found else client.create_experiment(settings.experiment, f"{workspace}/mlflow")
        opened = client.create_run(experiment, run_name=run, tags=dict(tags))
        flat = {name: str(value)[:_PARAMETER_LIMIT] for name, value in flatten(parameters).items()}
        client.log_batch(opened.info.run_id, params=[Param(name, value) for name, value in flat.items()])
    except Exception as error:  # noqa: BLE001  whatever a tracking server does, work goes on
        say(f"tracking         MLflow cannot be reached ({_first_line(error)}); this run is not tracked")
        return Tracker(None, None, say)
    return Tracker(client, opened.info.run_id, say)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
