"""What `sweep.json` says, as plain values of JSON, and the files that are made of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.config import flatten
from rayjobs.tune.importance import importance
from rayjobs.tune.page import page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.tune.finals import Final
    from rayjobs.tune.trials import Trial


def report_of(experiment: Experiment, set_version: str, trials: Sequence[Trial], best: Trial, finals: Sequence[Final]) -> dict[str, Any]:
    """Return what a sweep has found.

    Returns:
        `sweep`, `set_version`, `objective` (a metric of the val split), `split` of the finals, `settings` (the tune section), `counts` of
        trials by how they ended, `best` (a run), `importance` by key, `trials` (each `number`, `run`, `values` by dotted key, `value`,
        `history` of [epochs, objective], `ended`, `failure`, `mlflow_run`), `finals` (each as `Final`) and `final`: the mean over seeds
        of the objective, and the least and the greatest.
    """
    objective = experiment.evaluate.objective
    whole = [trial for trial in trials if trial.ended == "finished" and trial.value is not None]
    matters = importance([flatten(trial.values) for trial in whole], [trial.value or 0.0 for trial in whole])
    return {
        "sweep": experiment.open_workspace().sweep,
        "set_version": set_version,
        "objective": objective,
        "split": experiment.evaluate.split,
        "settings": experiment.to_dict()["tune"],
        "epochs": experiment.train.epochs,
        "counts": dict(Counter(trial.ended for trial in trials)),
        "best": best.run,
        "importance": matters,
        "trials": [_entry(number, trial) for number, trial in enumerate(trials, start=1)],
        "finals": [dataclasses.asdict(final) for final in finals],
        "final": _over_seeds([final.metrics[objective]["value"] for final in finals]),
    }


def _entry(number: int, trial: Trial) -> dict[str, Any]:
    return {
        "number": number,
        "run": trial.run,
        "values": flatten(trial.values),
        "value": trial.value,
        "history": sorted([epoch, value] for epoch, value in trial.history.items()),
        "ended": trial.ended,
        "failure": trial.failure,
        "mlflow_run": trial.mlflow_run,
    }


def _over_seeds(values: Sequence[float | None]) -> dict[str, float | int] | None:
    known = [value for value in values if value is not None]
    return {"seeds": len(known), "mean": float(np.mean(known)), "least": min(known), "greatest": max(known)} if known else None


def version_of(report: Mapping[str, Any]) -> str:
    """Return the name of the version that a report has."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:16]


def files(experiment: Experiment, report: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of the report by name."""
    return {
        "sweep.json": json.dumps(report, indent=1, allow_nan=False).encode(),
        "sweep.html": page(report, experiment.to_yaml()).encode(),
        "experiment.yaml": experiment.to_yaml().encode(),
    }


def shown(report: Mapping[str, Any]) -> list[str]:
    """Return the lines that a person sees at the end: the best trials, and what became of the best values."""
    ranked = sorted((trial for trial in report["trials"] if trial["ended"] == "finished"), key=lambda trial: -trial["value"])
    lines = [f"{trial['value']:.4f}  {trial['run']}  {_values(trial)}" for trial in ranked[:5]]
    final = report["final"]
    if final:
        lines.append(
            f"{report['objective']} on {report['split']}: {final['mean']:.4f}, mean of {final['seeds']} seeds "
            f"({final['least']:.4f} to {final['greatest']:.4f})"
        )
    return lines


def _values(trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in trial["values"].items())
