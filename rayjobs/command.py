"""What the command lines of all verbs share: options, the experiment, the plan, the result and the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import traceback
from typing import TYPE_CHECKING, Any, Protocol

from rayjobs.cluster.failures import own_error
from rayjobs.config import Key, keys
from rayjobs.console import Console, taken
from rayjobs.errors import ConfigError
from rayjobs.experiment import Experiment, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


logger = logging.getLogger(__name__)


class Job(Protocol):
    """A verb's `job` module."""

    def preview(self, experiment: Experiment) -> dict[str, Any]:
        """Return the plan and its cost; no pixel is touched."""

    def run(self, experiment: Experiment, console: Console) -> Any:
        """Do the work and return a frozen dataclass."""


def main(verb: str, description: str, job: Job, arguments: Sequence[str] | None = None) -> int:
    """Run a verb from a command line; return 0 (done), 1 (failed) or 2 (usage)."""
    options, overrides = parser(verb, description).parse_known_args(arguments)

    def act(console: Console) -> dict[str, Any]:
        experiment = load(options.config, overrides)
        return job.preview(experiment) if options.dry_run else dataclasses.asdict(job.run(experiment, console))

    return execute(verb, options, act)


def execute(verb: str, options: argparse.Namespace, act: Callable[[Console], dict[str, Any]]) -> int:
    """Do a verb's work, tell its result or its failure, and return the exit code."""
    with taken(verb, verbose=options.verbose) as console:
        try:
            result = act(console)
        except KeyboardInterrupt:
            console.say(f"rayjobs {verb}: interrupted; the same command goes on from what is published")
            return 1
        except Exception as error:  # noqa: BLE001  the last resort
            return _complain(verb, error, console)
        if options.json:
            console.result_json({"verb": verb, **result})
        else:
            console.result_table(result)
    return 0


def _complain(verb: str, error: Exception, console: Console) -> int:
    """Tell what went wrong in one line, or, where the fault is ours, with its trace; return the exit code."""
    ours = own_error(error)
    if ours is None:
        console.say(f"rayjobs {verb}: an unexpected fault" + (f"; the log is {console.log}" if console.log else ""))
        console.say(traceback.format_exc())
        return 1
    logger.info("the trace of what the command says", exc_info=error)
    console.say(f"rayjobs {verb}: {ours}")
    return 2 if isinstance(ours, ConfigError) else 1


def parser(verb: str, description: str, *, needs_config: bool = True) -> argparse.ArgumentParser:
    """Return the options that every verb has; what is left over are overrides of the experiment file."""
    made = argparse.ArgumentParser(
        prog=f"rayjobs {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_reference(),
        allow_abbrev=False,
    )
    made.add_argument("--config", required=needs_config, metavar="FILE", help="the experiment file (YAML)")
    made.add_argument("--dry-run", action="store_true", help="show the plan and its cost; touch no pixel")
    made.add_argument("--json", action="store_true", help="end stdout with one JSON object")
    made.add_argument("--verbose", action="store_true", help="show what Ray and GDAL say, too")
    return made


def _reference() -> str:
    text = "\n".join(_described(key) for key in keys(Experiment)).replace("%", "%%")
    return (
        "keys of the experiment file, each an option (with its default; `kind` says which kinds have the key).\n"
        "Lists are given whole; the keys of their entries stand without dashes:\n" + text
    )


def _described(key: Key) -> str:
    name = f"--{key.path}" if key.is_option else f"  {key.path}"
    choices = f" {'|'.join(key.choices)}" if key.choices else ""
    kinds = f"; kind {', '.join(key.kinds)}" if key.kinds else ""
    return f"  {name}{choices} ({key.default}{kinds})\n      {key.description}"
