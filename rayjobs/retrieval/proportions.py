"""Metrics of tiles that hold several classes at once, given as the proportion of each: how alike neighbours are, and errors of regression.

Definitions are those of the earlier system, named after what they are. Sizes: C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import cdist

from rayjobs.retrieval.ranking import CELL_BYTES, Distance, FloatArray, IntArray, Ranker, Vectors, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rayjobs.retrieval.metrics import Pairs

GSIL_TILES = 2000
"""Most tiles that gSil is measured at; each of them is compared with all tiles."""

_ABSENT = 1e-8
"""What the earlier system added to every membership, so that no weighted mean is empty."""

_ROUNDING = 1e-12
"""Shared proportions below this are what float64 leaves of none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportions:
    """How much of each class queries and gallery items hold. As gains, an item is worth the ground that it shares: sum_c min(y_c, y'_c)."""

    queries: FloatArray
    """(queries, C) float64, at least 0; a row sums to at most 1."""
    gallery: FloatArray
    """(gallery, C) float64, likewise."""

    def __post_init__(self) -> None:
        """Refuse what are no proportions."""
        for rows in (self.queries, self.gallery):
            _check(rows)

    def rows(self, queries: IntArray) -> FloatArray:
        """Return (queries, gallery) float64, the shared proportion, from min(a, b) = (a + b - |a - b|) / 2."""
        wanted = self.queries[queries]
        sums = wanted.sum(1)[:, None] + self.gallery.sum(1)[None, :]
        shared: FloatArray = np.maximum((sums - cdist(wanted, self.gallery, "cityblock")) / 2, 0)
        shared[shared < _ROUNDING] = 0  # or a tile with nothing to find would count as one that finds nothing
        return shared


def _check(proportions: FloatArray) -> None:
    if proportions.ndim != 2 or not np.isfinite(proportions).all() or (proportions < 0).any():  # noqa: PLR2004  tiles and classes
        raise ValueError(f"proportions are (tiles, classes), finite and at least 0; these are {proportions.shape}, or not so")


def soft_relevance(wanted: FloatArray, found: FloatArray) -> FloatArray:
    """Return (queries, depth) from 0 to 1, how far two tiles share classes rather than mix different ones.

    relu(intra - inter) / max(intra, inter), with intra = mean_c min(y_c, y'_c), and inter = the mean over unordered pairs of classes of
    max(min(y'_c, y_c'), min(y'_c', y_c)). **It depends on C**, since the one mean is over C classes and the other over C (C - 1) / 2 pairs:
    identical half-and-half tiles score 0 of 2 classes, 0.5 of 3, 0.917 of 13. Where both means are 0, it is 0.

    Args:
        wanted: (queries, C) proportions y of the queries.
        found: (queries, depth, C) proportions y' of the items at each rank.

    Raises:
        ValueError: fewer than two classes, of which there are no pairs.
    """
    classes = wanted.shape[1]
    if classes < 2:  # noqa: PLR2004  a pair
        raise ValueError("soft precision compares pairs of classes, and there are fewer than two classes")
    wanted = wanted[:, None, :]
    intra = np.minimum(wanted, found).mean(2)
    inter = np.zeros_like(intra)
    for c in range(classes - 1):
        mixed = np.minimum(found[..., c, None], wanted[..., c + 1 :])
        inter += np.maximum(mixed, np.minimum(found[..., c + 1 :], wanted[..., c, None])).sum(2)
    inter /= classes * (classes - 1) / 2
    larger = np.maximum(intra, inter)
    relevance: FloatArray = np.divide(np.maximum(intra - inter, 0), larger, out=np.zeros_like(larger), where=larger > 0)
    return relevance


def soft_precision_at_r(
    queries: Vectors,
    gallery: Vectors,
    *,
    proportions: Proportions,
    excluded: Pairs,
    rs: Sequence[int] = (1, 5, 10),
    distance: Distance = "euclidean",
    seed: int = 0,
) -> dict[str, FloatArray]:
    """Return the mean `soft_relevance` of the first R items, (queries,) by `soft_precision@R`.

    The earlier system printed this as multi-label MAP@R, which it is not: no precision of earlier ranks goes into it. It ranked by
    Euclidean distance, left out the query alone, and reported R = 1, 5, 10. Where a query has fewer than R candidates, the missing count 0.

    Args:
        queries: (queries, dim) float32.
        gallery: (gallery, dim) float32.
        proportions: of queries and gallery.
        excluded: which items are no candidates: the query itself, and, other than in the earlier system, what shares its ground.
        rs: cut-offs, each at least 1.
        distance: `cosine` of vectors of length 1, or `euclidean`.
        seed: of the order of ties.

    Raises:
        RetrievalError: a vector is not finite.
        ValueError: fewer than two classes.
    """
    ranker = Ranker(queries, gallery, distance=distance, seed=seed)
    depth = min(max(rs), len(gallery))
    parts = [np.empty((0, max(rs)))]
    for rows in blocks(len(queries), CELL_BYTES * (len(gallery) + depth * proportions.gallery.shape[1])):
        out = excluded.rows(rows)
        items = ranker.ranked(rows, out, depth)
        soft = np.zeros((len(rows), max(rs)))
        soft[:, :depth] = soft_relevance(proportions.queries[rows], proportions.gallery[items])
        soft[:, :depth][np.take_along_axis(out, items, axis=1)] = 0
        parts.append(soft)
    soft = np.concatenate(parts)
    return {f"soft_precision@{r}": soft[:, :r].mean(1) for r in rs}


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralisedSilhouette:
    """gSil: the silhouettes of tiles that belong to several classes, and their weighted mean."""

    tiles: IntArray
    """(measured,) the tiles measured: all, or a random sample of `most`, in ascending order."""
    values: FloatArray
    """(measured,) -1 to 1."""
    weights: FloatArray
    """(measured,) sum of each tile's memberships; 1 where its proportions are complete."""

    @property
    def value(self) -> float:
        """The weighted mean."""
        return float(np.average(self.values, weights=self.weights))


def generalised_silhouette(vectors: Vectors, proportions: FloatArray, *, most: int = GSIL_TILES, seed: int = 0) -> GeneralisedSilhouette:
    """Return gSil (Rawashdeh and Ralescu 2012, with averages over each class and each pair of classes) on Euclidean distances.

    With memberships y, and d the distance of tile i to each other tile j, weighted by what both hold:
    A(c) = mean of d with weights min(y_ic, y_jc); B(c, c') = mean of d with weights max(min(y_ic, y_jc'), min(y_ic', y_jc));
    a = min_c A, b = min_{c != c'} B, s_i = (b - a) / max(a, b). Memory: one row of tiles x C.

    As in the earlier system 1e-8 is added to all memberships. So the A of a class that a tile does not hold is its mean distance to all,
    which then stands for a where the tile lies further from its own: such tiles score less far below 0 than in a silhouette.

    Args:
        vectors: (tiles, dim) float32; a float64 copy is held.
        proportions: (tiles, C) at least 0.
        most: tiles measured, each against all; of more tiles a random sample is.
        seed: of the sample.

    Raises:
        ValueError: fewer than two tiles or two classes, or what are no proportions.
    """
    _check(proportions)
    if len(vectors) < 2 or proportions.shape[1] < 2:  # noqa: PLR2004  a pair
        raise ValueError(f"gSil compares at least two tiles and two classes, and there are {proportions.shape}")
    exact, memberships = vectors.astype(float), np.ascontiguousarray(proportions.T) + _ABSENT
    tiles = np.arange(len(vectors))
    if len(tiles) > most:
        tiles = np.sort(np.random.default_rng(seed).choice(tiles, most, replace=False))
    values = np.empty(len(tiles))
    for rows in blocks(len(tiles), len(vectors) * CELL_BYTES):
        distances = cdist(exact[tiles[rows]], exact)
        for row, away in zip(rows, distances, strict=True):
            values[row] = _silhouette_of(int(tiles[row]), away, memberships)
    return GeneralisedSilhouette(tiles=tiles, values=values, weights=memberships[:, tiles].sum(0))


def _silhouette_of(tile: int, away: FloatArray, memberships: FloatArray) -> float:
    """Return s of one tile from its distances to all and the (C, tiles) memberships."""
    own = memberships[:, tile, None].copy()
    within = _weighted(away, np.minimum(own, memberships), tile).min()
    present = np.flatnonzero(own > _ABSENT)
    between = np.inf
    if len(own) - len(present) > 1:
        # A pair of absent classes weighs all tiles alike, so one mean stands for all such pairs.
        between = away.sum() / (len(away) - 1)
    for c in present:
        mixed = np.minimum(own, memberships[c])
        np.maximum(mixed, np.minimum(own[c], memberships), out=mixed)
        between = min(between, np.delete(_weighted(away, mixed, tile), c).min())
    larger = max(within, between)
    return float((between - within) / larger) if larger else 0.0


def _weighted(away: FloatArray, weights: FloatArray, tile: int) -> FloatArray:
    """Return (C,) means of the distances with weights (C, tiles), the tile itself left out. Overwrites its own weights."""
    weights[:, tile] = 0
    means: FloatArray = (weights @ away) / weights.sum(1)
    return means


def summed_error(predicted: FloatArray, proportions: FloatArray) -> FloatArray:
    """Return (tiles,) sum over classes of the absolute errors of predicted proportions.

    A tile's prediction is first divided by its sum and then clipped to 0..1, as in the earlier system. Predictions that sum to 0 stay as
    they are. A perfect prediction scores 0, one that shares no class 2.

    Args:
        predicted: (tiles, C), of any scale.
        proportions: (tiles, C) true proportions.
    """
    sums = predicted.sum(1, keepdims=True)
    scaled = np.clip(predicted / np.where(sums == 0, 1, sums), 0, 1)
    errors: FloatArray = np.abs(scaled - proportions).sum(1)
    return errors


EMBEDDING: Mapping[str, Callable[..., Any]] = {"soft_precision@R": soft_precision_at_r, "gSil": generalised_silhouette}
"""Metrics of vectors and what their tiles hold, by name."""

REGRESSION: Mapping[str, Callable[[FloatArray, FloatArray], FloatArray]] = {"summed_error": summed_error}
"""Errors of predicted proportions, tile by tile, by name."""
