"""Scoring without some classes: as if their tiles had never been there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rayjobs import config
from rayjobs.evaluate.measure import measure, plan
from rayjobs.evaluate.report import shown, table, values_of
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.retrieval.intervals import bootstrap_interval
from rayjobs.retrieval.metrics import PairList, SameLabel
from tests.unit.evaluate.test_evaluate_report import BLOCKS, CODES, COUNT, QUESTION

KEYS = {"relevance": "label", "objective": "mAP@64/min", "ks": [5, 64], "resamples": 100, "probes": []}
SETTINGS = config.build(EvaluateSection, {**KEYS, "without_classes": ["forest"]})
ALL = config.build(EvaluateSection, KEYS)
FOREST = 1


def rows(question, settings, keep=slice(None)):
    rng, found = np.random.default_rng(1), plan(question, settings)
    noise = rng.normal(size=(COUNT, 5)).astype(np.float32)
    vectors = {"noise": noise, "ours": noise + np.eye(5, dtype=np.float32)[np.maximum(CODES, 0)]}
    return [measure(name, values[keep], "euclidean", question, found, settings) for name, values in vectors.items()]


@pytest.fixture(scope="module")
def measured():
    return rows(QUESTION, SETTINGS)


def reduced():
    """The question of the tiles that are left alone."""
    keep = np.flatnonzero(CODES != FOREST)
    codes = CODES[keep]
    itself = PairList(np.repeat(np.arange(len(keep))[:, None], 2, axis=1), len(keep))
    return keep, dataclasses.replace(
        QUESTION,
        tile_ids=[QUESTION.tile_ids[tile] for tile in keep],
        queries=np.arange(len(keep)),
        relevance=SameLabel(codes, codes),
        excluded=itself,
        shared=itself,
        near=itself,
        units=BLOCKS[keep],
        ground=BLOCKS[keep],
        codes=codes,
    )


def test_figures_are_those_of_a_set_without_these_tiles(measured):
    keep, question = reduced()
    for row, alone in zip(measured, rows(question, ALL, keep), strict=True):
        assert row.reduced.keys() == alone.metrics.keys()
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(row.reduced[name].values, values.values)
            assert row.reduced[name].tiles.tolist() == keep[values.tiles].tolist()


def test_both_figures_stand_in_the_report(measured):
    report = table(measured, SETTINGS, ours="ours")
    found = report["without"]
    assert (found["classes"], found["gallery"]) == (["forest"], int((CODES != FOREST).sum()))
    values = measured[1].reduced["mAP@64/min"]
    wanted = bootstrap_interval(values.values, BLOCKS[values.tiles], resamples=100, seed=0)
    assert found["rows"]["ours"]["mAP@64/min"] == {"value": wanted.value, "low": wanted.low, "high": wanted.high}
    assert found["differences"]["noise"]["low"] > 0
    assert values_of(report)["ours/without/mAP@64/min"] == wanted.value
    assert "the same without forest:" in shown(report)


def test_all_classes_alone_have_no_second_scoring():
    report = table(rows(QUESTION, ALL), ALL, ours="ours")
    assert report["without"] is None


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["ice cap"], "no tile in question is of any"), (["water", "forest", "crops"], "no other tile has anything to find")],
)
def test_what_leaves_nothing_to_score_is_said(classes, words):
    settings = config.build(EvaluateSection, {**KEYS, "without_classes": classes})
    found = plan(QUESTION, settings)
    assert len(found.reduced) == 0
    assert any(words in told for told in found.left_out)
