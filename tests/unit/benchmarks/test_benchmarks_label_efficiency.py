"""The study of label efficiency: who chooses and who tests, what a task holds, and when labels are enough."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import label_efficiency as study


@pytest.fixture(scope="module")
def pictures():
    """Fifteen classes of sixty points each."""
    rng = np.random.default_rng(0)
    labels = np.repeat([f"class {number:02}" for number in range(15)], 60)
    vectors = np.repeat(rng.normal(size=(15, 12)), 60, axis=0) + rng.normal(size=(900, 12))
    return labels, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_no_class_both_chooses_and_tests():
    classes = [f"{number:02}" for number in range(15)]
    choose, test = study.halves(classes[::-1])
    assert (len(choose), len(test)) == (7, 8)
    assert sorted(choose + test) == classes


def test_a_task_is_rare_divided_and_begins_with_the_example(pictures):
    labels, vectors = pictures
    task = study.task_of(labels, vectors, "class 03", 1)
    again = study.task_of(labels, vectors, "class 03", 1)
    assert (task.pool == again.pool).all()
    assert (task.first == again.first).all()
    assert not set(task.pool) & set(task.held)
    for part, count in ((task.pool, 29), (task.held, 14)):
        sought = labels[part] == "class 03"
        assert sought.sum() == count
        assert sought.mean() < 0.05
    assert labels[task.pool[task.first[0]]] == "class 03"
    assert len(set(task.first.tolist())) == study.FIRST


def test_strategies_begin_alike_and_spend_all_labels(pictures):
    labels, vectors = pictures
    task = study.task_of(labels, vectors, "class 03", 0)
    heads = study.Heads(task, vectors, labels == "class 03")
    found = {name: study.labelled_by(task, heads, study.CANDIDATES[name], 0) for name in (study.RANDOM, "positive")}
    assert len({entry["AP"][0] for entry in found.values()}) == 1
    for entry in found.values():
        assert len(entry["AP"]) == len(study.BUDGETS)
        assert [have + left for have, left in zip(entry["found"], entry["left"], strict=True)] == [29] * len(study.BUDGETS)
    assert found["positive"]["found"][-1] > found[study.RANDOM]["found"][-1]


@pytest.mark.parametrize(
    ("curve", "final", "wanted"), [([0.1, 0.5, 0.6], 0.5, 40), ([0.6, 0.4, 0.5], 0.5, 60), ([0.1, 0.2, 0.3], 0.5, None)]
)
def test_labels_are_enough_where_the_curve_stays(curve, final, wanted, monkeypatch):
    monkeypatch.setattr(study, "BUDGETS", (20, 40, 60))
    assert study.enough(np.array(curve), final) == wanted
