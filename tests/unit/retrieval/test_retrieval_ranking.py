from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.retrieval import ranking
from rayjobs.retrieval.ranking import Ranker, blocks


def ranked(queries, gallery, *, out=None, depth=None, distance="cosine", seed=0):
    out = np.zeros((len(queries), len(gallery)), bool) if out is None else out
    ranker = Ranker(queries, gallery, distance=distance, seed=seed)
    return ranker.ranked(np.arange(len(queries)), out, depth or len(gallery))


def coarse(rng, count):
    """Vectors whose products are exact and often equal."""
    return rng.integers(-2, 3, (count, 3)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), depth=st.integers(1, 25), distance=st.sampled_from(["cosine", "euclidean"]))
def test_rankings_are_those_of_a_sort_whose_ties_go_by_one_random_order(seed, depth, distance):
    """Whatever the depth: ties at the last rank are broken by the same order as all others."""
    rng = np.random.default_rng(seed)
    queries, gallery = coarse(rng, 4), coarse(rng, 20)
    out = rng.random((4, 20)) < 0.2
    found = ranked(queries, gallery, out=out, depth=depth, distance=distance, seed=seed)
    order = np.random.default_rng(seed).permutation(20).tolist()
    assert found.shape == (4, min(depth, 20))
    for row in range(4):
        far = -(gallery @ queries[row]) if distance == "cosine" else ((gallery - queries[row]) ** 2).sum(1)
        wanted = sorted(
            range(20), key=lambda item, row=row, far=far: (out[row, item], 0 if out[row, item] else far[item], order.index(item))
        )
        assert found[row].tolist() == wanted[:depth]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
def test_keys_fall_as_numbers_rise(numbers):
    values = np.array(numbers, np.float32)
    keys = ranking._descending(values)
    assert keys.dtype == np.uint32
    assert np.array_equal(values[:, None] < values[None], keys[:, None] > keys[None])


def test_every_item_of_a_tie_is_first_as_often_as_any_other():
    gallery = np.ones((6, 2), np.float32)
    first = [int(ranked(gallery[:1], gallery, depth=1, seed=seed)[0, 0]) for seed in range(600)]
    assert np.bincount(first, minlength=6).min() > 60


def test_two_zeros_are_a_tie():
    queries, gallery = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1], [-0.0, 1]], np.float32)
    assert {int(ranked(queries, gallery, depth=1, seed=seed)[0, 0]) for seed in range(20)} == {0, 1}


def test_distances_far_from_the_origin_are_as_exact_as_near_it():
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(count, 4)) for count in (10, 50))
    wanted = np.argsort(((queries[:, None] - gallery[None]) ** 2).sum(2), axis=1)
    shifted = ranked((queries + 1000).astype(np.float32), (gallery + 1000).astype(np.float32), distance="euclidean")
    assert (shifted[:, :5] == wanted[:, :5]).mean() > 0.95


@pytest.mark.parametrize(("row_bytes", "sizes"), [(10, [4, 4, 2]), (1000, [1] * 10), (0, [10])])
def test_blocks_hold_as_many_rows_as_fit_and_at_least_one(monkeypatch, row_bytes, sizes):
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 45)
    found = list(blocks(10, row_bytes))
    assert [len(rows) for rows in found] == sizes
    assert np.concatenate(found).tolist() == list(range(10))


def test_an_empty_gallery_ranks_nothing():
    assert ranked(np.ones((2, 3), np.float32), np.empty((0, 3), np.float32), depth=4, distance="euclidean").shape == (2, 0)


@pytest.mark.parametrize("bits", [32, 128])
def test_equal_hamming_distances_are_ties_whatever_the_bits(bits):
    rng = np.random.default_rng(bits)
    codes = np.where(rng.random((200, bits)) < 0.5, 1, -1).astype(np.float32) / np.float32(np.sqrt(bits))
    queries = codes[:9]
    ranked = Ranker(queries, codes, distance="cosine", seed=4).ranked(np.arange(9), np.zeros((9, 200), bool), 200)
    order = np.argsort(np.random.default_rng(4).permutation(200))
    for row, found in enumerate(ranked.tolist()):
        apart = ((codes > 0) != (queries[row] > 0)).sum(axis=1)
        assert found == sorted(range(200), key=lambda item, apart=apart: (apart[item], order[item]))
