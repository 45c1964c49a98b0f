"""Probes: what simple predictors, fitted on embeddings of some tiles, tell of tiles that they have not seen.

Knows no ground: units and pairs that are too near each other are given.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.ensemble import (  # type: ignore[import-untyped]  # scikit-learn ships no types
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]  # likewise
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit  # type: ignore[import-untyped]  # likewise
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor  # type: ignore[import-untyped]  # likewise
from sklearn.neural_network import MLPClassifier, MLPRegressor  # type: ignore[import-untyped]  # likewise
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]  # likewise
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]  # likewise
from sklearn.svm import SVC  # type: ignore[import-untyped]  # likewise
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor  # type: ignore[import-untyped]  # likewise

from rayjobs.errors import RetrievalError
from rayjobs.retrieval.classes import CLASSIFICATION, ClassTable, class_table
from rayjobs.retrieval.intervals import Interval, resampled_interval
from rayjobs.retrieval.proportions import REGRESSION
from rayjobs.retrieval.ranking import FloatArray, IntArray, Vectors, blocks

if TYPE_CHECKING:
    from rayjobs.retrieval.metrics import Pairs

NEIGHBOURS = 5
"""Neighbours that knn asks, and so the fewest tiles that a probe is fitted on."""

_TREES = 150
_SVC_PENALTY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a kind of probe is made, from a seed."""

    classifier: Callable[[int], Any]
    """Returns an unfitted scikit-learn classifier."""
    regressor: Callable[[int], Any] | None
    """Returns an unfitted scikit-learn regressor of several outputs; None where the kind has none."""


PROBES: Mapping[str, Probe] = {
    "knn": Probe(
        classifier=lambda _: KNeighborsClassifier(NEIGHBOURS),
        regressor=lambda _: KNeighborsRegressor(NEIGHBOURS),
    ),
    "svc": Probe(
        classifier=lambda _: make_pipeline(StandardScaler(), SVC(C=_SVC_PENALTY)),
        regressor=None,
    ),
    "rfc": Probe(
        classifier=lambda seed: RandomForestClassifier(_TREES, random_state=seed),
        regressor=lambda seed: RandomForestRegressor(_TREES, max_features="sqrt", random_state=seed),
    ),
    "mlp": Probe(
        classifier=lambda seed: make_pipeline(StandardScaler(), MLPClassifier(random_state=seed)),
        regressor=lambda seed: make_pipeline(StandardScaler(), MLPRegressor(random_state=seed)),
    ),
    "dt": Probe(
        classifier=lambda seed: DecisionTreeClassifier(random_state=seed),
        regressor=lambda seed: DecisionTreeRegressor(random_state=seed),
    ),
}
"""Probes by name. The sizes of knn, rfc and svc are the earlier system's; both forests choose among sqrt(dim) dimensions. svc and mlp,
which depend on the scale of each dimension, see vectors standardised on the training tiles, so that embeddings of any scale are judged
alike; knn sees them as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Tiles that a probe is fitted on and tiles that it is tested on."""

    train: IntArray
    """(train,) indices."""
    test: IntArray
    """(test,) indices, none of them in `train`."""


def random_splits(labels: IntArray, *, repeats: int, test_share: float, seed: int, near: Pairs | None = None) -> list[Split]:
    """Divide tiles at random, each class in the same proportion; neighbours then lie on both sides, which flatters.

    Args:
        labels: (tiles,) class, or dominant class; tiles of unknown class (negative) are in no part. A class of one tile only trains.
        repeats: number of splits, independent of each other.
        test_share: share of the tiles that is tested on, above 0 and below 1.
        seed: of the draws.
        near: pairs of a tested and a training tile that may not meet, such as those that share ground; the training tile is dropped.

    Raises:
        RetrievalError: there are too few tiles for the number of classes.
    """
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    known = (names >= 0)[inverse]
    several, single = np.flatnonzero(known & (counts > 1)[inverse]), np.flatnonzero(known & (counts == 1)[inverse])
    drawn = StratifiedShuffleSplit(repeats, test_size=test_share, random_state=seed)
    try:
        parts = [(np.concatenate([several[train], single]), several[test]) for train, test in drawn.split(several, labels[several])]
    except ValueError as error:
        raise RetrievalError(f"{len(several)} tiles with a class cannot be divided for a probe ({error}); evaluate more tiles") from None
    return [_apart(train, test, near) for train, test in parts]


def unit_splits(
    units: np.ndarray[Any, Any], labels: IntArray, *, repeats: int, test_share: float, seed: int, near: Pairs | None = None
) -> list[Split]:
    """Divide tiles by whole units, such as blocks of ground.

    Args:
        units: (tiles,) unit of each tile.
        labels: (tiles,) class, or dominant class; tiles of unknown class (negative) are in no part.
        repeats: number of splits, independent of each other.
        test_share: share of the units that is tested on, above 0 and below 1.
        seed: of the draws.
        near: pairs of a tested and a training tile that may not meet: the buffer between units; the training tile is dropped.

    Raises:
        RetrievalError: there are too few units.
    """
    known = np.flatnonzero(labels >= 0)
    drawn = GroupShuffleSplit(repeats, test_size=test_share, random_state=seed)
    try:
        parts = [(known[train], known[test]) for train, test in drawn.split(known, groups=units[known])]
    except ValueError as error:
        count = len(np.unique(units[known]))
        raise RetrievalError(f"{count} units cannot be divided for a probe ({error}); evaluate smaller blocks or more ground") from None
    return [_apart(train, test, near) for train, test in parts]


def _apart(train: IntArray, test: IntArray, near: Pairs | None) -> Split:
    """Drop the training tiles that are near a tested one."""
    if near is not None:
        total = int(max(train.max(), test.max())) + 1
        close = np.zeros(total, bool)
        for rows in blocks(len(test), 2 * total):
            close |= near.rows(test[rows])[:, :total].any(0)
        train = train[~close[train]]
    return Split(train=np.sort(train), test=np.sort(test))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a probe found."""

    metrics: dict[str, Interval]
    """Mean over the splits, with its interval, by metric."""
    values: dict[str, FloatArray]
    """(splits,) by metric; of the same splits, two embeddings are compared in pairs."""
    test_ratio: float
    """Tested over trained tiles, mean over the splits; widens the intervals."""
    table: ClassTable | None
    """Class by class, over the tested tiles of all splits together; None of proportions."""


def probe(kind: str, vectors: Vectors, targets: IntArray | FloatArray, splits: Sequence[Split], *, seed: int = 0) -> ProbeResult:
    """Fit a fresh probe on the training tiles of every split and test it on the others.

    Deterministic for a seed. `joblib.parallel_config(n_jobs=...)` about the call lets rfc grow its trees in threads, with the same result.

    Args:
        kind: a name of `PROBES`.
        vectors: (tiles, dim) float32.
        targets: (tiles,) int class, or (tiles, C) float proportions.
        splits: as from `unit_splits` or `random_splits`; the same for all embeddings that are compared.
        seed: of the probes; split i has seed + i.

    Raises:
        RetrievalError: the kind has no form for proportions, or a split trains on fewer tiles than `NEIGHBOURS`, or on one class alone, or
            tests on none.
    """
    for split in splits:
        if len(split.train) < NEIGHBOURS or not len(split.test):
            raise RetrievalError(
                f"a probe is fitted on {len(split.train)} tiles and tested on {len(split.test)}, and needs {NEIGHBOURS} and 1; "
                "evaluate more tiles"
            )
    if targets.ndim == 1:
        return _of_classes(kind, vectors, targets.astype(np.int64), splits, seed)
    return _of_proportions(kind, vectors, targets.astype(np.float64), splits, seed)


def _of_classes(kind: str, vectors: Vectors, labels: IntArray, splits: Sequence[Split], seed: int) -> ProbeResult:
    if any(len(np.unique(labels[split.train])) == 1 for split in splits):
        raise RetrievalError("a split trains a probe on one class alone; evaluate smaller blocks or more ground")
    truths = [labels[split.test] for split in splits]
    found = _predictions(PROBES[kind].classifier, vectors, labels, splits, seed)
    values = {
        name: np.array([metric(truth, predicted) for truth, predicted in zip(truths, found, strict=True)])
        for name, metric in CLASSIFICATION.items()
    }
    return _result(values, splits, class_table(np.concatenate(truths), np.concatenate(found), int(labels.max()) + 1))


def _of_proportions(kind: str, vectors: Vectors, proportions: FloatArray, splits: Sequence[Split], seed: int) -> ProbeResult:
    regressor = PROBES[kind].regressor
    if regressor is None:
        able = ", ".join(name for name, made in PROBES.items() if made.regressor)
        raise RetrievalError(f"the probe {kind!r} knows classes but no proportions; choose from {able}")
    found = _predictions(regressor, vectors, proportions, splits, seed)
    values = {
        name: np.array([error(predicted, proportions[split.test]).mean() for split, predicted in zip(splits, found, strict=True)])
        for name, error in REGRESSION.items()
    }
    return _result(values, splits, None)


def _predictions(
    made: Callable[[int], Any], vectors: Vectors, targets: IntArray | FloatArray, splits: Sequence[Split], seed: int
) -> list[Any]:
    """Return what a fresh predictor of every split says of its test tiles."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe has a fixed budget, the same for every embedding
        for number, split in enumerate(splits):
            predictor = made(seed + number).fit(vectors[split.train], targets[split.train])
            found.append(predictor.predict(vectors[split.test]))
    return found


def _result(values: dict[str, FloatArray], splits: Sequence[Split], table: ClassTable | None) -> ProbeResult:
    ratio = float(np.mean([len(split.test) / len(split.train) for split in splits]))
    metrics = {name: resampled_interval(repeated, ratio) for name, repeated in values.items()}
    return ProbeResult(metrics=metrics, values=values, test_ratio=ratio, table=table)
