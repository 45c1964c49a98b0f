"""The best values, trained anew with several seeds, each measured once on the split that nothing was chosen on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pydantic

from rayjobs.config import apply_overrides, build
from rayjobs.evaluate import job as evaluation
from rayjobs.evaluate.rows import TRAINED
from rayjobs.experiment import Experiment
from rayjobs.train import job as training

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayjobs.console import Console
    from rayjobs.tune.trials import Trial
    from rayjobs.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """One training of the best values."""

    run: str
    """Name of the run in the workspace."""
    seed: int
    metrics: dict[str, dict[str, float | None]]
    """Of the encoder, by name: value, low, high."""
    differences: dict[str, dict[str, float | None]]
    """The encoder minus each other row, in the objective: value, low, high."""
    protocol: dict[str, Any]
    """Queries, gallery, relevance, exclusion, resampling unit."""
    page: str
    """Where the report of `rayjobs evaluate` lies."""


def finals(experiment: Experiment, best: Trial, tags: Mapping[str, str], console: Console) -> list[Final]:
    """Train the best values with `tune.final_seeds` seeds and measure each once; what was measured already is not opened again.

    Args:
        experiment: as the sweep was begun with.
        best: the trial whose values they are.
        tags: of the runs in MLflow.
        console: shows progress.
    """
    first = experiment.train.seed + 1  # with its own, the best was found to be the best
    return [_final(experiment, best, seed, tags, console) for seed in range(first, first + experiment.tune.final_seeds)]


def chosen(workspace: Workspace) -> str | None:
    """Return the run whose values finals were begun with, if they were: from then on no other may be chosen."""
    found = workspace.store.read_tagged(f"{workspace.sweep_folder}chosen.json")
    return str(json.loads(found.data)["run"]) if found else None


def choose(workspace: Workspace, best: Trial) -> None:
    """Write down whose values the finals are of, before the first."""
    workspace.store.write(f"{workspace.sweep_folder}chosen.json", json.dumps({"run": best.run}).encode())


def _final(experiment: Experiment, best: Trial, seed: int, tags: Mapping[str, str], console: Console) -> Final:
    workspace = experiment.open_workspace()
    run = f"{best.run}-seed-{seed}"
    known = _known(workspace, run)
    if known:
        return known
    console.say(f"tune             {run}: the best values with seed {seed}")
    own = {"workspace.run": run, "train.seed": seed, "tracking.model": None}
    chosen = build(Experiment, apply_overrides(experiment.to_dict(), {**best.values, **own}))
    training.run(chosen, console, tags=tags)
    found = evaluation.run(chosen, console, tags)
    metrics = next(row["metrics"] for row in found.rows if row["name"] == TRAINED)
    final = Final(run=run, seed=seed, metrics=metrics, differences=found.differences, protocol=found.protocol, page=found.page)
    workspace.store.write(_key(workspace, run), json.dumps(dataclasses.asdict(final)).encode())
    return final


def _known(workspace: Workspace, run: str) -> Final | None:
    found = workspace.store.read_tagged(_key(workspace, run))
    return pydantic.TypeAdapter(Final).validate_json(found.data) if found else None


def _key(workspace: Workspace, run: str) -> str:
    return f"{workspace.sweep_folder}finals/{run}.json"
