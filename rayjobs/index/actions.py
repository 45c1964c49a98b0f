"""What `rayjobs index` can do, by the first word of its command line."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from typing import TYPE_CHECKING, Any, Protocol, cast

from rayjobs import command
from rayjobs.experiment import Experiment, load
from rayjobs.index import job

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rayjobs.console import Console

ACTIONS = {
    "append": "rayjobs.index.append",
    "delete": "rayjobs.index.delete",
    "compact": "rayjobs.index.compact",
    "rollback": "rayjobs.index.rollback",
    "list": "rayjobs.index.listing",
    "report": "rayjobs.index.report",
}
"""Modules by action, of which only the one that is asked for is loaded."""

_DESCRIPTION = """Embed a set and publish a searchable index of it.

What else an index can do is an action of its own, named first: rayjobs index append | delete | compact | rollback | list | report.
`rayjobs index ACTION --help` says what each does."""


class Action(Protocol):
    """A module of `ACTIONS`."""

    DESCRIPTION: str

    def add_options(self, made: argparse.ArgumentParser) -> None:
        """Take the action's own options."""

    def preview(self, experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
        """Return the plan; nothing is changed."""

    def run(self, experiment: Experiment, options: argparse.Namespace, console: Console) -> Any:
        """Do the work and return a frozen dataclass, or the result itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rayjobs index` from a command line; return 0 (done), 1 (failed) or 2 (usage)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        return command.main("index", _DESCRIPTION, job, given)
    name = given.pop(0)
    if name not in ACTIONS:
        sys.stderr.write(f"rayjobs index: {unknown(name)}\n")
        return 2
    return _act(name, cast("Action", importlib.import_module(ACTIONS[name])), given)


def unknown(name: str) -> str:
    """Return what to say of an action that there is not."""
    near = difflib.get_close_matches(name, ACTIONS, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ACTIONS)}, and none builds"
    return f"there is no action {name!r}; {remedy}"


def _act(name: str, action: Action, given: Sequence[str]) -> int:
    made = command.parser(f"index {name}", action.DESCRIPTION)
    action.add_options(made)
    options, overrides = made.parse_known_args(given)

    def act(console: Console) -> dict[str, Any]:
        experiment = load(options.config, overrides)
        if options.dry_run:
            return action.preview(experiment, options)
        result = action.run(experiment, options, console)
        return dataclasses.asdict(result) if dataclasses.is_dataclass(result) and not isinstance(result, type) else dict(result)

    return command.execute("index", options, act)
