"""Retrieval across dates, against a naive loop over queries."""

from __future__ import annotations

import numpy as np
import pytest

from rayjobs import config
from rayjobs.evaluate.measure import measure, plan
from rayjobs.evaluate.report import table
from rayjobs.evaluate.section import EvaluateSection
from tests.unit.evaluate.test_evaluate_relevance import asked, of_two_dates

SETTINGS = config.build(EvaluateSection, {"relevance": "place", "objective": "MRR@5", "ks": [1, 5], "resamples": 100})


@pytest.fixture
def row():
    """Vectors that tell the place, with some noise."""
    tiles = of_two_dates()
    question = asked(tiles, relevance="place")
    rng = np.random.default_rng(0)
    where = np.array([[row, col] for row, col in zip(tiles["row"].to_pylist(), tiles["col"].to_pylist(), strict=True)])
    vectors = (np.sin(where @ rng.normal(size=(2, 16)) / 9) + 0.7 * rng.normal(size=(len(where), 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return measure("trained", vectors, "cosine", question, plan(question, SETTINGS), SETTINGS)


def naive_ranks(row, queries):
    ranks = []
    for query in queries:
        tile = row.question.queries[query]
        candidates = np.flatnonzero(~row.question.excluded.rows(np.array([query]))[0])
        relevant = np.flatnonzero(row.question.relevance.rows(np.array([query]))[0])
        order = sorted(candidates, key=lambda other, tile=tile: -float(row.vectors[tile] @ row.vectors[other]))
        if len(relevant):
            ranks.append(1 + order.index(relevant[0]))
    return ranks


def test_each_pair_of_dates_is_measured_by_itself(row):
    [entry, back] = table([row], SETTINGS, ours="trained")["dates"]["trained"]
    assert (entry["asking"], entry["asked"], entry["gap_days"], entry["gallery"]) == ("2015-06-01", "2018-06-01", 1096, 30)
    assert back["gap_days"] == -1096
    for found, pair in zip((entry, back), row.question.dates, strict=True):
        ranks = naive_ranks(row, pair.queries)
        assert found["queries"] == len(ranks) < len(pair.queries) + 1
        assert found["median_rank"] == np.median(ranks)
        assert found["metrics"]["MRR@5"]["value"] == pytest.approx(np.mean([1 / rank if rank <= 5 else 0 for rank in ranks]))
        assert found["metrics"]["recall@1"]["value"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
        assert found["metrics"]["MRR@5"]["low"] <= found["metrics"]["MRR@5"]["value"] <= found["metrics"]["MRR@5"]["high"]
    both = [*naive_ranks(row, entry_queries(row))]
    assert row.metrics["MRR@5"].values.mean() == pytest.approx(np.mean([1 / rank if rank <= 5 else 0 for rank in both]))


def entry_queries(row):
    return np.sort(np.concatenate([pair.queries for pair in row.question.dates]))


def test_a_question_of_neighbours_has_no_dates():
    question = asked(of_two_dates())
    settings = config.build(EvaluateSection, {"resamples": 100, "probes": []})
    vectors = np.random.default_rng(0).normal(size=(len(question.tile_ids), 4)).astype(np.float32)
    measured = measure("trained", vectors, "euclidean", question, plan(question, settings), settings)
    assert table([measured], settings, ours="trained")["dates"] == {}
