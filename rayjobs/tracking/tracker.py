"""One MLflow run, told as the work goes on. Tracking never stops work.

Where the server fails, the person is told once and the work goes on; what it should have been told is kept on this machine's disk, and told
when it answers again, be it to a later command.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rayjobs.config import flatten
from rayjobs.tracking.entries import MODEL_FOLDER, Begin, Dataset, File, Metrics, Model, Parameters, Status, Tags
from rayjobs.tracking.section import tracking_uri
from rayjobs.tracking.spool import spool_of, spools_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from mlflow import MlflowClient

    from rayjobs.tracking.entries import Dataset, Ended, Entry
    from rayjobs.tracking.section import TrackingSection
    from rayjobs.tracking.spool import Spool

_AGAIN_S = 5.0
"""Least time between two tries to reach a server that failed."""
_PATIENCE_S = 15.0
"""How long the end of the work waits for a server that failed."""
_HASTE_S = 0.3
"""How long the end of work that was interrupted waits for a server that answered so far."""
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
"""What no later try mends: an entry that is none, or a run that somebody has deleted."""
REQUESTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Without these a call to a server that is gone would take minutes (we try again ourselves), and each file would have its progress bar."""


class Tracker:
    """What tells MLflow of one run, or, without a client, nobody."""

    def __init__(
        self,
        client: MlflowClient | None,
        spool: Spool,
        say: Callable[[str], None],
        *,
        run_id: str | None = None,
        opened: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take where to tell, where to keep what cannot be told, and what tells the person that the server failed.

        Args:
            client: MLflow's; None tells nobody.
            spool: where to keep what cannot be told.
            say: tells the person that the server failed.
            run_id: of a run that was begun.
            opened: is given the id of a run that begins, once MLflow has given it.
        """
        self._client, self._spool, self._say, self.run_id, self._opened = client, spool, say, run_id, opened
        self._failed_at: float | None = None
        """When the server failed last; None while it answers."""
        self._turn = threading.Lock()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step; in MLflow's names `@` is `_at_`."""
        self.tell(Metrics(values={name: float(value) for name, value in values.items()}, step=step))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self.tell(Tags(values=dict(values)))

    def files(self, files: Mapping[str, bytes]) -> None:
        """Log files by name; a name may have folders."""
        for name, data in files.items():
            self.tell(File(name=name, data=data))

    def model(self, files: Mapping[str, bytes]) -> None:
        """Log what was learned, as MLflow lays out models: files by name."""
        self.files({f"{MODEL_FOLDER}/{name}": data for name, data in files.items()})

    def register(self, name: str, fingerprint: str, alias: str | None = None) -> None:
        """Make what was learned, whose files were logged, a version of a registered model, and give it an alias."""
        self.tell(Model(name=name, fingerprint=fingerprint, alias=alias))

    def end(self, status: Ended) -> None:
        """Close the run, and wait a little for a server that does not answer."""
        if self._client is None:
            return
        self.tell(Status(status=status))
        deadline = time.monotonic() + _PATIENCE_S
        while (left := self._spool.waiting()) and time.monotonic() < deadline:
            time.sleep(1)
            self.tell_waiting()
        if left:
            told = "the next command of this machine that tracks runs there tells them"
            self._say(f"tracking         MLflow still fails: {len(left):,} entries of this run are kept, and {told}")

    def drop(self, status: Ended) -> None:
        """Close the run where nobody may be kept waiting: tell a server that answers at once, and write it down for any other."""
        if self._client is None:
            return
        entry = Status(status=status)
        if self._failed_at is not None:
            self._keep(entry)
            return
        ending = threading.Thread(target=self.tell, args=(entry,), name="tracking", daemon=True)
        ending.start()
        ending.join(_HASTE_S)

    def tell(self, entry: Entry) -> None:
        """Tell MLflow an entry, after those that wait."""
        if self._client is None:
            return
        with self._turn:
            if self._spool.waiting() or not self._told(entry):
                self._keep(entry)
            else:
                self._forget_after(entry)
        self.tell_waiting()

    def tell_waiting(self) -> int:
        """Tell what waits, unless the server failed just now; return how much was told."""
        if self._failed_at is not None and time.monotonic() - self._failed_at < _AGAIN_S:
            return 0
        told = 0
        with self._turn, self._spool.turn():
            for path in self._spool.waiting():
                if not self._told_from(path):
                    return told
                told += 1
        if self._failed_at is not None:
            self._say("tracking         MLflow answers again, and has been told all")
        self._failed_at = None
        return told

    def _keep(self, entry: Entry) -> None:
        try:
            self._spool.append(entry)
            if self.run_id:
                self._spool.begun(self.run_id)
        except OSError as error:
            self._say(f"tracking         what MLflow misses cannot be kept either ({error}); it is lost to it")

    def _told_from(self, path: Path) -> bool:
        """Tell an entry that is kept, and remove it; False where the server fails."""
        try:
            entry = self._spool.read(path)
        except ValueError as error:
            self._say(f"tracking         {path} is damaged ({first_line(error)}); it is left out")
            path.unlink()
            return True
        if not self._told(entry):
            return False
        path.unlink()
        self._forget_after(entry)
        return True

    def _told(self, entry: Entry) -> bool:
        """Tell an entry; False where the server fails. What MLflow will never take is left out: it would keep back all that comes after."""
        try:
            self._call(entry)
        except Exception as error:  # noqa: BLE001  whatever a tracking server does, work goes on
            if getattr(error, "error_code", None) in _REFUSALS:
                self._say(f"tracking         MLflow refuses an entry ({first_line(error)}); it is left out")
                return True
            if self._failed_at is None:
                self._say(f"tracking         MLflow failed ({first_line(error)}); what it misses is kept and told later")
            self._failed_at = time.monotonic()
            return False
        return True

    def _call(self, entry: Entry) -> None:
        client: Any = self._client
        if isinstance(entry, Begin):
            run_id = entry.begin(client)
            self._spool.begun(run_id)
            self._know(run_id)
            return
        if self.run_id is None:  # another process has told of the beginning
            self._know(self._spool.run_id or "")
        entry.tell(client, self.run_id or "")

    def _know(self, run_id: str) -> None:
        self.run_id = run_id
        self._opened(run_id)

    def _forget_after(self, entry: Entry) -> None:
        """Forget the run with its last entry."""
        if isinstance(entry, Status) and entry.status == "FINISHED":
            self._spool.forget()


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
    dataset: Dataset | None = None,
    opened: Callable[[str], None] = lambda _: None,
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
        dataset: what a run that begins uses.
        opened: is given the run's id once MLflow has given it, which may be later, or never.
    """
    uri = tracking_uri(settings, workspace)
    spool = spool_of(uri, workspace, run)
    client = _client(uri, say) if settings.enabled else None
    tracker = Tracker(client, spool, say, run_id=resume or spool.run_id, opened=opened)
    if tracker.run_id or spool.waiting():
        tracker.tell(Status(status="RUNNING"))
    else:
        tracker.tell(Begin(experiment=settings.experiment, artifacts=f"{workspace}/mlflow", name=run, tags=_tags(tags)))
        tracker.tell(Parameters(values={name: str(value) for name, value in flatten(parameters).items()}))
        if dataset:
            tracker.tell(dataset)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.drop("FAILED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end("FINISHED")
    if client and not spool.waiting():
        _tell_left(client, uri, say)


def client_of(uri: str) -> MlflowClient:
    """Return what talks to an MLflow, with patience for its failures. Raises what MLflow does for an address that is none."""
    from mlflow import MlflowClient  # noqa: PLC0415  it takes seconds to import

    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    for name, value in REQUESTS.items():
        os.environ.setdefault(name, value)
    return MlflowClient(uri)


def _client(uri: str, say: Callable[[str], None]) -> MlflowClient | None:
    try:
        return client_of(uri)
    except Exception as error:  # noqa: BLE001  whatever is wrong with the address, work goes on
        say(f"tracking         MLflow cannot be reached ({first_line(error)}); this run is not tracked")
        return None


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with those that MLflow's own client sets: who ran what, and the commit of the code where there is one."""
    from mlflow.tracking.context import registry  # noqa: PLC0415  it takes seconds to import

    return {**registry.resolve_tags(), "rayjobs_version": version("rayjobs"), **tags}


def _tell_left(client: MlflowClient, uri: str, say: Callable[[str], None]) -> None:
    """Tell MLflow what other commands of this machine could not tell it, as long as it takes that."""
    told = 0
    for spool in spools_at(uri):
        told += Tracker(client, spool, say, run_id=spool.run_id).tell_waiting()
        if spool.waiting():
            break
    if told:
        say(f"tracking         MLflow has been told {told:,} entries of other runs, which it had missed")


def first_line(error: Exception) -> str:
    """Return what an error says, in short."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
