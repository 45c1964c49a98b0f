"""`rayjobs gc`: plan what nothing needs, then remove it."""

from __future__ import annotations

import argparse
import datetime
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rayjobs import command
from rayjobs.experiment import load
from rayjobs.gc.plan import COLLECTED, planned
from rayjobs.storage import Lease, finish_removals, remove

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rayjobs.console import Console
    from rayjobs.storage import Store

_DESCRIPTION = f"""Remove old versions of {", ".join(COLLECTED[:-1])} and {COLLECTED[-1]} that nothing in the workspace names any more.

Kept are the current version of each, those younger than --older-than, all that a run, a sweep or a kept version names, and the version
of an index that `rayjobs index rollback` would go back to. Runs, labels, fetched imagery and what a broken-off command will go on from
are not touched. Run it while nothing writes to the workspace; while a run, a sweep or an index is being written it is refused.
Interrupted, the same command goes on."""
_DAYS = 7.0
_MOST_DAYS = 100_000
_LEASE = "/lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs gc` tells at its end."""

    removed: int
    """Versions."""
    bytes: int
    """Of the files that only these named."""
    kept: int
    """Versions of the same kinds."""


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs gc`."""
    made = command.parser("gc", _DESCRIPTION)
    made.add_argument(
        "--older-than", type=_days, default=_DAYS, metavar="DAYS", help=f"keep versions that were made in the last DAYS days ({_DAYS:g})"
    )
    return made


def _days(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (days := float(text)) <= _MOST_DAYS:
            return days
    raise argparse.ArgumentTypeError(f"{text!r} is no number of days from 0 to {_MOST_DAYS:,}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb from a command line; return 0 (done), 1 (failed) or 2 (usage)."""
    options, overrides = parser().parse_known_args(arguments)

    def act(console: Console) -> dict[str, Any]:
        store = load(options.config, overrides).open_workspace().store
        store.check()
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=options.older_than)
        if options.dry_run:
            plan = planned(store, before)
            return {"would_remove": [one.address for one in plan.removed], "bytes": plan.bytes, "keeps": plan.kept}
        return asdict(collect(store, before, console))

    return command.execute("gc", options, act)


def collect(store: Store, before: datetime.datetime, console: Console) -> Result:
    """Remove what nothing needs of the versions that were made before a moment, and finish what an interrupted removal left.

    Raises:
        PublishConflictError: a run, a sweep, imagery or an index is being written.
        NotFoundError, DamagedError, IndexCorruptError: as `planned`; nothing was removed.
    """
    with _nobody_writing(store):
        plan = planned(store, before)
        for artefact in plan.artefacts:
            finish_removals(artefact)
        for one in plan.removed:
            remove(one.artefact, one.version.version)
            console.say(f"gc               {one.address} removed")
    return Result(removed=len(plan.removed), bytes=plan.bytes, kept=len(plan.kept))


@contextmanager
def _nobody_writing(store: Store) -> Iterator[None]:
    """Keep writers out of all indexes.

    Raises:
        PublishConflictError: one is at work, or a run, a sweep or imagery is being written.
    """
    with ExitStack() as stack:
        for key in (key for key in store.list() if key.endswith(_LEASE)):
            if key.startswith("indexes/"):
                stack.enter_context(Lease(store, key))
            else:
                Lease.check_free(store, key)
        yield
