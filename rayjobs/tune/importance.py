"""How much each key matters in a sweep: how far a forest that tells the objective from the values goes wrong without it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor  # type: ignore[import-untyped]  # scikit-learn ships no types

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FEWEST = 6
"""Trials below which nothing can be told."""
_TREES = 200
_SHUFFLES = 20


def importance(values: Sequence[Mapping[str, Any]], objective: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Return the share of each key in what can be told of the objective, the greatest first; nothing of fewer than six trials.

    Permutation importance (Breiman, Random forests, 2001): the rise of the squared error when the values of one key are shuffled among the
    trials. Of the trials at hand, on which the forest was grown: it says what mattered here.

    Args:
        values: of each trial by dotted key; a key that a trial does not have counts as a value of its own.
        objective: of each trial.
        seed: of the forest and the shuffling.
    """
    keys = [key for key in dict.fromkeys(key for trial in values for key in trial) if len({_text(trial.get(key)) for trial in values}) > 1]
    if len(values) < _FEWEST or not keys:
        return {}
    columns = {key: _columns([trial.get(key) for trial in values]) for key in keys}
    wanted = np.asarray(objective, np.float64)
    forest = RandomForestRegressor(_TREES, random_state=seed, n_jobs=1).fit(np.hstack(list(columns.values())), wanted)
    rng = np.random.default_rng(seed)
    risen = {key: _risen(forest, columns, key, wanted, rng) for key in keys}
    total = sum(risen.values())
    return {key: rise / total for key, rise in sorted(risen.items(), key=lambda item: -item[1])} if total > 0 else {}


def _risen(forest: Any, columns: Mapping[str, Any], key: str, wanted: np.ndarray[Any, Any], rng: np.random.Generator) -> float:
    def error(held: Mapping[str, Any]) -> float:
        return float(np.mean((forest.predict(np.hstack(list(held.values()))) - wanted) ** 2))

    shuffled = [error({**columns, key: columns[key][rng.permutation(len(wanted))]}) for _ in range(_SHUFFLES)]
    return max(0.0, float(np.mean(shuffled)) - error(columns))


def _columns(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return (trials, n) numbers: one column of numbers, or one for each value that is none."""
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in values]
    if all(numbers):
        return np.asarray(values, np.float64)[:, None]
    scale = np.asarray([float(value) if number else 0.0 for value, number in zip(values, numbers, strict=True)])
    others = sorted({_text(value) for value, number in zip(values, numbers, strict=True) if not number})
    marks = [[_text(value) == other and not number for other in others] for value, number in zip(values, numbers, strict=True)]
    return np.hstack([scale[:, None], np.asarray(marks, np.float64)])


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
