from __future__ import annotations

import functools

import numpy as np
import pytest

from rayjobs.errors import RetrievalError
from rayjobs.retrieval import probes, ranking
from rayjobs.retrieval.metrics import PairList
from rayjobs.retrieval.probes import PROBES, Split, probe, random_splits, unit_splits

OF_PROPORTIONS = [kind for kind, made in PROBES.items() if made.regressor]
every_probe = pytest.mark.parametrize("kind", PROBES)
every_regressor = pytest.mark.parametrize("kind", OF_PROPORTIONS)


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    monkeypatch.setattr(probes, "_TREES", 20)


def tiles(count=120, gap=4.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return (rng.normal(size=(count, 5)) + gap * np.eye(3, 5)[labels]).astype(np.float32), labels


def mixed_tiles(count=120, seed=0):
    rng = np.random.default_rng(seed)
    held = rng.dirichlet([0.4] * 3, count)
    return (held @ rng.normal(size=(3, 5)) + 0.02 * rng.normal(size=(count, 5))).astype(np.float32), held


def halves(labels, **options):
    return random_splits(labels, **{"repeats": 2, "test_share": 0.3, "seed": 0, **options})


def test_the_table_has_the_earlier_systems_probes():
    assert list(PROBES) == ["knn", "svc", "rfc", "mlp", "dt"]
    assert OF_PROPORTIONS == ["knn", "rfc", "mlp", "dt"]


@every_probe
def test_a_probe_finds_classes_that_lie_apart_and_none_by_chance(kind):
    vectors, labels = tiles()
    found = probe(kind, vectors, labels, halves(labels))
    noise = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    chance = probe(kind, noise, labels, halves(labels))
    for name in ("accuracy", "balanced_accuracy", "weighted_f1"):
        assert found.metrics[name].value > 0.9
        assert 0.15 < chance.metrics[name].value < 0.55
        assert found.values[name].shape == (2,)
        assert found.metrics[name].low <= found.values[name].mean() <= found.metrics[name].high


@every_regressor
def test_a_probe_finds_proportions(kind):
    vectors, held = mixed_tiles()
    dominant = held.argmax(1)
    found = probe(kind, vectors, held, halves(dominant))
    chance = probe(kind, np.random.default_rng(1).permutation(vectors), held, halves(dominant))
    assert found.table is None
    assert found.metrics["summed_error"].value < 0.5 * chance.metrics["summed_error"].value


@every_probe
def test_a_seed_gives_the_same_result(kind):
    vectors, labels = tiles(gap=1.0)
    first, second = (probe(kind, vectors, labels, halves(labels, seed=4), seed=2) for _ in range(2))
    assert first.metrics == second.metrics
    assert np.array_equal(first.table.confusion, second.table.confusion)


@pytest.mark.parametrize("kind", ["svc", "mlp"])
def test_probes_that_know_scales_do_not_judge_by_them(kind):
    vectors, labels = tiles(gap=1.5)
    splits = halves(labels)
    plain, scaled = probe(kind, vectors, labels, splits), probe(kind, vectors * np.float32(1024), labels, splits)
    assert plain.metrics["accuracy"].value == pytest.approx(scaled.metrics["accuracy"].value, abs=0.03)


def test_a_probe_is_fitted_afresh_and_on_the_training_tiles_alone():
    """The earlier system refitted one classifier and tested the last fit on all repeats. Here labels of tested tiles do not matter."""
    vectors, labels = tiles(gap=1.5)
    first, second = halves(labels, repeats=2)
    both = probe("knn", vectors, labels, [first, second])
    assert both.values["accuracy"].tolist() == [probe("knn", vectors, labels, [split]).values["accuracy"][0] for split in (first, second)]
    from sklearn.neighbors import KNeighborsClassifier

    wanted = KNeighborsClassifier(5).fit(vectors[first.train], labels[first.train]).predict(vectors[first.test])
    assert both.values["accuracy"][0] == pytest.approx(np.mean(wanted == labels[first.test]))


def test_the_class_table_adds_up_the_tested_tiles_of_all_splits():
    vectors, labels = tiles(gap=1.0)
    splits = halves(labels)
    found = probe("dt", vectors, labels, splits)
    assert found.table.confusion.sum() == sum(len(split.test) for split in splits)
    assert found.table.support.tolist() == np.bincount(np.concatenate([labels[split.test] for split in splits]), minlength=3).tolist()
    right = sum(value * len(split.test) for value, split in zip(found.values["accuracy"], splits, strict=True))
    assert np.trace(found.table.confusion) == pytest.approx(right)
    assert found.test_ratio == pytest.approx(36 / 84)


def test_random_splits_keep_the_classes_proportions():
    labels = np.repeat([0, 1, 2, 3, -1], [100, 60, 20, 1, 30])
    splits = halves(labels, repeats=4)
    assert len({tuple(split.test) for split in splits}) == 4
    for split in splits:
        assert np.array_equal(np.sort(np.concatenate([split.train, split.test])), np.arange(181))
        assert np.bincount(labels[split.test], minlength=4).tolist() == [30, 18, 6, 0]


def test_unit_splits_divide_no_unit():
    labels = np.random.default_rng(0).integers(-1, 3, 200)
    units = np.array([f"block-{number // 10}" for number in range(200)])
    for split in unit_splits(units, labels, repeats=4, test_share=0.25, seed=1):
        assert not set(units[split.train]) & set(units[split.test])
        assert len(set(units[split.test])) == 5
        assert sorted([*split.train, *split.test]) == np.flatnonzero(labels >= 0).tolist()


def test_splits_are_repeatable():
    labels = np.random.default_rng(0).integers(0, 3, 50)
    by_unit = functools.partial(unit_splits, np.arange(50) // 5, labels, repeats=3, test_share=0.3)
    for drawn in (functools.partial(halves, labels), by_unit):
        first, second, other = drawn(seed=1), drawn(seed=1), drawn(seed=2)
        assert [split.test.tolist() for split in first] == [split.test.tolist() for split in second]
        assert [split.test.tolist() for split in first] != [split.test.tolist() for split in other]


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_training_tiles_near_tested_ones_are_dropped(monkeypatch, block_bytes):
    monkeypatch.setattr(ranking, "BLOCK_BYTES", block_bytes)
    labels = np.zeros(60, np.int64)
    chain = np.column_stack([np.arange(59), np.arange(1, 60)])
    near = PairList(np.concatenate([chain, chain[:, ::-1]]), 60)
    units = np.arange(60) // 6
    whole = unit_splits(units, labels, repeats=3, test_share=0.3, seed=0)
    for split, without in zip(unit_splits(units, labels, repeats=3, test_share=0.3, seed=0, near=near), whole, strict=True):
        assert split.test.tolist() == without.test.tolist()
        kept = [tile for tile in without.train if not {tile - 1, tile + 1} & set(split.test.tolist())]
        assert split.train.tolist() == kept
        assert len(kept) < len(without.train)


def test_neighbours_on_both_sides_flatter_a_random_split():
    """Each unit has its own place and one class drawn at random: nothing can be learnt of other units."""
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 8)
    vectors = (rng.normal(size=(40, 4))[units] + 0.05 * rng.normal(size=(320, 4))).astype(np.float32)
    labels = (np.arange(40) % 4)[units]
    random, spatial = halves(labels), unit_splits(units, labels, repeats=3, test_share=0.3, seed=0)
    assert probe("knn", vectors, labels, random).metrics["accuracy"].value > 0.95
    assert probe("knn", vectors, labels, spatial).metrics["accuracy"].value < 0.5


def test_what_cannot_be_probed_is_refused():
    vectors, held = mixed_tiles(20)
    few = [Split(train=np.arange(4), test=np.arange(4, 20))]
    with pytest.raises(RetrievalError, match="svc"):
        probe("svc", vectors, held, halves(np.zeros(20, np.int64)))
    with pytest.raises(RetrievalError, match="fitted on 4 tiles and tested on 16"):
        probe("knn", vectors, held, few)
    with pytest.raises(RetrievalError, match="one class alone"):
        probe("svc", vectors, np.zeros(20, np.int64), halves(np.zeros(20, np.int64)))
    with pytest.raises(RetrievalError, match="evaluate more tiles"):
        halves(np.array([0, 1, 2, -1]))
    with pytest.raises(RetrievalError, match="1 units cannot be divided"):
        unit_splits(np.zeros(9), np.zeros(9, np.int64), repeats=2, test_share=0.3, seed=0)
