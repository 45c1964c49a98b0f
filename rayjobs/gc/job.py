"""`rayjobs gc`: plan what nothing needs, then remove it."""

from __future__ import annotations

import argparse
import datetime
import re
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rayjobs import command
from rayjobs.experiment import load
from rayjobs.gc.plan import COLLECTED, Plan, listed, planned
from rayjobs.storage import Lease, remove

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rayjobs.console import Console
    from rayjobs.storage import Store

_DESCRIPTION = f"""Remove old versions of {", ".join(COLLECTED[:-1])} and {COLLECTED[-1]} that nothing in the workspace names any more.

Kept are of each artefact the current version, those younger than --older-than and the newest of the others; the version of an index that
`rayjobs index rollback` would go back to; and all that runs, sweeps and kept versions name. Runs, labels, fetched imagery and versions
that are not finished are not touched. Run it while nothing writes to the workspace; while a training, a sweep, a fetch or an action on an
index holds its lease it is refused. Interrupted, the same command goes on."""
_DAYS = 7.0
_MOST_DAYS = 100_000
_LEASE = re.compile(r"(runs|sweeps|imagery|indexes)/[^/]+/lease")
_OWN_LEASE = "gc/lease"


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
    made.add_argument("--keep", action="append", default=[], metavar="VERSION", help="keep this version, too; may be repeated")
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
            return _told(planned(store, before, options.keep), console, whole=options.json)
        return asdict(collect(store, before, options.keep, console))

    return command.execute("gc", options, act)


def _told(plan: Plan, console: Console, *, whole: bool) -> dict[str, Any]:
    """Return a plan; what is not asked for as a whole is shown in lines of its own, and counted."""
    going = sorted(one.address for one in plan.removed)
    if whole:
        return {"would_remove": going, "bytes": plan.bytes, "keeps": dict(sorted(plan.kept.items()))}
    lines = dict.fromkeys(going, "would be removed") | {address: f"stays: {why}" for address, why in plan.kept.items()}
    width = max(map(len, lines), default=0)
    for address, what in sorted(lines.items()):
        console.result(f"{address:<{width}}  {what}")
    return {"would_remove": len(plan.removed), "bytes": plan.bytes, "would_keep": len(plan.kept)}


def collect(store: Store, before: datetime.datetime, keep: Sequence[str], console: Console) -> Result:
    """Remove what nothing needs of the versions that were made before a moment, and finish what an interrupted removal left.

    Raises:
        PublishConflictError: a run, a sweep, imagery or an index is being written, or a version was made current meanwhile.
        NotFoundError, ConfigError, DamagedError, IndexCorruptError: as `planned`; nothing was removed.
    """
    with _nobody_writing(store) as leases:
        plan = planned(store, before, keep)
        for artefact in dict.fromkeys([*plan.unfinished, *(one.artefact for one in plan.removed)]):
            for lease in leases:
                lease.check()
            going = [one.version.version for one in plan.removed if one.artefact == artefact]
            remove(artefact, going)
            console.say(f"gc               {artefact.kind}/{artefact.name}: removed {', '.join(going) or 'what was left'}")
    return Result(removed=len(plan.removed), bytes=plan.bytes, kept=len(plan.kept))


@contextmanager
def _nobody_writing(store: Store) -> Iterator[list[Lease]]:
    """Keep writers out of all indexes, and other collectors out, and yield the leases.

    Raises:
        PublishConflictError: one is at work, or a run, a sweep or imagery is being written.
        DamagedError: what lies in the place of a lease is none.
        NotFoundError: there is no version in the workspace.
    """
    listed(store)  # before a lease is written where no workspace is
    with ExitStack() as stack:
        own = stack.enter_context(Lease(store, _OWN_LEASE))
        found = [key for key in listed(store) if _LEASE.fullmatch(key)]
        for key in found:
            Lease.check_free(store, key)
        yield [own, *(stack.enter_context(Lease(store, key)) for key in found if key.startswith("indexes/"))]
