"""What trials are measured by is the figure that `rayjobs evaluate` reports."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from rayjobs import config
from rayjobs.evaluate.measure import measure, plan
from rayjobs.evaluate.relevance import Question
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.retrieval.metrics import PairList, SameLabel
from rayjobs.tune.validation import Measure

COUNT = 60


@pytest.mark.parametrize("proportions", [False, True])
def test_a_trials_figures_are_those_of_an_evaluation(proportions):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, COUNT)
    vectors = (rng.normal(size=(COUNT, 6)) + np.eye(3, 6)[codes]).astype(np.float32)
    itself = PairList(np.repeat(np.arange(COUNT)[:, None], 2, axis=1), COUNT)
    blocks = np.array([f"b{number % 6}" for number in range(COUNT)])
    question = Question(
        tile_ids=[str(number) for number in range(COUNT)], relevance=SameLabel(codes, codes), excluded=itself, units=blocks, ground=blocks,
        near=itself, codes=codes, classes=("a", "b", "c"), proportions=rng.dirichlet([1] * 3, COUNT) if proportions else None,
        held_classes=("a", "b", "c"), relevant_means="", unit_means="", ground_means="",
        queries=np.arange(COUNT), shared=itself, dates=(), excluded_means="",
    )  # fmt: skip
    settings = config.build(EvaluateSection, {"relevance": "label", "ks": [1, 5], "probes": []})
    found = plan(question, settings)
    tried = pickle.loads(pickle.dumps(Measure(question=question, plan=found, settings=settings, distance="cosine")))(vectors)
    whole = measure("row", vectors, "cosine", question, found, settings)
    assert tried == {name: pytest.approx(float(values.values.mean())) for name, values in whole.metrics.items()}
    assert ("gSil" in tried) == proportions
