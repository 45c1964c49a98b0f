"""The `tune` section of the experiment file."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

import pydantic

from rayjobs.config import section

Count = Annotated[int, pydantic.Field(ge=1)]


def _loss_margin_and_dimension() -> dict[str, Any]:
    return {
        "loss": [
            {"kind": "triplet", "margin": [0.1, 0.2, 0.4]},
            {"kind": "contrastive", "neg_margin": [0.6, 1.0]},
            {"kind": "ntxent", "temperature": [0.07, 0.2]},
        ],
        "model.dim": [64, 128],
    }


@section
class NoScheduler:
    """Every trial is trained to its end."""

    kind: Literal["none"] = "none"
    """Which scheduler."""


@section
class AshaScheduler:
    """Trials that fall behind are ended early (Li et al., Massively parallel hyperparameter tuning, 2020)."""

    kind: Literal["asha"]
    """Which scheduler."""
    grace_epochs: Count = 1
    """Epochs that every trial gets."""
    reduction: Annotated[int, pydantic.Field(ge=2)] = 3
    """Of so many trials one goes on at each rung; the rungs lie `grace_epochs` x `reduction`^n epochs apart."""


@section
class PopulationScheduler:
    """The worst trials take up weights and values of the best, changed a little (Jaderberg et al., Population based training, 2017)."""

    kind: Literal["pbt"]
    """Which scheduler."""
    every_epochs: Count = 2
    """Epochs between such exchanges."""
    quantile: Annotated[float, pydantic.Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that count as worst, and as best."""


SchedulerSection = Annotated[NoScheduler | AshaScheduler | PopulationScheduler, pydantic.Field(discriminator="kind")]


@section
class TuneSection:
    """Which values of which keys are tried, in what order, and what becomes of the best."""

    space: dict[str, Any] = field(default_factory=_loss_margin_and_dimension)
    """Dotted keys and what they may be: a list is a choice, an entry of which may be a whole section with spaces of its own;
    `{uniform: [low, high]}`, `{loguniform: [low, high]}`, `{integer: [low, high]}` and `{logint: [low, high]}` are ranges. By default
    loss, margin and dimension."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid`: all of the space; `random`: `trials` of it by chance; `optuna`: `trials` of it, by what earlier ones told (a tree-structured
    Parzen estimator)."""
    trials: Count = 16
    """Trials of `random` and `optuna`."""
    scheduler: SchedulerSection = NoScheduler()
    """Which trials are ended before their last epoch."""
    concurrent: Count | None = None
    """Trials at a time; default: as many as the cluster has room for where `train.cpus_per_worker` or a GPU says what each takes, else
    one."""
    max_failures: Annotated[int, pydantic.Field(ge=0)] = 1
    """Restarts of a trial beyond those of `train.max_failures`, before the sweep goes on without it."""
    seed: int = 0
    """Of what is drawn by chance."""
    final_seeds: Annotated[int, pydantic.Field(ge=0)] = 3
    """Seeds (those after `train.seed`) that the best values are trained with anew, each measured once on `evaluate.split`; 0: the best
    trial stays what it is, and nothing is measured on that split."""

    def __post_init__(self) -> None:
        """Refuse two that both choose the values."""
        if self.search == "optuna" and self.scheduler.kind == "pbt":
            raise ValueError("scheduler.kind pbt changes values while trials learn, which optuna is not told; set search: random or grid")
