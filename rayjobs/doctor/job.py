"""The driver's side of `rayjobs doctor`: which checks are made, in which order, and how they are told."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjobs import command, config
from rayjobs.cluster.section import RaySection
from rayjobs.config import section
from rayjobs.doctor.checks import Check, Patient, looked, table
from rayjobs.errors import ConfigError
from rayjobs.experiment import load
from rayjobs.tracking import TrackingSection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment

FAMILIES = {
    "machine": "Python, packages, GPU, memory, disk and clock of this machine",
    "workspace": "the workspace of an experiment: reading, writing, conditional writing, listing, ranges",
    "imagery": "GDAL, and a first block of the experiment's first source",
    "tracking": "where MLflow keeps its runs",
    "cluster": "Ray: the nodes of a cluster, or room for a local one",
    "index": "the current index of an experiment: whether index, encoder or imagery is at fault",
}
"""Modules of this package, by name; each is loaded when its turn comes, so that a broken package is a finding and not the end."""

_DESCRIPTION = """Look for what is wrong, and say what to do about it.

Without --config, what needs no experiment is looked at; the keys of ray and tracking may be given then. With it, its workspace, imagery
and tracking server, too. With --index, the experiment's current index: whether the index, the encoder or the imagery is at fault.
Nothing is changed: what is written to try a workspace is removed again. Ray is joined where an address is given, and never started.

Ends with 0 where there is no fault, with 1 where there is one."""
_COLUMNS = 150
"""Where nobody knows how wide the terminal is."""


@section
class _NoExperiment:
    """What may be told without an experiment."""

    ray: RaySection = RaySection()
    tracking: TrackingSection = TrackingSection()


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs doctor`."""
    made = command.parser("doctor", _DESCRIPTION, needs_config=False)
    made.add_argument(
        "--index", nargs="?", const="", metavar="NAME", help="look at the current version of an index (default: the experiment's own)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rayjobs doctor` from a command line; return 0 (no fault), 1 (a fault) or 2 (usage)."""
    options, overrides = parser().parse_known_args(arguments)
    checks: list[Check] = []
    code = command.execute("doctor", options, lambda console: _examined(options, overrides, console, checks))
    return code or int(any(check.state == "fault" for check in checks))


def _examined(options: argparse.Namespace, overrides: Sequence[str], console: Console, checks: list[Check]) -> dict[str, Any]:
    """Make the checks, adding each to `checks`, and return the result."""
    experiment, ray, tracking = _settings(options, overrides)
    families = _families(experiment, indexed=options.index is not None)
    if options.dry_run:
        return {"would_check": {name: FAMILIES[name] for name in families}}
    with tempfile.TemporaryDirectory(prefix="rayjobs-") as folder:
        patient = Patient(experiment=experiment, ray=ray, tracking=tracking, folder=Path(folder), say=console.say)
        for name in families:
            console.say(f"doctor           looking at {FAMILIES[name]}")
            checks += looked({name: functools.partial(_family, name, patient)})
    counts = Counter(check.state for check in checks)
    told = {state: counts[state] for state in ("ok", "caution", "fault")}
    if options.json:
        return {"checks": [dataclasses.asdict(check) for check in checks], "counts": told}
    for line in table(checks, columns=shutil.get_terminal_size((_COLUMNS, 0)).columns):
        console.result(line)
    return told


def _settings(options: argparse.Namespace, overrides: Sequence[str]) -> tuple[Experiment | None, RaySection, TrackingSection]:
    """Return the experiment, if there is one, and what is needed without one.

    Raises:
        ConfigError: a key or a value is wrong, or --index stands without --config.
    """
    if options.config is None:
        if options.index is not None:
            raise ConfigError("--index needs --config FILE: the experiment says where the index lies")
        given = config.apply_overrides({}, config.parse_overrides(overrides))
        if others := sorted(given.keys() - {"ray", "tracking"}):
            raise ConfigError(f"--{others[0]} needs --config FILE: without it only keys of ray and tracking can be given")
        alone = config.build(_NoExperiment, given)
        return None, alone.ray, alone.tracking
    named = ["--workspace.index", options.index] if options.index else []
    experiment = load(options.config, [*overrides, *named])
    return experiment, experiment.ray, experiment.tracking


def _families(experiment: Experiment | None, *, indexed: bool) -> list[str]:
    left_out = ({"workspace"} if experiment is None else set()) | (set() if indexed else {"index"})
    return [name for name in FAMILIES if name not in left_out]


def _family(name: str, patient: Patient) -> list[Check]:
    return list(looked(importlib.import_module(f"rayjobs.doctor.{name}").looks(patient)))
