"""Embedding the training tiles on many ranks."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from rayjobs.errors import TrainingError
from rayjobs.metric.guards import LabelGuard
from rayjobs.train import mine
from rayjobs.train.batches import ByLabel
from rayjobs.train.cache import ChipCache


class Normed(torch.nn.Module):
    """Embeds by batch norm alone."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(2)

    def forward(self, pixels, _valid):
        return self.norm(pixels.float()).mean(dim=(2, 3))


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_with_nothing_to_embed_learns_nothing_from_it(monkeypatch, rank):
    monkeypatch.setattr(mine, "rank", lambda: rank)
    monkeypatch.setattr(mine, "world_size", lambda: 6)
    pixels = np.random.default_rng(0).integers(0, 255, (9, 2, 4, 4)).astype(np.uint8)
    module = Normed().train()
    found = mine.embed_all(module, ChipCache(pixels=pixels, valid=np.ones((9, 4, 4), bool)), torch.device("cpu"))
    assert found.shape == (9, 2)
    assert bool(found.any()) == (rank == 0)
    assert module.training
    assert module.norm.running_mean.tolist() == [0, 0], "statistics are of training steps alone"


def clustered(count=1500, dim=16):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, dim))[rng.integers(0, 30, count)] + 0.5 * rng.normal(size=(count, dim))
    return torch.from_numpy((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)), rng.integers(0, 8, count)


def test_more_tiles_than_are_searched_exactly_are_searched_by_an_index_with_the_same_guards():
    vectors, labels = clustered()
    settings = {"guards": [LabelGuard(labels)], "negatives": 4, "max_candidates": 300, "device": torch.device("cpu")}
    exact, indexed, again = (mine.mine_all(vectors, **settings, exact_up_to=most) for most in (1500, 1499, 0))
    assert exact.search == "exact search"
    assert indexed.search == "search of 16 in 77 cells of an IVF index"
    found = [len(set(one) & set(other)) / 4 for one, other in zip(exact.candidates.tolist(), indexed.candidates.tolist(), strict=True)]
    assert np.mean(found) > 0.97
    assert (labels[indexed.candidates] != labels[:, None]).all()
    assert (indexed.candidates != np.arange(1500)[:, None]).all()
    assert indexed.refused["label"] > 500
    assert indexed.candidates.tobytes() + indexed.scores.tobytes() == again.candidates.tobytes() + again.scores.tobytes()
    np.testing.assert_allclose(indexed.scores, (vectors[:, None] * vectors[indexed.candidates]).sum(dim=2), atol=1e-6)


def test_an_index_that_looks_everywhere_finds_what_exact_search_does(monkeypatch):
    monkeypatch.setattr("rayjobs.metric.indexed._LEAST_PROBED", 10_000)
    vectors, labels = clustered(400)
    settings = {"guards": [LabelGuard(labels)], "negatives": 4, "max_candidates": 300, "device": torch.device("cpu")}
    exact, indexed = (mine.mine_all(vectors, **settings, exact_up_to=most) for most in (400, 0))
    np.testing.assert_array_equal(indexed.candidates, exact.candidates)
    assert indexed.refused == exact.refused


def test_what_a_table_keeps_comes_back():
    vectors, labels = clustered(60)
    by_label = ByLabel(labels)
    found = mine.mine_all(
        vectors,
        [LabelGuard(labels)],
        negatives=3,
        max_candidates=20,
        device=torch.device("cpu"),
        positives=2,
        known=by_label.known_positives,
    )
    ids = [f"{number * 37 % 101:03}" for number in range(60)]
    table = found.table(ids)
    back = mine.from_table(table, ids)
    np.testing.assert_array_equal(back.negatives, found.candidates)
    np.testing.assert_array_equal(back.positives, found.positives)
    assert found.counts == {"negatives": 180, "positives": 120}
    rows = table.filter(pc.equal(table["kind"], "positive")).to_pylist()
    assert rows[0] == {
        "anchor_id": ids[0],
        "candidate_id": ids[found.positives[0, 0]],
        "kind": "positive",
        "rank": 1,
        "score": found.positive_scores[0, 0],
    }
    assert mine.from_table(table.slice(0, 0), ids).positives.shape == (60, 0)


def test_vectors_that_are_not_finite_end_mining_on_every_rank():
    vectors, _ = clustered(40)
    vectors[33, 2] = torch.inf
    with pytest.raises(TrainingError, match="not finite"):
        mine.mine_all(vectors, [], negatives=1, max_candidates=5, device=torch.device("cpu"), exact_up_to=0)
