from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from rayjobs import config
from rayjobs.errors import TrainingError
from rayjobs.evaluate.measure import measure, metrics_of, plan
from rayjobs.evaluate.relevance import Question
from rayjobs.evaluate.report import shown, table
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.retrieval.metrics import PairList, SameLabel
from rayjobs.retrieval.proportions import generalised_silhouette, soft_relevance

COUNT = 90


def section(**settings):
    return config.build(EvaluateSection, {"relevance": "label", "objective": "MAP@R", "ks": [1, 5], "resamples": 100, **settings})


def itself(count=COUNT):
    return PairList(np.repeat(np.arange(count)[:, None], 2, axis=1), count)


def question(codes, *, blocks=15, proportions=None, excluded=None):
    codes = np.asarray(codes)
    count, held = len(codes), 0 if proportions is None else proportions.shape[1]
    ground = np.array([f"block{number % blocks}" for number in range(count)])
    return Question(
        tile_ids=[f"tile{number}" for number in range(count)],
        queries=np.arange(count),
        relevance=SameLabel(codes, codes),
        excluded=excluded or itself(count),
        shared=excluded or itself(count),
        units=ground,
        ground=ground,
        near=excluded or itself(count),
        codes=codes,
        classes=tuple(f"class{number}" for number in range(codes.max() + 1)),
        proportions=proportions,
        held_classes=tuple(f"class{number}" for number in range(held)),
        dates=(),
        relevant_means="tiles of the query's class",
        excluded_means="the query itself",
        unit_means="spatial blocks",
        ground_means="spatial blocks",
    )


def mixtures(seed=0, count=COUNT, unknown=10):
    """Proportions of three classes, of which the first tiles are not known, and vectors that tell them."""
    rng = np.random.default_rng(seed)
    held = rng.dirichlet([0.4] * 3, count)
    held[:unknown] = 0
    vectors = (held @ rng.normal(size=(3, 6)) + 0.1 * rng.normal(size=(count, 6))).astype(np.float32)
    return vectors, held


def measured(asked, vectors, settings, distance="euclidean"):
    return measure("row", vectors, distance, asked, plan(asked, settings), settings)


def classes_apart(seed=0, gap=1.5):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, COUNT)
    return (rng.normal(size=(COUNT, 6)) + gap * np.eye(3, 6)[codes]).astype(np.float32), codes


def test_tiles_without_classes_are_measured_by_retrieval_alone():
    pairs = PairList(np.array([[0, 1], [1, 0], [4, 2]]), COUNT)
    asked = dataclasses.replace(question(np.full(COUNT, -1)), relevance=pairs)
    found = plan(asked, section())
    assert (found.labelled, len(found.mixed), found.divisions, found.left_out) == (False, 0, (), ())
    row = measured(asked, mixtures()[0], section())
    assert set(row.metrics) == set(metrics_of(found, (1, 5)))
    assert row.metrics["MAP@R"].tiles.tolist() == [0, 1, 4]
    assert not row.figures
    assert not row.probes
    assert row.class_probe is None


def test_one_class_alone_is_said_and_not_compared():
    found = plan(question(np.zeros(COUNT, int)), section())
    assert not found.labelled
    assert not found.divisions
    assert "class0" in found.left_out[0]


def test_figures_of_classes_are_those_of_scikit_learn():
    vectors, codes = classes_apart()
    codes[:7] = -1
    row = measured(question(codes), vectors, section(probes=[]))
    assert row.figures["silhouette"] == pytest.approx(silhouette_score(vectors[7:], codes[7:]), rel=1e-5)
    assert set(row.figures) == {"silhouette", "cophenetic_correlation"}
    assert len(row.metrics["MAP@R"].tiles) == COUNT - 7


def test_a_probe_of_classes_is_fitted_on_whole_blocks_and_on_random_tiles_beside_them():
    vectors, codes = classes_apart()
    settings = section(probes=["dt", "knn"])
    asked = question(codes)
    row = measured(asked, vectors, settings)
    assert [(entry.kind, entry.division.by) for entry in row.probes] == [
        ("dt", "ground"), ("dt", "random"), ("knn", "ground"), ("knn", "random"),
    ]  # fmt: skip
    knn = row.probes[2]
    for split, accuracy in zip(knn.division.splits, knn.result.values["accuracy"], strict=True):
        assert not set(asked.ground[split.train]) & set(asked.ground[split.test])
        fitted = KNeighborsClassifier(5).fit(vectors[split.train], codes[split.train])
        assert accuracy == pytest.approx(fitted.score(vectors[split.test], codes[split.test]))
    assert row.class_probe is row.probes[0]
    assert row.class_probe.result.table.confusion.sum() == sum(len(split.test) for split in row.probes[0].division.splits)


def test_neighbours_of_tested_tiles_train_on_random_splits_alone():
    _, codes = classes_apart()
    first = np.arange(COUNT - 1)
    next_to = np.concatenate([np.column_stack([first, first + 1]), np.column_stack([first + 1, first])])
    found = plan(dataclasses.replace(question(codes, blocks=9), near=PairList(next_to, COUNT)), section())
    ground, random = ([np.isin(split.train, [split.test - 1, split.test + 1]).any() for split in each.splits] for each in found.divisions)
    assert not any(ground)
    assert all(random)


def test_proportions_are_measured_among_the_tiles_whose_are_known():
    vectors, held = mixtures()
    codes = held.argmax(1)
    pairs = np.concatenate([itself().pairs, [[20, 21], [21, 20]]])
    asked = question(codes, proportions=held, excluded=PairList(pairs, COUNT))
    row = measured(asked, vectors, section(probes=[]))
    known = np.arange(10, COUNT)
    for name in ("nDCG@5/graded", "soft_precision@5", "gSil"):
        assert row.metrics[name].tiles.tolist() == known.tolist()
    graded, soft = naive_graded_and_soft(vectors.astype(float), held, known, {(20, 21), (21, 20)}, 5)
    np.testing.assert_allclose(row.metrics["nDCG@5/graded"].values, graded, rtol=1e-9)
    np.testing.assert_allclose(row.metrics["soft_precision@5"].values, soft, rtol=1e-9, atol=1e-12)
    assert row.metrics["gSil"].values.mean() == pytest.approx(generalised_silhouette(vectors[10:], held[10:]).value, abs=1e-7)
    assert row.metrics["MAP@R"].tiles.tolist() == list(range(COUNT))


def naive_graded_and_soft(vectors, held, known, excluded, k):
    graded, soft = [], []
    for i in known:
        others = [j for j in known if j != i and (i, j) not in excluded]
        order = sorted(others, key=lambda j: np.linalg.norm(vectors[i] - vectors[j]))
        gain = {j: float(np.minimum(held[i], held[j]).sum()) for j in others}
        best = sorted(gain.values(), reverse=True)
        dcg = [sum(value / np.log2(2 + rank) for rank, value in enumerate(values[:k])) for values in ([gain[j] for j in order], best)]
        graded.append(dcg[0] / dcg[1])
        soft.append(soft_relevance(held[[i]], held[order[:k]][None])[0].mean())
    return graded, soft


def test_graded_metrics_do_not_depend_on_what_counts_as_relevant():
    vectors, held = mixtures()
    rows = [measured(question(codes, proportions=held), vectors, section(probes=[])) for codes in (held.argmax(1), np.arange(COUNT) // 2)]
    for name in ("nDCG@1/graded", "nDCG@5/graded", "soft_precision@1", "gSil"):
        assert np.array_equal(rows[0].metrics[name].values, rows[1].metrics[name].values)


def test_a_probe_of_proportions_sees_the_known_tiles_alone():
    vectors, held = mixtures()
    asked = question(np.full(COUNT, -1), proportions=held)
    asked = dataclasses.replace(asked, relevance=PairList(np.array([[0, 1]]), COUNT))
    row = measured(asked, vectors, section(probes=["svc", "knn"]))
    assert [(entry.kind, entry.division.target, entry.division.by) for entry in row.probes] == [
        ("knn", "proportions", "ground"), ("knn", "proportions", "random"),
    ]  # fmt: skip
    for probed in row.probes:
        split = probed.division.splits[0]
        assert min(split.train.min(), split.test.min()) >= 10
        told = KNeighborsRegressor(5).fit(vectors[split.train], held[split.train]).predict(vectors[split.test])
        assert probed.result.values["summed_error"][0] == pytest.approx(np.abs(told - held[split.test]).sum(1).mean(), rel=1e-6)


def test_svc_alone_is_no_probe_of_proportions():
    vectors, held = mixtures()
    row = measured(question(held.argmax(1), proportions=held), vectors, section(probes=["svc"]))
    assert {entry.division.target for entry in row.probes} == {"classes"}


@pytest.mark.parametrize(("blocks", "words"), [(1, "units cannot be divided"), (2, "splits by spatial blocks leave too little")])
def test_too_few_blocks_are_a_caution_and_the_random_split_remains(blocks, words):
    vectors, codes = classes_apart()
    if blocks == 2:
        codes = np.arange(COUNT) % 2  # each block of one class: a probe would learn nothing else
    found = plan(question(codes, blocks=blocks), section())
    assert [division.by for division in found.divisions] == ["random"]
    assert words in found.left_out[0]
    assert measured(question(codes, blocks=blocks), vectors, section()).class_probe.division.by == "random"


def test_proportions_of_one_class_or_one_tile_are_left_out_and_said():
    one_tile = np.zeros((COUNT, 3))
    one_tile[0, 0] = 1
    for held in (np.ones((COUNT, 1)), one_tile):
        found = plan(question(np.arange(COUNT) % 2, proportions=held), section())
        assert not len(found.mixed)
        assert "proportions are known of" in found.left_out[0]
        assert "gSil" not in metrics_of(found, (1,))


def test_proportions_that_no_two_tiles_share_are_a_figure_that_is_not_known():
    held = np.zeros((COUNT, 3))
    held[[0, 1], [0, 1]] = 1
    settings = section(probes=[], objective="nDCG@5/graded")
    row = measured(question(np.arange(COUNT) % 2, proportions=held), mixtures()[0], settings)
    assert not len(row.metrics["nDCG@5/graded"].tiles)
    report = table([row, dataclasses.replace(row, name="trained")], settings, ours="trained")
    nothing = {"value": None, "low": None, "high": None}
    assert report["rows"][0]["metrics"]["nDCG@5/graded"] == nothing == report["differences"]["row"]
    assert shown(report)[1].split() == ["row", "-", "-"]


def test_no_probe_is_fitted_where_none_is_asked_for():
    vectors, codes = classes_apart()
    assert not measured(question(codes), vectors, section(probes=[])).probes


def test_a_split_without_anything_relevant_is_refused():
    with pytest.raises(TrainingError, match="no tile of the test split"):
        measured(question(np.arange(COUNT)), mixtures()[0], section(probes=[]))


def test_a_seed_gives_the_same_row():
    vectors, codes = classes_apart()
    first, second = (measured(question(codes), vectors, section(probes=["dt"], probe_repeats=2)) for _ in range(2))
    assert first.probes[0].result.metrics == second.probes[0].result.metrics
    assert all(np.array_equal(first.metrics[name].values, second.metrics[name].values) for name in first.metrics)


def test_the_probes_of_the_section_are_those_of_the_table():
    from rayjobs.retrieval.probes import PROBES

    assert section(probes=list(PROBES)).probes == tuple(PROBES)
