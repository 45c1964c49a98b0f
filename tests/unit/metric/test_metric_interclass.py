"""Triplets across classes against a loop over all triplets, and the clusters that say what looks alike."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from rayjobs.errors import TrainingError
from rayjobs.metric.interclass import InterclassTriplets, looks
from rayjobs.metric.relations import Reference
from rayjobs.metric.section import InterclassSection


def naive(vectors, clusters, classes, margin):
    """Mean over the losses above 0 of semi-hard triplets by cluster whose anchor is of neither of the two others' classes."""
    unit = [[x / math.hypot(*row) for x in row] for row in vectors]
    costs = []
    for a, p, n in itertools.permutations(range(len(unit)), 3):
        if clusters[a] != clusters[p] or clusters[a] == clusters[n] or classes[a] in (classes[p], classes[n]):
            continue
        near, far = math.dist(unit[a], unit[p]), math.dist(unit[a], unit[n])
        if 0 < far - near <= margin:
            costs.append(near - far + margin)
    above = [cost for cost in costs if cost > 0]
    return sum(above) / len(above)


@pytest.mark.parametrize("seed", range(3))
def test_the_triplets_are_those_of_a_naive_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(14, 5, generator=generator, dtype=torch.float64)
    clusters, classes = (torch.randint(0, 4, (14,), generator=generator) for _ in range(2))
    reference = Reference(embeddings=vectors, groups=clusters, itself=torch.eye(14, dtype=torch.bool))
    part = InterclassTriplets(InterclassSection(weight=1.0, margin=0.5)).part(
        vectors, clusters, classes, others=classes, reference=reference
    )
    expected = naive(vectors.tolist(), clusters.tolist(), classes.tolist(), 0.5)
    assert part.over(part.counts).item() == pytest.approx(expected, rel=1e-10)


def test_triplets_of_one_class_cost_nothing():
    vectors = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    clusters, classes = torch.arange(8) % 2, torch.zeros(8, dtype=torch.int64)
    reference = Reference(embeddings=vectors, groups=clusters, itself=torch.eye(8, dtype=torch.bool))
    part = InterclassTriplets(InterclassSection(weight=1.0)).part(vectors, clusters, classes, others=classes, reference=reference)
    assert part.over(part.counts).item() == 0


def blobs(scales: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Two kinds of tiles, told apart by the first feature alone; the second is noise."""
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1], 50)
    points = np.stack([kinds * 8 + rng.normal(size=100), rng.normal(size=100)], axis=1)
    return (points * scales + [3.0, -7.0]).astype(np.float32), kinds


def agree(found: np.ndarray, kinds: np.ndarray) -> bool:
    return len(np.unique(np.stack([found, kinds]), axis=1).T) == len(np.unique(kinds))


def test_tiles_that_look_alike_are_one_cluster_and_standardised_features_weigh_alike():
    features, kinds = blobs((1.0, 1.0))
    assert agree(looks(features, InterclassSection(clusters=2, standardise=False)), kinds)
    drowned, kinds = blobs((1.0, 1000.0))
    assert agree(looks(drowned, InterclassSection(clusters=2)), kinds)
    assert not agree(looks(drowned, InterclassSection(clusters=2, standardise=False)), kinds)
    np.testing.assert_array_equal(looks(drowned, InterclassSection(clusters=5)), looks(drowned, InterclassSection(clusters=5)))


def test_a_feature_that_never_varies_is_no_fault_and_one_that_is_no_number_is():
    features, kinds = blobs((1.0, 0.0))
    assert agree(looks(features, InterclassSection(clusters=2)), kinds)
    features[3, 0] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        looks(features, InterclassSection())
