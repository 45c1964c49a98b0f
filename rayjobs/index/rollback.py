"""`rayjobs index rollback`: make an earlier version of the index current again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayjobs.errors import ConfigError, NotFoundError, first_few
from rayjobs.index.versions import Published, Result, newest, sweep, writing

if TYPE_CHECKING:
    import argparse

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Artefact

DESCRIPTION = """Make an earlier version of the index current again: its parent, or the one that --to names.

Nothing is removed: the version that was current stays, and can be gone back to. A service takes the change up as it does a new version."""


def add_options(made: argparse.ArgumentParser) -> None:
    """Take the version to go back to."""
    made.add_argument(
        "--to", metavar="VERSION", help="a version as `rayjobs index list` shows it, or the first digits of one (default: the parent)"
    )


def preview(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Return which version would be current."""
    index = experiment.open_workspace().index
    target = Published.of(index.at(named(index, options.to)))
    return {
        "current": newest(index).version.version,
        "would_be_current": target.version.version,
        "rows": target.manifest.stored - target.manifest.deleted,
        "created": target.version.manifest["created"],
    }


def run(experiment: Experiment, options: argparse.Namespace, console: Console) -> Result:
    """Make the version current, all of whose files must be there."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    with writing(workspace.index):
        before, to = newest(workspace.index), named(workspace.index, options.to)
        if to == before.version.version:
            console.say(f"index            {to} is current already")
            return before.result("rollback", fresh=False, before=to)
        Published.of(workspace.index.at(to))  # one that cannot be read does not become current
        found = Published.of(workspace.index.go_back(to))
        sweep(workspace.index, console)
    return found.result("rollback", fresh=True, before=before.version.version)


def named(index: Artefact, to: str | None) -> str:
    """Return the name of the version to go back to.

    Raises:
        ConfigError: no version, or several, have a name that begins so.
        NotFoundError: the current version has no parent.
    """
    if to is None:
        parent = newest(index).version.manifest["parents"].get("index")
        if parent not in index.finished():
            raise NotFoundError(f"index {index.name} has no version before the current one; `rayjobs index list` shows all")
        return str(parent)
    there = index.finished()
    fitting = [name for name in there if name.startswith(to)]
    if len(fitting) != 1:
        how = f"begins the names of {len(fitting)} versions" if fitting else "is no version"
        raise ConfigError(f"--to {to}: {how} of index {index.name}; there are {first_few(fitting or there, most=10, between=', ')}")
    return fitting[0]
