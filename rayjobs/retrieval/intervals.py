"""Intervals over independent units: blocks of ground, places, observations; never single tiles, since neighbours are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_CHUNK = 256
"""Resamples drawn together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95 % interval: percentiles of a bootstrap, or Student's over resampled splits."""

    value: float
    low: float
    high: float
    units: int
    """Independent units that were resampled, or splits; few make the interval itself unsure."""


def bootstrap_interval(values: FloatArray, units: np.ndarray[Any, Any], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of `values` with an interval from resampling whole units with replacement (cluster bootstrap, Field and Welsh 2007).

    Args:
        values: (queries,) a metric; for a paired difference, the difference of two methods' values.
        units: (queries,) the unit of each query.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        The interval; of no values, NaN and 0 units.
    """
    if not len(values):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"), units=0)
    names, inverse = np.unique(units, return_inverse=True)
    sums = np.bincount(inverse, values, len(names))
    counts = np.bincount(inverse, minlength=len(names)).astype(float)
    rng = np.random.default_rng(seed)
    means: list[FloatArray] = []
    for start in range(0, resamples, _CHUNK):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(_CHUNK, resamples - start))
        means.append((times @ sums) / (times @ counts))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(value=float(values.mean()), low=float(low), high=float(high), units=len(names))


def paired_difference(
    ours: FloatArray, theirs: FloatArray, units: np.ndarray[Any, Any], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean difference of two methods on the same queries, with its interval; see `bootstrap_interval`."""
    return bootstrap_interval(ours - theirs, units, resamples=resamples, seed=seed)


def resampled_interval(values: FloatArray, test_ratio: float) -> Interval:
    """Return the mean over resampled splits with the corrected interval of Nadeau and Bengio (2003).

    Splits of one pool share most of their tiles, so their values lie closer together than those of fresh pools would: the variance of the
    mean is s^2 (1 / splits + test tiles / training tiles), not s^2 / splits. Student's t with splits - 1 degrees of freedom.

    Args:
        values: (splits,) a metric, once per split.
        test_ratio: tested over trained tiles.

    Returns:
        The interval; its ends are NaN for a single split, which has no spread.
    """
    count = len(values)
    if count == 1:
        return Interval(value=float(values[0]), low=float("nan"), high=float("nan"), units=1)
    reach = float(scipy.stats.t.ppf(0.975, count - 1) * values.std(ddof=1) * np.sqrt(1 / count + test_ratio))
    mean = float(values.mean())
    return Interval(value=mean, low=mean - reach, high=mean + reach, units=count)
