from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from rayjobs import config
from rayjobs.evaluate.measure import measure, plan
from rayjobs.evaluate.relevance import Question
from rayjobs.evaluate.report import cautions, shown, table, values_of
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.retrieval.intervals import bootstrap_interval, resampled_interval
from rayjobs.retrieval.metrics import PairList, SameLabel

COUNT = 60
SETTINGS = config.build(EvaluateSection, {"relevance": "label", "objective": "recall@5", "ks": [1, 5], "resamples": 100})
CODES = np.random.default_rng(0).integers(0, 3, COUNT)
CODES[:3], CODES[3:5] = 3, -1
CODES[1:3] = -1  # the fourth class has one tile, which finds nothing
ITSELF = PairList(np.repeat(np.arange(COUNT)[:, None], 2, axis=1), COUNT)
BLOCKS = np.array([f"block{number % 12}" for number in range(COUNT)])
QUESTION = Question(
    tile_ids=[str(number) for number in range(COUNT)],
    relevance=SameLabel(CODES, CODES),
    excluded=ITSELF,
    queries=np.arange(COUNT),
    shared=ITSELF,
    dates=(),
    excluded_means="",
    near=ITSELF,
    units=BLOCKS,
    ground=BLOCKS,
    codes=CODES,
    classes=("water", "forest", "crops", "ice"),
    proportions=None,
    held_classes=("water", "forest", "crops", "ice"),
    relevant_means="",
    unit_means="spatial blocks",
    ground_means="spatial blocks",
)


def rows(question=QUESTION, settings=SETTINGS):
    """A row that tells the classes and one that does not."""
    rng, found = np.random.default_rng(1), plan(question, settings)
    noise = rng.normal(size=(COUNT, 5)).astype(np.float32)
    told = noise + 3 * np.eye(5, dtype=np.float32)[np.maximum(CODES, 0)]
    vectors = {"noise": noise, "ours": told}
    return [measure(name, values, "euclidean", question, found, settings) for name, values in vectors.items()]


@pytest.fixture(scope="module")
def measured():
    return rows()


@pytest.fixture(scope="module")
def report(measured):
    made = table(measured, SETTINGS, ours="ours")
    return json.loads(json.dumps(made, allow_nan=False))


def test_every_metric_of_a_row_has_its_interval_over_units(report, measured):
    for entry, row in zip(report["rows"], measured, strict=True):
        assert entry["name"] == row.name
        found = row.metrics["MAP@R"]
        wanted = bootstrap_interval(found.values, BLOCKS[found.tiles], resamples=100, seed=0)
        assert entry["metrics"]["MAP@R"] == {"value": wanted.value, "low": wanted.low, "high": wanted.high}
        assert all(each["low"] <= each["value"] <= each["high"] for each in entry["metrics"].values())
        assert entry["without_interval"] == pytest.approx(row.figures)


def test_precision_is_followed_from_rank_to_rank_as_far_as_there_are_tiles(report, measured):
    for row in measured:
        assert len(report["ranks"][row.name]) == COUNT - 1
        for k in (1, 5):
            assert report["ranks"][row.name][k - 1] == pytest.approx(row.metrics[f"precision@{k}"].values.mean(), abs=1e-6)
    assert table(rows(settings=dataclasses.replace(SETTINGS, ranks=0)), SETTINGS, ours="ours")["ranks"] == {}


def test_differences_are_paired_in_the_objective(report, measured):
    noise, ours = (row.metrics["recall@5"].values for row in measured)
    assert list(report["differences"]) == ["noise"]
    assert report["differences"]["noise"]["value"] == pytest.approx((ours - noise).mean())
    assert report["differences"]["noise"]["low"] > 0


def test_probes_are_told_with_what_training_gains_split_by_split(report, measured):
    assert [(entry["row"], entry["probe"], entry["target"], entry["split"]) for entry in report["probes"]] == [
        ("noise", "knn", "classes", "ground"),
        ("noise", "knn", "classes", "random"),
        ("ours", "knn", "classes", "ground"),
        ("ours", "knn", "classes", "random"),
    ]
    noise, ours = (row.probes[0].result for row in measured)
    wanted = resampled_interval(ours.values["accuracy"] - noise.values["accuracy"], noise.test_ratio)
    assert report["probes"][0]["trained_minus"]["accuracy"] == {"value": wanted.value, "low": wanted.low, "high": wanted.high}
    assert report["probes"][2]["trained_minus"] is None


def test_every_class_has_its_line(report, measured):
    ours = measured[1]
    found, result = ours.metrics["MAP@R"], ours.class_probe.result.table
    lines = report["classes"]["ours"]
    assert [line["class"] for line in lines] == ["water", "forest", "crops", "ice"]
    for code, line in enumerate(lines[:3]):
        of_class = CODES[found.tiles] == code
        assert line["tiles"] == line["queries"] == of_class.sum()
        assert line["metrics"]["MAP@R"]["value"] == pytest.approx(found.values[of_class].mean())
        assert set(line["metrics"]) == {"MAP@R", "recall@5"}
        assert line["probe"]["recall"] == pytest.approx(result.recall[code])
    assert (lines[3]["tiles"], lines[3]["queries"], lines[3]["metrics"]["MAP@R"]) == (1, 0, None)


def test_the_confusion_matrix_is_that_of_the_first_probe(report, measured):
    assert (report["confusion"]["probe"], report["confusion"]["split"]) == ("knn", "ground")
    assert report["confusion"]["classes"] == ["water", "forest", "crops", "ice"]
    assert report["confusion"]["rows"]["ours"] == measured[1].class_probe.result.table.confusion.tolist()
    assert np.trace(report["confusion"]["rows"]["ours"]) > np.trace(report["confusion"]["rows"]["noise"])


def test_an_interval_of_one_unit_has_no_ends_and_says_so_on_the_screen():
    alone = dataclasses.replace(QUESTION, units=np.full(COUNT, "block"))
    made = table(rows(alone), SETTINGS, ours="ours")
    entry = made["rows"][1]["metrics"]["recall@5"]
    assert (entry["low"], entry["high"]) == (None, None)
    assert shown(made)[2].split() == ["ours", f"{entry['value']:.3f}"]


def test_one_split_has_a_figure_and_no_interval():
    settings = dataclasses.replace(SETTINGS, probe_repeats=1)
    made = table(rows(settings=settings), settings, ours="ours")
    accuracy = made["probes"][0]["metrics"]["accuracy"]
    assert 0 <= accuracy["value"] <= 1
    assert (accuracy["low"], accuracy["high"]) == (None, None)
    json.dumps(made, allow_nan=False)


def test_what_is_not_a_number_is_null(measured):
    broken = [dataclasses.replace(row, figures={"silhouette": float("nan")}) for row in measured]
    assert table(broken, SETTINGS, ours="ours")["rows"][0]["without_interval"] == {"silhouette": None}


def test_tiles_without_classes_have_neither_classes_nor_probes():
    bare = dataclasses.replace(QUESTION, codes=np.full(COUNT, -1), classes=(), held_classes=())
    made = table(rows(bare), SETTINGS, ours="ours")
    assert (made["classes"], made["probes"], made["confusion"]) == ({}, [], None)
    assert made["rows"][0]["without_interval"] == {}
    assert len(shown(made)) == 3


def test_the_screen_shows_the_objective_and_one_figure_of_each_probe(report):
    lines = shown(report)
    assert lines[0].startswith("recall@5, with its 95 % interval")
    assert "+" in lines[1]
    assert "+" not in lines[2]
    assert [line.split()[:3] for line in lines[4:]] == [[name, "knn", "balanced_accuracy"] for name in ("noise", "ours")]


def test_figures_are_named_by_their_paths(report):
    found = values_of(report)
    assert found["ours/recall@5"] == report["rows"][1]["metrics"]["recall@5"]["value"]
    assert found["ours/knn/random/accuracy"] == report["probes"][3]["metrics"]["accuracy"]["value"]
    assert "ours/silhouette" in found
    assert all(isinstance(value, float) for value in found.values())


@pytest.mark.parametrize(
    ("ks", "gallery", "units", "unit", "words"),
    [
        ((1, 10), 500, 30, "spatial blocks", []),
        ((1, 10), 9, 30, "scenes", ["evaluate.ks"]),
        ((1,), 500, 9, "spatial blocks", ["smaller tiles.splits.block_m"]),
        ((10,), 10, 3, "classes", ["more classes", "[10]"]),
    ],
)
def test_a_report_says_what_keeps_its_figures_from_saying_much(ks, gallery, units, unit, words):
    found = cautions(ks, gallery, units, unit)
    assert len(found) == len(words)
    assert all(word in caution for word, caution in zip(words, found, strict=True))
