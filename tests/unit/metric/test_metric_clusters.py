from __future__ import annotations

import math

import faiss
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from rayjobs.errors import ConfigError, TrainingError
from rayjobs.metric.clusters import Clusters, class_votes, cluster, impostors, kmeans, plan_batches, seed_odds
from rayjobs.metric.losses import MagnetLoss


def blobs(centres, each, spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array(centres, np.float32)
    vectors = np.repeat(centres, each, axis=0) + rng.normal(scale=spread, size=(len(centres) * each, centres.shape[1]))
    return vectors.astype(np.float32), np.repeat(np.arange(len(centres)), each)


def crossed():
    """Two classes, each at two opposite corners of a square, and three items of unknown class."""
    vectors, corner = blobs([[0, 0], [1, 1], [0, 1], [1, 0]], 20)
    labels = np.repeat([0, 0, 1, 1], 20)
    order = np.random.default_rng(1).permutation(len(vectors))
    vectors, labels, corner = vectors[order], labels[order], corner[order]
    return np.concatenate([vectors, vectors[:3]]), np.concatenate([labels, [-1] * 3]), corner


def known():
    """Six clusters of three classes along a line."""
    return Clusters(
        centres=np.array([[0.0], [10.0], [1.0], [2.5], [4.0], [11.0]], np.float32),
        classes=np.array([0, 0, 1, 1, 2, 2]),
        of_item=np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5, -1]),
        variance=2.0,
    )


# --- k-means


def test_kmeans_finds_clusters_that_lie_apart():
    vectors, blob = blobs(np.eye(6) * 3, 25)
    found = kmeans(vectors, 6, seed=0)
    assert len({(int(a), int(b)) for a, b in zip(found.of_item, blob, strict=True)}) == 6
    for number in range(6):
        np.testing.assert_allclose(found.centres[number], vectors[found.of_item == number].mean(0), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_is_about_as_good_as_scikit_learns(seed):
    vectors = np.random.default_rng(seed).normal(size=(300, 8)).astype(np.float32)
    found = kmeans(vectors, 10, seed=seed)
    inertia = np.square(vectors - found.centres[found.of_item]).sum()
    assert inertia < 1.05 * KMeans(10, n_init=10, random_state=seed).fit(vectors).inertia_


@pytest.mark.parametrize("size", [400, 3000])
def test_kmeans_does_not_depend_on_the_number_of_threads(size):
    vectors = np.random.default_rng(3).normal(size=(size, 32)).astype(np.float32)
    threads = faiss.omp_get_max_threads()
    found = []
    try:
        for count in (1, 4):
            faiss.omp_set_num_threads(count)
            found.append(kmeans(vectors, 12, seed=5))
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(found[0].of_item, found[1].of_item)
    np.testing.assert_array_equal(found[0].centres, found[1].centres)


def test_another_seed_begins_elsewhere():
    vectors = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
    assert not np.array_equal(kmeans(vectors, 12, seed=0).centres, kmeans(vectors, 12, seed=1).centres)


@pytest.mark.parametrize("items", [1, 2, 9])
def test_no_cluster_is_empty_where_there_are_fewer_different_vectors_than_clusters(items):
    vectors = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)[:items]
    found = kmeans(vectors, 4, seed=0)
    assert sorted(set(found.of_item.tolist())) == list(range(len(found.centres)))
    np.testing.assert_allclose(found.centres[found.of_item], vectors)


def test_kmeans_prints_nothing(capfd):
    kmeans(np.eye(9, dtype=np.float32), 4, seed=0)
    assert capfd.readouterr() == ("", "")


# --- clusters of a training set


def test_each_class_is_divided_by_itself():
    vectors, labels, corner = crossed()
    found = cluster(vectors, labels, per_class=2, seed=0)
    assert found.classes.tolist() == [0, 0, 1, 1]
    assert found.of_item[-3:].tolist() == [-1] * 3
    of_item = found.of_item[:-3]
    np.testing.assert_array_equal(found.classes[of_item], labels[:-3])
    assert len(set(zip(of_item.tolist(), corner.tolist(), strict=True))) == 4
    apart = sum(math.dist(vector, found.centres[number]) ** 2 for vector, number in zip(vectors[:-3], of_item, strict=True))
    assert found.variance == pytest.approx(apart / (len(of_item) - 1), rel=1e-5)


def test_a_class_of_few_items_has_few_clusters():
    vectors = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    found = cluster(vectors, np.array([5] * 11 + [7]), per_class=4, seed=0)
    assert found.classes.tolist() == [5] * 4 + [7]


def test_what_cannot_be_clustered_is_said():
    vectors = np.ones((4, 2), np.float32)
    with pytest.raises(TrainingError, match="1 classes"):
        cluster(vectors, np.array([0, 0, 0, -1]), per_class=2, seed=0)
    vectors[2, 1] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        cluster(vectors, np.array([0, 0, 1, 1]), per_class=2, seed=0)


# --- batches


def test_impostors_are_the_nearest_clusters_of_other_classes():
    found = known()
    for seed in range(6):
        others = [number for number in range(6) if found.classes[number] != found.classes[seed]]
        others.sort(key=lambda number: abs(found.centres[number, 0] - found.centres[seed, 0]))
        assert impostors(found, seed, 3).tolist() == others[:3]
        assert impostors(found, seed, 9).tolist() == others


def test_seeds_are_drawn_in_proportion_to_the_recent_losses_of_their_items():
    found, recent = known(), np.full(12, np.nan)
    np.testing.assert_allclose(seed_odds(found, recent), np.full(6, 1 / 6))
    recent[[0, 1, 3, 5, 8, 11]] = [1, 3, 4, 0, 2, 99]  # clusters 0: 2, 1: 4, 2: 0, 4: 2; of 3 and 5 nothing is known: the mean, 2
    np.testing.assert_allclose(seed_odds(found, recent), np.array([2, 4, 0, 2, 2, 2]) / 12)
    np.testing.assert_allclose(seed_odds(found, np.zeros(12)), np.full(6, 1 / 6))


def test_a_batch_is_a_seed_and_its_nearest_impostors():
    found = known()
    recent = np.array([4.0] * 3 + [1] * 2 + [0] + [2] * 2 + [1] * 2 + [0, 0])
    plan = plan_batches(found, recent, np.random.default_rng(0), steps=2000, per_batch=3, samples=2)
    assert plan.members.shape == plan.classes.shape == plan.clusters.shape == (2000, 6)
    np.testing.assert_array_equal(found.of_item[plan.members], plan.clusters)
    np.testing.assert_array_equal(found.classes[plan.clusters], plan.classes)
    for row in plan.clusters[:50].tolist():
        assert row[::2] == row[1::2] == [row[0], *impostors(found, row[0], 2).tolist()]
    share = np.bincount(plan.clusters[:, 0], minlength=6) / 2000
    expected = np.array([4, 1, 0, 2, 1, 0]) / 8
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2000))


def test_items_of_a_cluster_come_once_where_there_are_enough():
    plan = plan_batches(known(), np.zeros(12), np.random.default_rng(0), steps=100, per_batch=2, samples=2)
    sizes = np.bincount(known().of_item[:-1])
    for members, clusters in zip(plan.members.reshape(-1, 2), plan.clusters.reshape(-1, 2), strict=True):
        assert (len(set(members.tolist())) == 2) == (sizes[clusters[0]] >= 2)


def test_a_plan_follows_from_its_generator():
    once, again, other = (
        plan_batches(known(), np.zeros(12), np.random.default_rng(seed), steps=5, per_batch=3, samples=2) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once.members, again.members)
    assert not np.array_equal(once.members, other.members)


def test_a_batch_of_more_impostors_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"clustering\.per_batch 6 needs 5 .* some have 4"):
        plan_batches(known(), np.zeros(12), np.random.default_rng(0), steps=5, per_batch=6, samples=2)


def test_a_planned_batch_is_what_the_loss_takes():
    vectors, labels, _ = crossed()
    found = cluster(vectors, labels, per_class=2, seed=0)
    plan = plan_batches(found, np.full(len(labels), np.nan), np.random.default_rng(0), steps=1, per_batch=3, samples=4)
    embeddings = torch.from_numpy(vectors[plan.members[0]]).requires_grad_()
    loss = MagnetLoss(alpha=2000.0)(embeddings, torch.from_numpy(plan.classes[0]), clusters=torch.from_numpy(plan.clusters[0]))
    loss.backward()
    assert loss > 0
    assert torch.isfinite(embeddings.grad).all()


# --- the vote of the nearest clusters


@pytest.mark.parametrize("nearest", [1, 3, 50])
def test_a_vote_equals_a_naive_loop(nearest):
    found, vectors = known(), np.array([[0.2], [3.0], [9.0], [1e4]], np.float32)
    shares = class_votes(found, vectors, nearest=nearest)
    for row, vector in zip(shares, vectors.ravel().tolist(), strict=True):
        squared = {number: (centre - vector) ** 2 for number, centre in enumerate(found.centres.ravel().tolist())}
        voters = sorted(squared, key=squared.get)[:nearest]
        weights = {number: math.exp((squared[voters[0]] - squared[number]) / (2 * found.variance)) for number in voters}
        expected = [sum(weight for number, weight in weights.items() if found.classes[number] == c) for c in range(3)]
        np.testing.assert_allclose(row, np.array(expected) / sum(weights.values()), atol=1e-4)


def test_clusters_tell_apart_what_one_centre_per_class_cannot():
    vectors, labels, _ = crossed()
    several, one = (cluster(vectors, labels, per_class=count, seed=0) for count in (2, 1))
    asked, wanted = vectors[:-3], labels[:-3]
    assert (class_votes(several, asked, nearest=2).argmax(1) == wanted).all()
    assert (class_votes(one, asked, nearest=2).argmax(1) == wanted).mean() < 0.8
