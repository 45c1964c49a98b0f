from __future__ import annotations

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest

from rayjobs import config
from rayjobs.evaluate.illustrate import NEIGHBOURS, QUERIES, choose, illustrate
from rayjobs.evaluate.measure import measure, plan
from rayjobs.evaluate.page import page
from rayjobs.evaluate.relevance import Question
from rayjobs.evaluate.report import table
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.retrieval.metrics import PairList, SameLabel

COUNT = 60


def asked(codes):
    itself = PairList(np.repeat(np.arange(COUNT)[:, None], 2, axis=1), COUNT)
    ground = np.array([f"block{number % 12}" for number in range(COUNT)])
    labelled = codes.max() >= 0
    pairs = np.argwhere(np.abs(np.arange(COUNT)[:, None] - np.arange(COUNT)) == 1)
    return Question(
        tile_ids=[f"tile{number:02}" for number in range(COUNT)],
        relevance=SameLabel(codes, codes) if labelled else PairList(pairs, COUNT),
        excluded=itself,
        queries=np.arange(COUNT),
        shared=itself,
        dates=(),
        excluded_means="",
        units=ground,
        ground=ground,
        near=itself,
        codes=codes,
        classes=tuple(f"class{number}" for number in range(codes.max() + 1)),
        proportions=None,
        held_classes=(),
        relevant_means="tiles of the query's class",
        unit_means="spatial blocks",
        ground_means="spatial blocks",
    )


def rows(codes, vectors):
    settings = config.build(EvaluateSection, {"relevance": "label", "objective": "MAP@R", "resamples": 100, "probe_repeats": 2})
    question = asked(codes)
    found = plan(question, settings)
    measured = [measure(name, of_row, "euclidean", question, found, settings) for name, of_row in vectors.items()]
    return measured, {**table(measured, settings, ours="trained"), "protocol": {"cautions": []}}


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(COUNT, 4)).astype(np.float32) for name in ("random-init", "trained")}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return {f"tile{number:02}": rng.integers(0, 255, (20 + number, 30, 3), np.uint8) for number in range(COUNT)}


def test_sheets_show_the_nearest_other_tiles_and_which_of_them_are_relevant(vectors):
    codes = np.arange(COUNT) % 3
    measured, _ = rows(codes, vectors)
    chosen = choose(measured, seed=0)
    assert [sheet.row for sheet in chosen.sheets] == ["random-init", "trained"]
    for sheet in chosen.sheets:
        of_row = vectors[sheet.row].astype(float)
        for query, found, right in zip(sheet.queries, sheet.found, sheet.right, strict=True):
            apart = ((of_row - of_row[query]) ** 2).sum(axis=1)
            apart[query] = np.inf
            assert found.tolist() == np.argsort(apart)[:NEIGHBOURS].tolist()
            assert right.tolist() == (codes[found] == codes[query]).tolist()
    assert (chosen.sheets[0].queries == chosen.sheets[1].queries).all()


def test_sheets_of_few_candidates_show_none_that_is_excluded(vectors):
    codes = np.arange(COUNT) % 3
    measured, _ = rows(codes, vectors)
    near = np.argwhere((np.arange(COUNT)[:, None] - np.arange(COUNT)) % COUNT < COUNT - 5)  # each tile has five candidates
    crowded = dataclasses.replace(measured[0].question, excluded=PairList(near, COUNT))
    (sheet,) = choose([dataclasses.replace(measured[0], question=crowded)], seed=0).sheets
    assert sheet.found.shape == (QUERIES, 5)
    assert ((sheet.queries[:, None] - sheet.found) % COUNT >= COUNT - 5).all()


def test_queries_are_of_all_classes_in_turn(vectors):
    codes = np.zeros(COUNT, np.int64)
    codes[:6] = np.repeat([1, 2, 3], 2)  # three rare classes
    chosen = choose(rows(codes, vectors)[0], seed=0)
    assert len(chosen.sheets[0].queries) == QUERIES
    assert np.bincount(codes[chosen.sheets[0].queries]).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("labelled", [True, False])
def test_every_picture_is_drawn_and_stands_in_the_page(vectors, images, labelled):
    codes = np.arange(COUNT) % 3 if labelled else np.full(COUNT, -1)
    measured, report = rows(codes, vectors)
    chosen = choose(measured, seed=0)
    history = {"train/loss": [(0, 2.0), (1, 1.0)]}
    shown = {f"tile{tile:02}": images[f"tile{tile:02}"] for tile in chosen.tiles().tolist()}
    made = illustrate(measured, report, chosen, shown, history, umap=False, seed=0)
    planes = {"pca/trained", "pca-thumbnails/trained", "pca/random-init"}
    wanted = {"rows", "ranks", *planes, "neighbours/trained", "neighbours/random-init", "curves"}
    assert wanted <= made.pictures.keys()
    assert ("confusion/trained" in made.pictures) == labelled
    for png in made.pictures.values():
        assert PIL.Image.open(io.BytesIO(png)).format == "PNG"
    text = page(report, made.pictures, name="made-up", experiment="name: made-up", versions={})
    assert text.count("data:image/png;base64,") == len(made.pictures)
    assert {"projector_config.pbtxt", "metadata.tsv", "sprite.png", "0/tensors.tsv"} <= made.board.keys()
    assert len(made.board["0/tensors.tsv"].splitlines()) == COUNT
