"""What runs far away: one trial, a whole training run of its own, which tells Ray Tune and the sweep how well it finds after each epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray.tune

from rayjobs.config import apply_overrides, build
from rayjobs.console import Console
from rayjobs.errors import StorageError, TrainingError
from rayjobs.experiment import Experiment
from rayjobs.train import job as training
from rayjobs.train.validation import Validation, Watch
from rayjobs.tune.population import Place, begin_at, place_of, report, within
from rayjobs.tune.space import Replay, Space, overrides
from rayjobs.tune.trials import Trial, keep, known, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

VALUE, EPOCH = "objective", "epoch"
"""What Ray Tune is told."""
DRAW = "draw"
"""What Ray Tune tells a trial: its draw of the space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What all trials share."""

    experiment: Experiment
    """With each trial's share of the cluster."""
    space: Space
    objective: str
    """The metric that counts."""
    validation: Validation
    tags: Mapping[str, str]
    """Of each trial's run in MLflow."""
    mlflow: str | None
    """MLflow's address, for trials whose process does not know it; never written down, since it may hold a password."""
    mailbox: Any
    """Where trials tell the sweep how far they are."""

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial tries, of what Ray Tune gave it."""
        return overrides(self.space, Replay(within(self.space, config[DRAW])))

    def of(self, values: Mapping[str, Any], place: Place | None = None, trial_id: str = "") -> Experiment:
        """Return the experiment of the trial that tries some values, from the beginning or from the place where it or another stands.

        Raises:
            ConfigError: they make no experiment.
        """
        if place is None:
            return experiment_of(self.experiment, values)
        own = place.run if place.trial == trial_id else f"{_run(self.experiment, values)}-{place.lineage(trial_id)}"
        return experiment_of(self.experiment, values, own)

    @property
    def exchanges(self) -> bool:
        """Whether trials take up the weights of others."""
        return _exchanges(self.experiment)


def experiment_of(experiment: Experiment, values: Mapping[str, Any], run: str | None = None) -> Experiment:
    """Return the experiment of a sweep's trial that tries some values, under the name that they have, or another.

    Raises:
        ConfigError: they make no experiment.
    """
    forced: dict[str, Any] = {"workspace.run": run or _run(experiment, values), "tracking.model": None}
    if _exchanges(experiment):  # what one trial stands at must be there when another is to begin there
        forced |= {"train.keep_checkpoints": experiment.train.epochs, "train.checkpoint_steps": None}
    return build(Experiment, apply_overrides(experiment.to_dict(), {**values, **forced}))


def _run(experiment: Experiment, values: Mapping[str, Any]) -> str:
    return name_of(experiment.open_workspace().sweep, values)


def _exchanges(experiment: Experiment) -> bool:
    return experiment.tune.scheduler.kind == "pbt"


def trial(config: dict[str, Any], sweep: Sweep) -> None:
    """Train what a draw of the space makes of the experiment, from its newest checkpoint if it was begun before."""
    if sweep.mlflow:
        os.environ["MLFLOW_TRACKING_URI"] = sweep.mlflow
    trial_id = ray.tune.get_context().get_trial_id()
    values, place = sweep.values(config), place_of(ray.tune.get_checkpoint())
    experiment = sweep.of(values, place, trial_id)
    if place and place.run != experiment.open_workspace().run:
        begin_at(place, experiment)
    listener = _Listener(sweep, experiment, values, trial_id)
    watch = Watch(validation=sweep.validation, heard=listener.heard)
    training.run(experiment, Console(sys.stdout, sys.stderr), watch, sweep.tags)
    listener.end()


class _Listener:
    """Hears what one trial's training tells, and passes it on."""

    def __init__(self, sweep: Sweep, experiment: Experiment, values: Mapping[str, Any], trial_id: str) -> None:
        self._sweep, self._epochs, self._trial_id = sweep, experiment.train.epochs, trial_id
        self._workspace = experiment.open_workspace()
        found = known(self._workspace, self._workspace.run) or Trial(run=self._workspace.run, values=dict(values))
        self._trial = dataclasses.replace(self._with_newest(found), ended="", failure="")
        self._keep()
        for epoch, value in sorted(self._trial.history.items()):  # what an earlier process was told
            self._report(epoch, value)

    def _with_newest(self, trial: Trial) -> Trial:
        """Return a trial with what its newest checkpoint tells, which may be newer than its record."""
        newest = self._workspace.checkpoints.current()
        told = newest.manifest.get("validation", {}).get(f"val/{self._sweep.objective}") if newest else None
        return trial if newest is None or told is None else trial.heard(int(newest.manifest["epoch"]), float(told))

    def heard(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take the figures of an epoch; Ray Tune may end the trial over them."""
        value = metrics.get(f"val/{self._sweep.objective}")
        if value is None:  # an epoch without a checkpoint
            return
        self._trial = self._trial.heard(epoch, value)
        with contextlib.suppress(StorageError):  # the next epoch writes all of it again, and a checkpoint's manifest tells it, too
            self._keep()
        self._report(epoch, value)

    def end(self) -> None:
        """Say that the trial has come to its end. Ray Tune hears of the last epoch now, lest it end what is still being logged."""
        self._trial = self._with_newest(self._trial)
        last = self._trial.history.get(self._epochs)
        if last is None:
            raise TrainingError(f"trial {self._trial.run} is trained, and nobody measured its last epoch; remove the run, and tune again")
        self._trial = dataclasses.replace(self._trial, ended="finished")
        self._keep()
        if not self._sweep.exchanges:  # which would have it take up another's weights, at its end
            ray.tune.report({EPOCH: self._epochs, VALUE: last})

    def _report(self, epoch: int, value: float) -> None:
        if epoch == self._epochs:
            return
        metrics = {EPOCH: epoch, VALUE: value}
        if self._sweep.exchanges:
            newest = self._workspace.checkpoints.require("")
            report(metrics, Place(trial=self._trial_id, run=self._trial.run, version=newest.version))
        else:
            ray.tune.report(metrics)

    def _keep(self) -> None:
        self._trial = dataclasses.replace(self._trial, mlflow_run=self._trial.mlflow_run or self._workspace.mlflow_run())
        keep(self._workspace, self._trial)
        self._sweep.mailbox.post.remote({"kind": "trial", "trial": self._trial})
