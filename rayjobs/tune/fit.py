"""Ray Tune begun, or gone on with, until all trials of a sweep have ended; and how each did."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import TYPE_CHECKING, Any

import ray
import ray.tune
from ray.tune import PlacementGroupFactory

from rayjobs.cluster.failures import own_error
from rayjobs.cluster.mailbox import listening
from rayjobs.errors import TrainingError
from rayjobs.tracking import close
from rayjobs.train import job as training
from rayjobs.tune import search
from rayjobs.tune.finals import chosen
from rayjobs.tune.leftovers import given_back
from rayjobs.tune.population import place_of
from rayjobs.tune.trial import Sweep, trial
from rayjobs.tune.trials import Ended, Trial, all_known, keep, known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console, Stage
    from rayjobs.workspace import Workspace


def tried(sweep: Sweep, concurrent: int, console: Console) -> list[Trial]:
    """Have Ray Tune run all trials that have not ended, and return all."""
    experiment, settings = sweep.experiment, sweep.experiment.tune
    workspace = experiment.open_workspace()
    count = search.trials_of(settings, sweep.space)
    ended = [found for found in all_known(workspace) if found.ended in {"finished", "pruned"}]
    console.say(f"tune             {count} trials, {concurrent} at a time; {len(ended)} have ended already")
    with console.stage("tune", count, "trials") as stage, listening(_Listener(stage, console, sweep.objective, ended).hear) as mailbox:
        results = _fitted(dataclasses.replace(sweep, mailbox=mailbox), concurrent)
        trials = _settled(sweep, results)
        stage.reach(count)
    for found in trials:
        if found.ended != "finished":
            close(
                experiment.tracking,
                workspace=workspace.store.uri,
                run=found.run,
                run_id=found.mlflow_run,
                status="FAILED" if found.failure else "KILLED",
                say=console.say,
            )
    return trials


def _fitted(sweep: Sweep, concurrent: int) -> Any:
    """Run the trials, or go on with them where an earlier command was cut off."""
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interrupted sweep ends at once; each trial has its checkpoint
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(concurrent))
    experiment, settings = sweep.experiment, sweep.experiment.tune
    workspace = experiment.open_workspace()
    filesystem, root = training.arrow_filesystem(workspace.store.uri)
    path = f"{root}/{workspace.sweep_folder.rstrip('/')}"
    trainable = ray.tune.with_resources(ray.tune.with_parameters(trial, sweep=sweep), beside_this_process(concurrent))
    if _has_state(workspace):
        again = chosen(workspace) is None  # once the best values were measured, no trial may change which they are
        tuner = ray.tune.Tuner.restore(f"{path}/ray", trainable, storage_filesystem=filesystem, resume_errored=again)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            **search.asked(settings, sweep.space, epochs=experiment.train.epochs, concurrent=concurrent),
            run_config=ray.tune.RunConfig(
                name="ray",
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.tune.FailureConfig(max_failures=settings.max_failures),
                verbose=0,
            ),
        )
    try:
        with given_back():
            return tuner.fit()
    except ray.exceptions.RayError as error:
        raise own_error(error) or TrainingError(
            f"Ray Tune is lost ({str(error).strip().splitlines()[0]}); the same command goes on with the trials that have not ended"
        ) from error


def _has_state(workspace: Workspace) -> bool:
    """Whether Ray Tune has come to write down its state: what it writes first cannot be gone on with by itself."""
    names = [key.rpartition("/")[2] for key in workspace.store.list(f"{workspace.sweep_folder}ray/")]
    return "tuner.pkl" in names and any(name.startswith("experiment_state") for name in names)


def beside_this_process(concurrent: int) -> PlacementGroupFactory:
    """Return what a trial itself asks of the cluster: a place on this node, where MLflow's file is; its workers ask for their own.

    There are as many such places as there are to be trials at a time: those that are tried again are not counted otherwise.
    """
    address = ray.util.get_node_ip_address()
    return PlacementGroupFactory([{f"node:{address}": max(0.0001, math.floor(0.9 / concurrent * 1e4) / 1e4)}])


class _Listener:
    """Shows what trials tell."""

    def __init__(self, stage: Stage, console: Console, objective: str, ended: Sequence[Trial]) -> None:
        self._stage, self._console, self._objective = stage, console, objective
        self._ended = {found.run for found in ended}
        self._best = max((found.value for found in ended if found.value is not None), default=None)
        stage.reach(len(self._ended))

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take a trial as it is now."""
        found: Trial = message["trial"]
        if found.value is None:
            self._console.say(f"tune             {found.run} begins: {_text(found.values)}")
            return
        if found.ended:
            self._ended.add(found.run)
            self._best = found.value if self._best is None else max(found.value, self._best)
            self._console.say(f"tune             {found.run} has ended: {self._objective} {found.value:.4f}, best so far {self._best:.4f}")
        self._stage.reach(len(self._ended), epoch=max(found.history), **{self._objective: found.value})


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())


def _settled(sweep: Sweep, results: Any) -> list[Trial]:
    """Return how all trials ended, and write that down; those that Ray Tune knows nothing of come last.

    These went on under other values (pbt), or were begun so shortly before a kill that Ray Tune forgot them.
    """
    workspace = sweep.experiment.open_workspace()
    settled = {found.run: found for found in (_ended(sweep, workspace, result) for result in results)}
    otherwise: Ended = "pruned" if sweep.exchanges else "cut off"
    others = (dataclasses.replace(found, ended=found.ended or otherwise) for found in all_known(workspace) if found.run not in settled)
    settled |= {found.run: found for found in others}
    for found in settled.values():
        keep(workspace, found)
    return list(settled.values())


def _ended(sweep: Sweep, workspace: Workspace, result: Any) -> Trial:
    values, place = sweep.values(result.config), place_of(result.checkpoint)
    experiment = sweep.of(values, place, place.trial if place else "")
    run, mlflow_run = experiment.open_workspace().run, experiment.open_workspace().mlflow_run()
    found = known(workspace, run) or Trial(run=run, values=values)
    if found.ended:
        return found
    failure = _failure(result.error) if result.error else ""
    complete = experiment.train.epochs in found.history
    ended: Ended = "failed" if failure else "finished" if complete else "pruned"
    return dataclasses.replace(found, ended=ended, failure=failure, mlflow_run=mlflow_run)


def _failure(error: BaseException) -> str:
    ours = own_error(error)
    lines = [line for line in str(ours or error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
