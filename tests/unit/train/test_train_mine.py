"""Embedding the training tiles on many ranks."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from rayjobs.config import build
from rayjobs.errors import TrainingError
from rayjobs.experiment import Experiment
from rayjobs.metric.guards import LabelGuard
from rayjobs.metric.section import MiningSection
from rayjobs.train import mine
from rayjobs.train import state as states
from rayjobs.train.batches import ByLabel, plan_epoch
from rayjobs.train.cache import ChipCache
from rayjobs.train.ground import Ground, supervise


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


def made(labels):
    """Ground of tiles far apart, with classes, and chips that show noise."""
    tiles = np.arange(len(labels))
    ground = Ground(
        tile_ids=[f"{number:03}" for number in tiles],
        positions=np.stack([tiles * 5.0, 0.0 * tiles, 0.0 * tiles], axis=1),
        sizes=np.ones(len(tiles)),
        reaches=np.ones(len(tiles)),
        places=tiles,
        scenes=0 * tiles,
        dates=0 * tiles,
        labels=labels,
        fractions=np.empty((len(tiles), 0), np.float32),
    )
    pixels = np.random.default_rng(0).integers(0, 255, (len(tiles), 3, 2, 2)).astype(np.uint8)
    return ground, ChipCache(pixels=pixels, valid=np.ones((len(tiles), 2, 2), bool))


class Brightness(torch.nn.Module):
    def forward(self, pixels, _valid):
        return torch.nn.functional.normalize(pixels.float().mean(dim=(2, 3)) - 127)


def test_tiles_that_no_batch_takes_are_neither_mined_nor_embedded_nor_candidates():
    labels = np.full(300, -1)
    labels[::8] = np.arange(38) % 3
    labels[5] = 9  # alone in its class
    raw = {
        "name": "x",
        "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
        "mining": {"negatives": 4, "positives": 2, "max_candidates": 30},
        "train": {"supervision": "labels"},
    }
    experiment = build(Experiment, raw)
    ground, chips = made(labels)
    supervision = supervise(experiment, ground)
    mined, _ = mine.mined_with(experiment, ground, supervision, Brightness(), chips, torch.device("cpu"))
    anchors = np.arange(0, 300, 8)
    assert mined.candidates.shape == (300, 4)
    assert np.flatnonzero((mined.candidates >= 0).all(axis=1)).tolist() == anchors.tolist()
    assert np.flatnonzero((mined.positives >= 0).any(axis=1)).tolist() == anchors.tolist()
    assert set(mined.candidates.ravel().tolist()) == {-1, *anchors.tolist()}
    assert (labels[mined.candidates[anchors]] != labels[anchors, None]).all()
    assert (labels[mined.positives[anchors]] == labels[anchors, None]).all()
    vectors = Brightness()(torch.from_numpy(chips.pixels), None)
    np.testing.assert_allclose(mined.scores[anchors], (vectors[anchors, None] * vectors[mined.candidates[anchors]]).sum(dim=2), atol=1e-6)
    hard = mine.from_table(mined.table(ground.tile_ids), ground.tile_ids)
    rng = np.random.default_rng(0)
    assert plan_epoch(supervision, rng, steps=9, batch=12, group=2, mined=hard, mined_share=0.5).joined_share == 1


def thin(tiles=500, negatives=4, positives=3):
    """What mining may find, with fewer for some and nothing for others: the last columns are empty."""
    rng = np.random.default_rng(0)

    def some(columns, fewest):
        found = rng.integers(0, tiles, (tiles, columns))
        found[np.arange(columns) >= rng.integers(0, columns - fewest + 1, tiles)[:, None]] = -1
        return found, np.where(found >= 0, rng.random((tiles, columns)), 0).astype(np.float32)

    (candidates, scores), (alike, alike_scores) = some(negatives, 1), some(positives, 1) if positives else (np.empty((tiles, 0), int),) * 2
    return mine.Mined(candidates=candidates, scores=scores, positives=alike, positive_scores=alike_scores, refused={}, search="")


@pytest.mark.parametrize("positives", [3, 0])
def test_batches_are_those_of_the_published_table(positives, monkeypatch):
    monkeypatch.setattr(mine, "_TABLE_BLOCK", 64)
    found, ids = thin(positives=positives), [f"{number * 7919 % 100_003:020x}" for number in range(500)]
    file = pq.read_table(io.BytesIO(found.parquet(ids)))
    assert file.equals(found.table(ids))
    supervision = ByLabel(np.arange(500) % 5)
    settings = {"steps": 20, "batch": 24, "group": 3, "mined_share": 0.7}
    plans = []
    for hard in (found.hard_tiles, mine.from_table(file, ids)):
        assert hard.negatives.shape == (500, 3)
        np.testing.assert_array_equal(hard.negatives, found.candidates[:, :3])
        np.testing.assert_array_equal(hard.positives, found.positives[:, : hard.positives.shape[1]])
        plans.append(plan_epoch(supervision, np.random.default_rng(3), mined=hard, **settings))
    assert np.array_equal(plans[0].members, plans[1].members)
    assert plans[0].joined_share == plans[1].joined_share
    assert found.hard_tiles.positives.shape == mine.from_table(file, ids).positives.shape


def test_ranks_that_do_not_publish_make_no_table(monkeypatch):
    monkeypatch.setattr(states, "rank", lambda: 1)
    monkeypatch.setattr(mine.Mined, "_parts", lambda *_: pytest.fail("a table was made"))
    found, state = thin(), SimpleNamespace(module=torch.nn.Linear(1, 1), epoch=3, mined=None, generation=None, failed_uploads=0)
    states.publish_mined(None, state, found, [str(number) for number in range(500)])
    assert state.generation == 3
    np.testing.assert_array_equal(state.mined.negatives, found.candidates[:, :3])


def test_a_row_of_the_file_takes_no_more_than_is_stated():
    rng = np.random.default_rng(0)
    ids = [rng.bytes(10).hex() for _ in range(30_000)]
    found = thin(30_000, 6, 2)
    rows = sum(found.counts.values())
    assert len(found.parquet(ids)) < 56 * rows


def test_memory_is_stated_as_on_the_page_of_scale():
    sections = {"negatives": 5, "max_candidates": 1024}
    exact = mine.host_bytes(MiningSection(**sections, exact_up_to=10**7), tiles=10**7, anchors=10**7, dim=128, threads=16)
    indexed = mine.host_bytes(MiningSection(**sections), tiles=10**7, anchors=10**7, dim=128, threads=16)
    assert (round(exact / 1e9, 1), round(indexed / 1e9, 1)) == (12.2, 19.4)
