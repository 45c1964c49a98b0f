"""Clusters of a whole training set, class by class, and the batches and answers of magnet loss (Rippel et al., 2015). Numpy and FAISS.

Every function is deterministic: the same vectors and seed give the same clusters, on every rank and with any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from rayjobs.errors import ConfigError, TrainingError

IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

_TRIES = 3
"""Beginnings of k-means, of which the best is kept."""
_ITERATIONS = 25
_ALL = 2**31 - 1
"""No sampling: k-means looks at every vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Vectors divided into clusters, none of them empty."""

    centres: Vectors
    """(clusters, dim) mean of each cluster."""
    of_item: IntArray
    """(items,) cluster of each vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """The training set divided: each class into clusters of its own."""

    centres: Vectors
    """(clusters, dim) mean of each cluster."""
    classes: IntArray
    """(clusters,) class of each cluster."""
    of_item: IntArray
    """(items,) cluster of each item, -1 where its class is unknown."""
    variance: float
    """Mean squared distance of an item to its centre, over items - 1: the s^2 of the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterBatches:
    """The batches of one epoch: a seed cluster and its nearest impostors each, equally many items of each cluster."""

    members: IntArray
    """(steps, batch) index of each item."""
    classes: IntArray
    """(steps, batch) its class: the groups of the loss."""
    clusters: IntArray
    """(steps, batch) its cluster."""


def kmeans(vectors: Vectors, count: int, *, seed: int) -> Partition:
    """Divide vectors into at most `count` clusters: k-means++ beginnings, the best of three.

    Args:
        vectors: (items, dim) finite, one at least.
        count: clusters wanted; there are fewer where there are fewer different vectors.
        seed: of the beginnings.
    """
    points = np.ascontiguousarray(vectors, np.float32)
    method = faiss.Kmeans(
        points.shape[1],
        min(count, len(points)),
        seed=seed + 1,  # FAISS takes 0 for none
        nredo=_TRIES,
        niter=_ITERATIONS,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,
        max_points_per_centroid=_ALL,
    )
    # One thread: how BLAS shares a product among threads may change its last bit, and with it a cluster.
    with threadpool_limits(limits=1):
        method.train(points)
        nearest = method.assign(points)[1]
    found, of_item = np.unique(nearest, return_inverse=True)
    return Partition(centres=_means(points, of_item, len(found)), of_item=of_item.astype(np.int64))


def _means(vectors: Vectors, of_item: IntArray, count: int) -> Vectors:
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, of_item, vectors)
    means: Vectors = (sums / np.bincount(of_item, minlength=count)[:, None]).astype(np.float32)
    return means


def cluster(vectors: Vectors, labels: IntArray, *, per_class: int, seed: int) -> Clusters:
    """Divide each class of a training set into clusters.

    Args:
        vectors: (items, dim) embeddings.
        labels: (items,) classes, negative where unknown.
        per_class: clusters of each class; fewer where it has fewer different items.
        seed: of the beginnings of k-means.

    Raises:
        TrainingError: a vector is not finite, or there are not two classes.
    """
    names = np.unique(labels[labels >= 0])
    if len(names) <= 1:
        raise TrainingError(f"clusters of {len(names)} classes cannot be told apart; label more tiles, or choose another loss")
    if not np.isfinite(vectors).all():
        raise TrainingError(
            "an embedding is not finite, so there are no clusters; lower train.learning_rate, or set train.precision: fp32, in a new run"
        )
    of_item = np.full(len(labels), -1, np.int64)
    centres: list[Vectors] = []
    classes: list[int] = []
    for name in names.tolist():
        members = np.flatnonzero(labels == name)
        part = kmeans(vectors[members], per_class, seed=seed)
        of_item[members] = part.of_item + len(classes)
        centres.append(part.centres)
        classes += [name] * len(part.centres)
    stacked = np.concatenate(centres)
    return Clusters(centres=stacked, classes=np.array(classes), of_item=of_item, variance=_variance(vectors, stacked, of_item))


def _variance(vectors: Vectors, centres: Vectors, of_item: IntArray) -> float:
    known = of_item >= 0
    apart = vectors[known].astype(np.float64) - centres[of_item[known]]
    return float(np.square(apart).sum() / max(1, int(known.sum()) - 1))


def impostors(clusters: Clusters, seed_cluster: int, count: int) -> IntArray:
    """Return the clusters of other classes nearest to one, nearest first, at most `count`; equal distances by number."""
    (others,) = np.nonzero(clusters.classes != clusters.classes[seed_cluster])
    apart = np.square(clusters.centres[others].astype(np.float64) - clusters.centres[seed_cluster]).sum(1)
    nearest: IntArray = others[np.argsort(apart, kind="stable")[:count]]
    return nearest


def seed_odds(clusters: Clusters, recent: FloatArray) -> FloatArray:
    """Return (clusters,) how likely each cluster is drawn as a seed: in proportion to the mean recent loss of its items.

    Args:
        clusters: of the training set.
        recent: (items,) loss of each item when it was last in a batch (`MagnetLoss.per_item`), NaN before. Clusters of which nothing is
            known count as the mean of the others.
    """
    (seen,) = np.nonzero(~np.isnan(recent) & (clusters.of_item >= 0))
    count = len(clusters.classes)
    times = np.bincount(clusters.of_item[seen], minlength=count)
    sums = np.bincount(clusters.of_item[seen], weights=recent[seen], minlength=count)
    losses = sums / np.maximum(times, 1)
    losses[times == 0] = losses[times > 0].mean() if times.any() else 1.0
    if losses.sum() <= 0:
        return np.full(count, 1 / count)
    odds: FloatArray = losses / losses.sum()
    return odds


def plan_batches(
    clusters: Clusters, recent: FloatArray, rng: np.random.Generator, *, steps: int, per_batch: int, samples: int
) -> ClusterBatches:
    """Plan the batches of one epoch.

    Args:
        clusters: of the training set.
        recent: (items,) losses; see `seed_odds`.
        rng: seeded with the run's seed and the epoch.
        steps: batches.
        per_batch: clusters in a batch: one seed, drawn by `seed_odds`, and the nearest impostors of it.
        samples: items of each cluster, again and again where it has fewer.

    Raises:
        ConfigError: some cluster has fewer than per_batch - 1 impostors.
    """
    available = len(clusters.classes) - int(np.bincount(clusters.classes).max())
    if per_batch - 1 > available:
        raise ConfigError(
            f"clustering.per_batch {per_batch} needs {per_batch - 1} clusters of other classes for each, and some have {available}; lower "
            "it, or raise clustering.per_class"
        )
    members_of = [np.flatnonzero(clusters.of_item == number) for number in range(len(clusters.classes))]
    seeds = rng.choice(len(clusters.classes), steps, p=seed_odds(clusters, recent))
    chosen = np.stack([np.concatenate([[seed], impostors(clusters, seed, per_batch - 1)]) for seed in seeds.tolist()])
    drawn = [rng.choice(members_of[number], samples, replace=len(members_of[number]) < samples) for number in chosen.ravel().tolist()]
    of_each = np.repeat(chosen, samples, axis=1)
    return ClusterBatches(members=np.stack(drawn).reshape(steps, -1), classes=clusters.classes[of_each], clusters=of_each)


def class_votes(clusters: Clusters, vectors: Vectors, *, nearest: int) -> FloatArray:
    """Return (items, classes) the share of each class, by its number, in a soft vote of the nearest clusters (kNC of the paper).

    A cluster votes for its class with exp(-|r - centre|^2 / (2 s^2)); the shares of an item sum to 1.

    Args:
        clusters: of the training set.
        vectors: (items, dim) embeddings of what is to be classified, by the same encoder.
        nearest: clusters that vote; all, where there are fewer.
    """
    index = faiss.IndexFlatL2(clusters.centres.shape[1])
    index.add(clusters.centres)
    with threadpool_limits(limits=1):
        squared, voters = index.search(np.ascontiguousarray(vectors, np.float32), min(nearest, len(clusters.classes)))
    exponents = -squared.astype(np.float64) / (2 * max(clusters.variance, np.finfo(np.float64).tiny))
    weights = np.exp(exponents - exponents.max(1, keepdims=True))
    votes = np.zeros((len(vectors), int(clusters.classes.max()) + 1))
    np.add.at(votes, (np.arange(len(vectors))[:, None], clusters.classes[voters]), weights)
    shares: FloatArray = votes / votes.sum(1, keepdims=True)
    return shares
