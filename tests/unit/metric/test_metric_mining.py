from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.errors import TrainingError
from rayjobs.metric import mining, ranking
from rayjobs.metric.guards import DistanceGuard, LabelGuard, OverlapGuard, Pairs, PlaceGuard
from rayjobs.metric.ranking import ExactRanking, canonical_blocks


def scattered(rng, count, dim=8, *, coarse=False):
    """Unit vectors, positions, sizes and labels; `coarse` vectors have many equal similarities."""
    vectors = rng.integers(-1, 2, (count, dim)).astype(np.float32) if coarse else rng.normal(size=(count, dim)).astype(np.float32)
    vectors[~vectors.any(axis=1), 0] = 1
    if not coarse:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    positions = np.column_stack([rng.uniform(0, 20, (count, 2)), np.zeros(count)])
    return vectors, positions, rng.uniform(0.5, 2.0, count), rng.integers(-1, 3, count)


def oracle(vectors, positions, sizes, labels, *, min_dist, negatives, max_candidates):
    """One anchor and one candidate at a time, with the rules written out."""
    exact = vectors.astype(np.float64)
    found, refused = [], {"overlap": 0, "distance": 0, "label": 0}
    for anchor in range(len(vectors)):
        ranking = sorted(
            (candidate for candidate in range(len(vectors)) if candidate != anchor), key=lambda c: (-(exact[anchor] @ exact[c]), c)
        )
        chosen = []
        for candidate in ranking[:max_candidates]:
            if len(chosen) == negatives:
                break
            apart = float(np.linalg.norm(positions[anchor] - positions[candidate]))
            if apart < (sizes[anchor] + sizes[candidate]) / 2 * 2**0.5:
                refused["overlap"] += 1
            elif apart < min_dist * max(sizes[anchor], sizes[candidate]):
                refused["distance"] += 1
            elif labels[anchor] >= 0 and labels[anchor] == labels[candidate]:
                refused["label"] += 1
            else:
                chosen.append(candidate)
        found.append(chosen + [-1] * (negatives - len(chosen)))
    return np.array(found), refused


def mine(vectors, *given, **keys):
    return mining.mine(ExactRanking(torch.from_numpy(vectors)), *given, **keys)


def guards_of(positions, sizes, labels, min_dist):
    return [OverlapGuard(positions, sizes / 2**0.5), DistanceGuard(positions, sizes, min_dist=min_dist), LabelGuard(labels)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), count=st.integers(1, 60), block=st.integers(1, 64), negatives=st.integers(1, 4), depth=st.integers(4, 80)
)
def test_mining_equals_a_naive_search_with_the_same_rules(seed, count, block, negatives, depth):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(seed), count, coarse=True)
    wanted, refused = oracle(vectors, positions, sizes, labels, min_dist=3.0, negatives=negatives, max_candidates=depth)
    guards = guards_of(positions, sizes, labels, 3.0)
    parts = [mine(vectors, part, guards, negatives=negatives, max_candidates=depth) for part in canonical_blocks(count, block)]
    found = np.concatenate([part.candidates for part in parts])
    np.testing.assert_array_equal(found, wanted)
    assert {name: sum(part.refused[name] for part in parts) for name in refused} == refused
    scores = np.concatenate([part.scores for part in parts])
    similar = np.take_along_axis(vectors @ vectors.T, found.clip(0), axis=1)
    np.testing.assert_array_equal(scores, np.where(found < 0, 0, similar))


@pytest.mark.parametrize("gallery", [1, 7, 64, 1000])
def test_how_the_set_is_cut_for_comparison_changes_nothing(monkeypatch, gallery):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(1), 200, coarse=True)
    guards = guards_of(positions, sizes, labels, 3.0)
    whole = mine(vectors, slice(0, 50), guards, negatives=3, max_candidates=40)
    monkeypatch.setattr(ranking, "_GALLERY", gallery)
    monkeypatch.setattr(ranking, "_MARKS", 3 * gallery)
    cut = mine(vectors, slice(0, 50), guards, negatives=3, max_candidates=40)
    np.testing.assert_array_equal(cut.candidates, whole.candidates)
    assert cut.refused == whole.refused


@pytest.mark.parametrize(("short", "first_look"), [(1, 1), (3, 2), (100, 50)])
def test_how_far_is_looked_at_first_changes_nothing(monkeypatch, short, first_look):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(2), 300)
    guards = guards_of(positions, sizes, labels, 6.0)
    usual = mine(vectors, slice(0, 300), guards, negatives=4, max_candidates=200)
    monkeypatch.setattr(mining, "_SHORT", short)
    monkeypatch.setattr(mining, "_FIRST_LOOK", first_look)
    other = mine(vectors, slice(0, 300), guards, negatives=4, max_candidates=200)
    np.testing.assert_array_equal(other.candidates, usual.candidates)
    assert other.refused == usual.refused


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_table_is_the_same_byte_for_byte_however_blocks_and_threads_are_shared(workers, threads):
    vectors, positions, sizes, labels = scattered(np.random.default_rng(3), 700, dim=128)
    guards = guards_of(positions, sizes, labels, 3.0)
    blocks = canonical_blocks(len(vectors), 64)

    def table(shares):
        done = {part.start: mine(vectors, part, guards, negatives=5, max_candidates=100) for share in shares for part in share}
        refused = {name: sum(part.refused[name] for part in done.values()) for name in ("overlap", "distance", "label")}
        return b"".join(done[start].candidates.tobytes() + done[start].scores.tobytes() for start in sorted(done)), refused

    alone = table([blocks])
    with on_threads(threads):
        assert table([blocks[worker::workers] for worker in reversed(range(workers))]) == alone


@contextmanager
def on_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("offset", range(1, 16))
def test_a_lone_anchor_gets_the_same_scores_with_any_number_of_threads_and_wherever_vectors_lie(offset):
    """BLAS shares the product of one vector with many among its threads, and by where they lie, in ways that change last bits."""
    vectors = scattered(np.random.default_rng(4), 5_000, dim=129)[0]
    elsewhere = np.empty(vectors.size + 16, np.float32)[offset : offset + vectors.size].reshape(vectors.shape)
    elsewhere[:] = vectors
    wanted = mine(vectors, slice(4_096, 4_097), [], negatives=4_999, max_candidates=4_999)
    with on_threads(1 + offset % 3):
        found = mine(elsewhere, slice(4_096, 4_097), [], negatives=4_999, max_candidates=4_999)
    assert found.scores.tobytes() == wanted.scores.tobytes()


def test_a_crowd_of_equal_tiles_is_ranked_by_index():
    """All of them reach the floor of all: what waits to be ranked is ranked in between."""
    vectors = np.tile(np.eye(1, 8, dtype=np.float32), (9_000, 1))
    found = mine(vectors, slice(0, 3), [], negatives=4, max_candidates=50)
    assert found.candidates.tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_ranks_as_the_processor_does():
    vectors = torch.from_numpy(scattered(np.random.default_rng(5), 3_000, dim=64)[0])
    anchors = np.arange(500)
    here, there = (ExactRanking(vectors, torch.device(name)).most_similar(anchors, 40) for name in ("cpu", "cuda"))
    (ours, scores), (theirs, of_theirs) = ranking.unpacked(here), ranking.unpacked(there)
    np.testing.assert_allclose(scores, of_theirs, atol=1e-6)
    assert (ours == theirs).mean() > 0.999


@given(
    scores=st.lists(st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=30),
    indices=st.randoms(use_true_random=False),
)
def test_keys_sort_by_score_and_then_by_index(scores, indices):
    order = list(range(len(scores)))
    indices.shuffle(order)
    values = np.array(scores, np.float32)
    keys = np.sort(ranking.packed(values, np.array(order)))
    found, back = ranking.unpacked(keys)
    assert found.tolist() == [index for _, index in sorted(zip((-values).tolist(), order, strict=True))]
    np.testing.assert_array_equal(back, np.sort(values)[::-1])


def test_a_vector_that_is_not_finite_ends_mining():
    vectors = np.eye(4, dtype=np.float32)
    vectors[2, 1] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        mine(vectors, slice(0, 4), [], negatives=1, max_candidates=3)


def refused(guard, anchors, candidates, scores=None, ceilings=None, chosen=None):
    """What a guard refuses of some pairs."""
    given = {"scores": scores, "ceilings": ceilings, "chosen": chosen}
    filled = {name: np.zeros(len(anchors), np.float32) if value is None else np.array(value) for name, value in given.items()}
    return guard.refuses(Pairs(anchors=np.array(anchors), candidates=np.array(candidates), **filled)).tolist()


def test_candidates_farther_than_the_greatest_distance_are_refused():
    positions = np.array([[0.0, 0, 0], [5, 0, 0], [20, 0, 0]])
    guard = DistanceGuard(positions, np.ones(3), min_dist=4, max_dist=10)
    assert refused(guard, [0, 0, 1], [1, 2, 2]) == [False, True, True]


def test_unknown_labels_refuse_nothing():
    guard = LabelGuard(np.array([-1, -1, 2, 2]))
    assert refused(guard, [0, 0, 2], [1, 2, 3]) == [False, False, True]


def test_canonical_blocks_cover_every_tile_once():
    assert [list(range(10))[part] for part in canonical_blocks(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert canonical_blocks(0, 4) == []


def test_hard_positives_are_the_least_similar_of_those_known():
    vectors = scattered(np.random.default_rng(6), 40, coarse=True)[0] / np.float32(4)
    known = {anchor: np.flatnonzero((np.arange(40) * 7 + anchor) % 5 == 1) for anchor in range(40)}
    known = {anchor: alike[alike != anchor][: anchor % 9] for anchor, alike in known.items()}
    found = mining.mine_positives(torch.from_numpy(vectors), slice(4, 31), known.__getitem__, positives=3)
    for row, anchor in enumerate(range(4, 31)):
        similar = {int(other): float(vectors[anchor].astype(float) @ vectors[other]) for other in known[anchor]}
        hardest = sorted(similar, key=lambda other: (similar[other], other))[:3]
        assert [other for other in found.candidates[row].tolist() if other >= 0] == hardest
        assert found.scores[row].tolist() == [similar[other] for other in hardest] + [0] * (3 - len(hardest))
        assert found.ceilings[row] == max(similar.values(), default=np.inf)
        assert found.floors[row] == min(similar.values(), default=np.inf)


def test_anchors_whose_short_ranking_does_not_suffice_are_ranked_farther_and_counted_once():
    """Half of the tiles are one picture of one class: their rankings begin with each other; the others find theirs at once."""
    vectors = scattered(np.random.default_rng(7), 300)[0]
    vectors[:150] = vectors[0]
    labels = np.where(np.arange(300) < 150, 0, -1)
    found = mine(vectors, slice(0, 300), [LabelGuard(labels)], negatives=2, max_candidates=200)
    assert (found.candidates[:150] >= 150).all()
    assert found.refused == {"label": 150 * 149}


def test_anchors_whose_positive_is_near_the_top_get_no_negatives():
    vectors = torch.nn.functional.normalize(torch.tensor([[1, 0], [0.99, 0.1], [0.9, 0.4], [0.7, 0.7], [0.0, 1.0]]), dim=1).numpy()
    similar = vectors @ vectors.T
    floors = np.array([similar[0, 2], similar[1, 4], similar[2, 3], np.inf, similar[4, 3]], np.float32)
    known = PlaceGuard(np.array([0, 1, 0, 2, 3]))  # 0 and 2 show one place

    def found(skip):
        return mine(vectors, slice(0, 5), [known], negatives=3, max_candidates=5, floors=floors, skip_in_top=skip).candidates.tolist()

    everyone = found(None)
    assert everyone[0] == [1, 3, 4]
    assert found(1) == [everyone[0], everyone[1], everyone[2], [-1] * 3, [-1] * 3]  # of 4 the positive itself is the most similar
    assert found(2) == [[-1] * 3, everyone[1], [-1] * 3, [-1] * 3, [-1] * 3]
