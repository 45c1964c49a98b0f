"""What Ray Tune is asked for: which trials, by which search algorithm and under which scheduler."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch

from rayjobs.tune.population import mutations
from rayjobs.tune.space import Draw, Range, Replay, Space, every_draw, overrides, random_draws
from rayjobs.tune.trial import DRAW, EPOCH, VALUE

if TYPE_CHECKING:
    import optuna
    from ray.tune.schedulers import TrialScheduler

    from rayjobs.tune.section import AshaScheduler, NoScheduler, PopulationScheduler, TuneSection

_TRIED_BEFOREHAND = 32
"""Draws of a space whose trials cannot be told beforehand that are looked at even so, before anything starts."""


def planned(settings: TuneSection, space: Space) -> list[Draw]:
    """Return the draws of a sweep; none where a search algorithm chooses them one after the other.

    Raises:
        ConfigError: a grid over a range.
    """
    if settings.search == "grid":
        return _different(space, every_draw(space))
    return random_draws(space, settings.trials, np.random.default_rng(settings.seed)) if settings.search == "random" else []


def _different(space: Space, draws: list[Draw]) -> list[Draw]:
    """Return the draws whose values differ: a list may have an entry twice."""
    found = {json.dumps(overrides(space, Replay(draw)), sort_keys=True): draw for draw in reversed(draws)}
    return list(reversed(found.values()))


def examples(settings: TuneSection, space: Space) -> list[Draw]:
    """Return draws to look at before anything starts: the planned ones, or else some by chance."""
    return planned(settings, space) or random_draws(space, _TRIED_BEFOREHAND, np.random.default_rng(settings.seed))


def trials_of(settings: TuneSection, space: Space) -> int:
    """Return how many trials a sweep has."""
    return len(planned(settings, space)) or settings.trials


def asked(settings: TuneSection, space: Space, *, epochs: int, concurrent: int) -> dict[str, Any]:
    """Return the arguments of `ray.tune.Tuner` that say what is tried."""
    draws = planned(settings, space)
    searcher = None if draws else OptunaSearch(space=_Suggest(space), metric=VALUE, mode="max", seed=settings.seed)
    return {
        "param_space": {DRAW: ray.tune.grid_search(draws)} if draws else None,
        "tune_config": ray.tune.TuneConfig(
            metric=VALUE,
            mode="max",
            num_samples=1 if draws else settings.trials,
            max_concurrent_trials=concurrent,
            search_alg=searcher,
            scheduler=_SCHEDULERS[settings.scheduler.kind](settings.scheduler, epochs, space),
            # a trial's process serves the next one, which spares it all imports; but not one that was ended while its workers trained
            reuse_actors=settings.scheduler.kind == "none",
        ),
    }


@dataclass(frozen=True, slots=True)
class _Suggest:
    """What Optuna asks for the values of a trial."""

    space: Space

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        chooser = _Optuna(trial)
        overrides(self.space, chooser)
        return {DRAW: chooser.draw}


class _Optuna:
    """Decides as Optuna does, and remembers."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.draw: Draw = {}

    def choose(self, name: str, count: int) -> int:
        self.draw[name] = int(self._trial.suggest_categorical(name, list(range(count))))
        return int(self.draw[name])

    def number(self, name: str, within: Range) -> float:
        if within.whole:
            self.draw[name] = self._trial.suggest_int(name, int(within.low), int(within.high), log=within.log)
        else:
            self.draw[name] = self._trial.suggest_float(name, within.low, within.high, log=within.log)
        return self.draw[name]


def _none(settings: NoScheduler, epochs: int, space: Space) -> TrialScheduler:  # noqa: ARG001  all have the same form
    return FIFOScheduler()


def _asha(settings: AshaScheduler, epochs: int, space: Space) -> TrialScheduler:  # noqa: ARG001  all have the same form
    return AsyncHyperBandScheduler(
        time_attr=EPOCH,
        max_t=max(epochs, settings.grace_epochs),
        grace_period=settings.grace_epochs,
        reduction_factor=settings.reduction,
        stop_last_trials=False,  # a trial says itself when it has come to its end
    )


def _pbt(settings: PopulationScheduler, epochs: int, space: Space) -> TrialScheduler:  # noqa: ARG001  all have the same form
    return PopulationBasedTraining(
        time_attr=EPOCH,
        perturbation_interval=settings.every_epochs,
        quantile_fraction=settings.quantile,
        hyperparam_mutations={DRAW: mutations(space)},
    )


_SCHEDULERS: dict[str, Any] = {"none": _none, "asha": _asha, "pbt": _pbt}
