"""Retrieval across dates, pair by pair: how well tiles of one date find their places on another, and how far down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.retrieval.intervals import bootstrap_interval
from rayjobs.retrieval.metrics import first_ranks

if TYPE_CHECKING:
    from rayjobs.evaluate.measure import Measured
    from rayjobs.evaluate.relevance import DatePair
    from rayjobs.evaluate.section import EvaluateSection
    from rayjobs.retrieval.intervals import Interval

Json = dict[str, Any]


def by_dates(row: Measured, settings: EvaluateSection) -> list[Json]:
    """Return an entry for each pair of dates, in either direction, whose places can be found.

    Each has `asking` and `asked`, the dates; `gap_days`, from the one to the other; `queries`; `gallery`; `median_rank` of the
    place among the tiles of the date that is asked, from 1; and `metrics` {metric: {value, low, high}}: the objective, and MRR, recall and
    hit rate at every cut-off.
    """
    ranks = first_ranks(
        row.vectors[row.question.queries],
        row.vectors,
        relevance=row.question.relevance,
        excluded=row.question.excluded,
        distance=row.distance,
        seed=settings.seed,
    )
    return [_entry(row, pair, ranks, settings) for pair in row.question.dates if (ranks[pair.queries] > 0).any()]


def _entry(row: Measured, pair: DatePair, ranks: np.ndarray[Any, np.dtype[np.int64]], settings: EvaluateSection) -> Json:
    asked = pair.queries[ranks[pair.queries] > 0]
    names = dict.fromkeys([settings.objective, *(f"{name}@{k}" for name in ("MRR", "recall", "hit_rate") for k in settings.ks)])
    return {
        "asking": pair.asking,
        "asked": pair.asked,
        "gap_days": pair.gap_days,
        "queries": len(asked),
        "gallery": pair.gallery,
        "median_rank": float(np.median(ranks[asked])),
        "metrics": {name: _figure(_interval(row, name, asked, settings)) for name in names},
    }


def _interval(row: Measured, name: str, asked: np.ndarray[Any, np.dtype[np.int64]], settings: EvaluateSection) -> Interval:
    found = row.metrics[name]
    of_pair = np.isin(found.queries, asked)
    units = row.question.units[found.tiles[of_pair]]
    return bootstrap_interval(found.values[of_pair], units, resamples=settings.resamples, seed=settings.seed)


def _figure(interval: Interval) -> Json:
    several = interval.units > 1
    return {"value": interval.value, "low": interval.low if several else None, "high": interval.high if several else None}
