"""Fixed queries answered at length: `results.json` against a naive loop."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import pytest

from rayjobs.evaluate.answers import LISTED, answered, fixed_queries, results
from rayjobs.evaluate.illustrate import choose, illustrate
from rayjobs.evaluate.measure import measure, plan
from rayjobs.evaluate.page import page
from tests.unit.evaluate.test_evaluate_distances import SETTINGS, cosine_law_km, everywhere, on_mars
from tests.unit.evaluate.test_evaluate_illustrate import COUNT, rows
from tests.unit.evaluate.test_evaluate_relevance import asked as asked_of

CODES = np.arange(COUNT) % 3


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(COUNT, 4)).astype(np.float32) for name in ("random-init", "trained")}


@pytest.fixture(scope="module")
def listed(vectors):
    measured, _ = rows(CODES, vectors)
    chosen = choose(measured, 0, contact_sheets=7)
    scenes = {f"tile{number:02}": f"in/{number}.jpg" for number in range(COUNT)}
    return measured, chosen, json.loads(json.dumps(results(measured, chosen.contact, scenes, 0), allow_nan=False))


def naive(vectors, query):
    order = sorted((tile for tile in range(COUNT) if tile != query), key=lambda tile: float(((vectors[tile] - vectors[query]) ** 2).sum()))
    hits = [CODES[tile] == CODES[query] for tile in order]
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return order, hits, sum(precisions) / len(precisions)


def test_every_row_answers_the_same_queries_in_full(listed, vectors):
    _, _, found = listed
    assert found["depth"] == COUNT - 1 < LISTED  # no more can be found here
    assert [answer["query"] for answer in found["rows"]["trained"]["answers"]] == [
        answer["query"] for answer in found["rows"]["random-init"]["answers"]
    ]
    for row, of_row in found["rows"].items():
        assert len(of_row["answers"]) == 7
        for answer in of_row["answers"]:
            query = int(answer["query"]["tile_id"][4:])
            order, hits, ap = naive(vectors[row].astype(float), query)
            assert [entry["tile_id"] for entry in answer["results"]] == [f"tile{tile:02}" for tile in order]
            assert [entry["relevant"] for entry in answer["results"]] == hits
            assert [entry["scene_id"] for entry in answer["results"]] == [f"in/{tile}.jpg" for tile in order]
            assert answer["average_precision"] == pytest.approx({"found": ap, "min": ap}), "all that is relevant is among the results"
            assert answer["mean_distance_km"] is None
    assert [answer["query"]["class"] for answer in found["rows"]["trained"]["answers"]] == [
        f"class{code}" for code in (0, 0, 0, 1, 1, 2, 2)
    ]


def test_queries_are_the_same_again_and_others_by_another_seed(listed):
    question = listed[0][0].question
    drawn = [fixed_queries(question, 7, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_figures_at_that_depth_stand_beside_where_they_were_measured(listed):
    metrics = listed[2]["rows"]["trained"]["metrics"]
    assert metrics == {"mAP@64/found": None, "mAP@64/min": None, "distance_km@64": None}


def test_one_hit_at_the_first_rank_is_perfect_by_one_denominator_alone(vectors):
    measured, _ = rows(CODES, vectors)
    answers = answered(measured[0], np.array([0]), 64, 0)
    right = np.zeros((1, 64), bool)
    right[0, 0] = True
    alone = type(answers)(row="x", queries=np.array([0]), found=np.zeros((1, 64), int), right=right, relevant=np.array([80]))
    assert (alone.average_precision("found")[0], alone.average_precision("min")[0]) == (1.0, 0.015625)


def test_contact_sheets_are_drawn_and_stand_in_the_page(listed, vectors):
    measured, chosen, _ = listed
    _, report = rows(CODES, vectors)
    rng = np.random.default_rng(1)
    images = {f"tile{tile:02}": rng.integers(0, 255, (20, 30, 3), np.uint8) for tile in chosen.tiles().tolist()}
    made = illustrate(measured, report, chosen, images, {}, umap=False, seed=0)
    names = [name for name in made.pictures if name.startswith("contact/")]
    assert names == [f"contact/{number:02}" for number in range(1, 8)]
    sizes = {PIL.Image.open(io.BytesIO(made.pictures[name])).size for name in names}
    assert all(min(size) > 600 for size in sizes)
    text = page(report, made.pictures, name="made-up", experiment="name: made-up", versions={})
    assert "Contact sheets" in text


def test_none_are_made_where_none_are_asked_for(vectors):
    measured, _ = rows(CODES, vectors)
    assert choose(measured, 0).contact == ()


def test_distances_stand_in_the_answers():
    lonlat = everywhere(40)
    question = asked_of(on_mars(lonlat), relevance="label")
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    row = measure("trained", vectors, "euclidean", question, plan(question, SETTINGS), SETTINGS)
    scenes = dict(zip(question.tile_ids, question.tile_ids, strict=True))
    found = results([row], [answered(row, np.array([5]), 64, 0)], scenes, 0)
    [answer] = found["rows"]["trained"]["answers"]
    where = question.spots.lonlat.tolist()
    wanted = [cosine_law_km(where[5], where[question.tile_ids.index(entry["tile_id"])]) for entry in answer["results"]]
    assert [entry["distance_km"] for entry in answer["results"]] == pytest.approx(wanted, abs=1e-6)
    assert answer["mean_distance_km"] == pytest.approx(np.mean(wanted))
    metrics = found["rows"]["trained"]["metrics"]
    assert metrics["distance_km@64"] == pytest.approx(row.distances["distance_km@64"].values.mean())
    assert metrics["mAP@64/min"] == pytest.approx(row.metrics["mAP@64/min"].values.mean())
