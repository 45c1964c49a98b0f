"""What runs far away: one trial, a whole training run of its own, which tells Ray Tune and the sweep how well it finds after each epoch."""

from __future__ import annotations

import contextlib
import dataclasses
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
    """With each trial's share of the cluster, and where MLflow is."""
    space: Space
    objective: str
    """The metric that counts."""
    validation: Validation
    tags: Mapping[str, str]
    """Of each trial's run in MLflow."""
    mailbox: Any
    """Where trials tell the sweep how far they are."""

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial tries, of what Ray Tune gave it."""
        return overrides(self.space, Replay(within(self.space, config[DRAW])))

    def of(self, values: Mapping[str, Any], place: Place | None = None) -> Experiment:
        """Return the experiment of the trial that tries some values, from the beginning or from the place where it or another stands.

        Raises:
            ConfigError: they make no experiment.
        """
        run = name_of(self.experiment.open_workspace().sweep, values)
        if place:
            run = place.run if place.values == values else f"{run}-{place.lineage}"
        kept = {"train.keep_checkpoints": self.experiment.train.epochs} if self.exchanges else {}
        return build(Experiment, apply_overrides(self.experiment.to_dict(), {**values, "workspace.run": run, **kept}))

    @property
    def exchanges(self) -> bool:
        """Whether trials take up the weights of others."""
        return self.experiment.tune.scheduler.kind == "pbt"


def trial(config: dict[str, Any], sweep: Sweep) -> None:
    """Train what a draw of the space makes of the experiment, from its newest checkpoint if it was begun before."""
    values, place = sweep.values(config), place_of(ray.tune.get_checkpoint())
    experiment = sweep.of(values, place)
    if place and place.run != experiment.open_workspace().run:
        begin_at(place, experiment)
    listener = _Listener(sweep, experiment, _known(experiment, sweep, values))
    watch = Watch(validation=sweep.validation, heard=listener.heard)
    training.run(experiment, Console(sys.stdout, sys.stderr), watch, sweep.tags)
    listener.end(experiment.train.epochs)


def _known(experiment: Experiment, sweep: Sweep, values: Mapping[str, Any]) -> Trial:
    """Return what is known of a trial: by its record, and by its newest checkpoint, which may have come after that."""
    workspace = experiment.open_workspace()
    found = known(workspace, workspace.run) or Trial(run=workspace.run, values=dict(values))
    newest = workspace.checkpoints.current()
    told = newest.manifest.get("validation", {}).get(f"val/{sweep.objective}") if newest else None
    if newest and told is not None:
        found = found.heard(int(newest.manifest["epoch"]), float(told))
    return dataclasses.replace(found, ended="", failure="")


class _Listener:
    """Hears what one trial's training tells, and passes it on."""

    def __init__(self, sweep: Sweep, experiment: Experiment, trial: Trial) -> None:
        self._sweep, self._trial = sweep, trial
        self._workspace = experiment.open_workspace()
        self._keep()
        for epoch, value in sorted(trial.history.items()):  # what an earlier process was told
            self._report(epoch, value)

    def heard(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take the figures of an epoch; Ray Tune may end the trial over them."""
        value = metrics.get(f"val/{self._sweep.objective}")
        if value is None:  # an epoch without a checkpoint
            return
        self._trial = self._trial.heard(epoch, value)
        with contextlib.suppress(StorageError):  # the next epoch writes all of it again, and a checkpoint's manifest tells it, too
            self._keep()
        self._report(epoch, value)

    def end(self, epochs: int) -> None:
        """Say that the trial has come to its end."""
        if epochs not in self._trial.history:
            raise TrainingError(f"trial {self._trial.run} is trained, and nobody measured its last epoch; remove the run, and tune again")
        self._trial = dataclasses.replace(self._trial, ended="finished")
        self._keep()

    def _report(self, epoch: int, value: float) -> None:
        metrics = {EPOCH: epoch, VALUE: value}
        if self._sweep.exchanges:
            newest = self._workspace.checkpoints.require("")
            report(metrics, Place(run=self._trial.run, version=newest.version, values=self._trial.values))
        else:
            ray.tune.report(metrics)

    def _keep(self) -> None:
        self._trial = dataclasses.replace(self._trial, mlflow_run=self._trial.mlflow_run or self._workspace.mlflow_run())
        keep(self._workspace, self._trial)
        self._sweep.mailbox.post.remote({"kind": "trial", "trial": self._trial})
