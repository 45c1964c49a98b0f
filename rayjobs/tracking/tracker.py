"""One MLflow run, told as the work goes on. Tracking never stops work.

Where MLflow is away, the person is told once and the work goes on; what it should have been told is kept on this machine's disk, and told
when it answers again, be it by a later command.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from rayjobs import __version__
from rayjobs.config import flatten
from rayjobs.tracking.client import AwayError, Client, RefusedError, first_line
from rayjobs.tracking.entries import MODEL_FOLDER, Begin, Dataset, File, Metrics, Model, Parameters, Status, Tags
from rayjobs.tracking.section import tracking_uri
from rayjobs.tracking.spool import Spool, spool_of, spools_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlflow import MlflowClient

    from rayjobs.tracking.entries import Entry, RunStatus
    from rayjobs.tracking.section import TrackingSection

logger = logging.getLogger(__name__)

Verb = Literal["train", "tune", "evaluate", "label"]

_AGAIN_S = 5.0
"""Least time between two tries to reach an MLflow that is away."""
_PATIENCE_S = 15.0
"""How long the end of the work waits for it."""
_HASTE_S = 0.3
"""How long the end of work that was interrupted waits for MLflow."""
_FOR_OTHERS_S = 30.0
"""How long a command tells what others have left."""
_NOWHERE = Spool(Path())
"""Of a tracker that tells nobody, and so has nothing to keep."""


class Tracker:
    """What tells MLflow of one run, or, without a client, nobody. No method raises."""

    def __init__(
        self,
        client: Client | None,
        spool: Spool,
        say: Callable[[str], None],
        *,
        run_id: str | None = None,
        opened: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take where to tell.

        Args:
            client: MLflow's; None tells nobody.
            spool: where to keep what cannot be told.
            say: tells the person what is wrong.
            run_id: of a run that was begun.
            opened: is given the id of a run that begins, once MLflow has given it.
        """
        self._client, self._spool, self._say, self.run_id, self._opened = client, spool, say, run_id, opened
        self._away_at: float | None = None
        """When MLflow was found away last; None while it answers."""
        self._turn = threading.Lock()

    @property
    def waits(self) -> bool:
        """Whether anything is kept that MLflow is yet to be told."""
        with self._guarded():
            return self._client is not None and bool(self._spool.waiting())
        return False

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step; in MLflow's names `@` is `_at_`."""
        self.tell(Metrics(values={name: float(value) for name, value in values.items()}, step=step))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self.tell(Tags(values=dict(values)))

    def files(self, files: Mapping[str, bytes]) -> None:
        """Log files by name; a name may have folders."""
        self.tell(*(File(name=name, data=data) for name, data in files.items()))

    def model(self, make: Callable[[], Mapping[str, bytes]], registered: Model | None = None) -> None:
        """Log what was learned, as MLflow lays out models, and if wanted as a version of a registered model; `make` returns its files."""
        with self._guarded():
            if self._client is not None:
                self.files({f"{MODEL_FOLDER}/{name}": data for name, data in make().items()})
                self.tell(*([registered] if registered else []))

    def begin(self, begin: Begin, *more: Entry) -> None:
        """Go on with the run, if it was begun and MLflow still knows it; else begin it, and tell more of it."""
        with self._guarded():
            if self._client is not None and (self.run_id or self._spool.waiting()):
                self.tell(Status(status="RUNNING"))
                if self.run_id or self._spool.waiting():
                    return
            self.tell(begin, *more)

    def end(self, status: RunStatus) -> None:
        """Close the run, and wait a little where MLflow is away."""
        self.tell(Status(status=status))
        with self._guarded():
            if self._client is None:
                return
            deadline = time.monotonic() + _PATIENCE_S
            while (left := self._spool.waiting()) and time.monotonic() < deadline:
                time.sleep(1)
                self.tell_waiting()
            if left and self._spool.waiting():
                later = "the next command of this machine that tracks runs there tells them"
                self._say(f"tracking         MLflow is still away: {len(left):,} entries of this run are kept, and {later}")

    def drop(self, status: RunStatus) -> None:
        """Close the run where nobody may be kept waiting: it is written down, and MLflow told if it answers at once."""
        with self._guarded():
            if self._client is None:
                return
            self._keep(Status(status=status))
            if self._away_at is None:
                ending = threading.Thread(target=self._tell_and_release, name="tracking", daemon=True)
                ending.start()
                ending.join(_HASTE_S)

    def _tell_and_release(self) -> None:
        self.tell_waiting()
        self.release()

    def release(self, *, forget: bool = True) -> None:
        """Let others tell what waits; where nothing does, forget the run."""
        with self._guarded():
            self._spool.release(forget=forget)

    def tell(self, *entries: Entry) -> None:
        """Tell MLflow entries, after those that wait."""
        for entry in entries:
            with self._guarded():
                if self._client is None:
                    return
                with self._turn:
                    if not self._spool.waiting() and self._told(entry):
                        continue
                    self._keep(entry)
                self.tell_waiting()

    def tell_waiting(self, seconds: float = float("inf")) -> int:
        """Tell what waits, for so long, unless MLflow was found away just now; return how much was told."""
        told, deadline = 0, time.monotonic() + seconds
        with self._guarded():
            if self._away_at is not None and time.monotonic() - self._away_at < _AGAIN_S:
                return 0
            with self._turn:
                for path in self._spool.waiting():
                    if time.monotonic() > deadline or not self._told_from(path):
                        return told
                    told += 1
            if self._away_at is not None:
                self._say("tracking         MLflow answers again, and has been told all")
            self._away_at = None
        return told

    def _told_from(self, path: Path) -> bool:
        """Tell an entry that is kept, and remove it; False where MLflow is away."""
        try:
            entry = self._spool.read(path)
        except ValueError as error:
            self._say(f"tracking         {path} is damaged ({first_line(error)}); it is left out")
        else:
            if not self._told(entry):
                return False
        path.unlink()
        return True

    def _told(self, entry: Entry) -> bool:
        """Tell an entry; False where MLflow is away. What it never takes is left out: it would keep back all that comes after."""
        if self._client is None or (self.run_id is None and not isinstance(entry, Begin)):
            return True  # of a run that MLflow refused, which was said
        try:
            run_id = self._client.ask(lambda client: _tell(client, entry, self.run_id))
        except RefusedError as error:
            self._refused(entry, error)
        except AwayError as error:
            if self._away_at is None:
                self._say(f"tracking         MLflow is away ({first_line(error)}); what it misses is kept and told later")
            self._away_at = time.monotonic()
            return False
        else:
            self._know(run_id)
        return True

    def _refused(self, entry: Entry, error: RefusedError) -> None:
        if isinstance(entry, Begin):
            self._say(f"tracking         MLflow refuses the run ({first_line(error)}); it is not tracked")
        elif isinstance(entry, Status) and entry.status == "RUNNING":  # it was deleted there
            self.run_id = None
        else:
            self._say(f"tracking         MLflow refuses an entry ({first_line(error)}); it is left out")

    def _know(self, run_id: str) -> None:
        if run_id == self.run_id:
            return
        self.run_id = run_id
        if self._spool.claimed:
            self._spool.remember(run_id)
        try:
            self._opened(run_id)
        except Exception as error:  # noqa: BLE001  the run is there, whoever was to remember it
            self._say(
                f"tracking         run {run_id} of MLflow cannot be written down ({first_line(error)}); another command begins it anew"
            )

    def _keep(self, entry: Entry) -> None:
        try:
            if not self._spool.claim():
                self._spool = self._spool.another()
                self._spool.claim()
            if self.run_id:
                self._spool.remember(self.run_id)
            self._spool.append(entry)
        except (OSError, ValueError) as error:
            self._say(f"tracking         what MLflow misses cannot be kept either ({first_line(error)}); it is lost to it")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Go on untracked, whatever goes wrong with tracking itself."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  that is what it is for
            self._client = None
            _say_untracked(self._say, error)


def _say_untracked(say: Callable[[str], None], error: Exception) -> None:
    logger.warning("tracking fails", exc_info=error)
    say(f"tracking         it fails ({first_line(error)}), and the work goes on without it")


def _tell(client: MlflowClient, entry: Entry, run_id: str | None) -> str:
    """Tell an entry of a run; return the run's id."""
    if isinstance(entry, Begin):
        return entry.begin(client)
    entry.tell(client, run_id or "")
    return run_id or ""


@contextmanager
def tracked(
    settings: TrackingSection,
    *,
    workspace: str,
    verb: Verb,
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
        verb: whose run it is; each evaluation and each command of labelling is a run of its own, the others go on with theirs.
        run: name of the run.
        parameters: nested; logged under dotted keys.
        say: tells the person what is wrong with MLflow.
        resume: id of an earlier MLflow run to go on with.
        tags: of a run that begins.
        dataset: what a run that begins uses.
        opened: is given the run's id once MLflow has given it, which may be later, or never.
    """
    tracker = tracker_of(settings, workspace=workspace, verb=verb, run=run, say=say, run_id=resume, opened=opened)
    more: Sequence[Entry] = [Parameters(values={name: str(value) for name, value in flatten(parameters).items()})]
    more = [*more, dataset] if dataset else more
    tracker.begin(Begin(experiment=settings.experiment, artifacts=f"{workspace}/mlflow", name=run, tags=_tags(settings, tags)), *more)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.drop("FAILED")
        raise
    except BaseException:
        tracker.end("FAILED")
        tracker.release()
        raise
    tracker.end("FINISHED")
    away = tracker.waits
    tracker.release()
    if settings.enabled and not away:
        _tell_left(settings, workspace, say)


def tracker_of(
    settings: TrackingSection,
    *,
    workspace: str,
    verb: Verb,
    run: str,
    say: Callable[[str], None],
    run_id: str | None,
    opened: Callable[[str], None] = lambda _: None,
) -> Tracker:
    """Return what tells MLflow of a run, after what an earlier command could not tell it; arguments as of `tracked`."""
    if not settings.enabled:
        return Tracker(None, _NOWHERE, say)
    try:
        uri = tracking_uri(settings, workspace)
        spool = spool_of(uri, workspace, f"{verb} {run}", goes_on=verb not in {"evaluate", "label"})
        if spool.folder.exists() and not spool.claim():
            spool = spool.another()
        tracker = Tracker(Client(uri), spool, say, run_id=run_id or spool.run_id, opened=opened)
        if run_id is None and tracker.run_id:
            opened(tracker.run_id)
    except Exception as error:  # noqa: BLE001  as `Tracker` does
        _say_untracked(say, error)
        return Tracker(None, _NOWHERE, say)
    return tracker


def _tags(settings: TrackingSection, tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with those that MLflow's own client sets: who ran what, and the commit of the code where there is one."""
    found: dict[str, str] = {}
    if settings.enabled:
        with contextlib.suppress(Exception):  # a repository that git cannot read, a user without a name
            from mlflow.tracking.context import registry  # noqa: PLC0415  it takes seconds to import

            found = registry.resolve_tags()
    return {**found, "rayjobs_version": __version__, **tags}


def _tell_left(settings: TrackingSection, workspace: str, say: Callable[[str], None]) -> None:
    """Tell MLflow what commands of this machine that have ended could not tell it, for a while and as long as it takes that."""
    told, deadline = 0, time.monotonic() + _FOR_OTHERS_S
    with contextlib.suppress(Exception):  # what is left stays there
        uri = tracking_uri(settings, workspace)
        for spool in spools_at(uri):
            if time.monotonic() > deadline or not spool.claim():
                continue
            begun: list[str] = []
            tracker = Tracker(Client(uri), spool, say, run_id=spool.run_id, opened=begun.append)
            told += tracker.tell_waiting(deadline - time.monotonic())
            away = bool(spool.waiting())
            tracker.release(forget=not (begun and spool.goes_on))  # the run's own command asks for the id
            if away:
                break
    if told:
        say(f"tracking         MLflow has been told {told:,} entries of other runs, which it had missed")
