from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.errors import RetrievalError
from rayjobs.retrieval import ranking
from rayjobs.retrieval.intervals import bootstrap_interval, paired_difference, resampled_interval
from rayjobs.retrieval.metrics import PairList, SameLabel, metric_names, precision_by_rank, score
from rayjobs.retrieval.neighbours import nearest
from rayjobs.retrieval.proportions import Proportions


def unit(rng, count, dim=6):
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def itself(count):
    return PairList(np.repeat(np.arange(count)[:, None], 2, axis=1), count)


def naive_scores(queries, gallery, relevant, excluded, k, distance):
    """Recall, hit rate and precision at k and MAP@R of every query that has something to find."""
    found = {}
    for query in range(len(queries)):
        allowed = [item for item in range(len(gallery)) if (query, item) not in excluded]
        wanted = {item for item in allowed if (query, item) in relevant}
        if not wanted:
            continue
        if distance == "cosine":
            order = sorted(allowed, key=lambda item: -float(queries[query].astype(float) @ gallery[item].astype(float)))
        else:
            order = sorted(allowed, key=lambda item: float(np.linalg.norm(queries[query].astype(float) - gallery[item].astype(float))))
        hits = [item in wanted for item in order]
        at_r = sum(sum(hits[:rank]) / rank for rank in range(1, len(wanted) + 1) if hits[rank - 1]) / len(wanted)
        found[query] = (sum(hits[:k]) / len(wanted), float(any(hits[:k])), sum(hits[:k]) / k, at_r)
    return found


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9999),
    distance=st.sampled_from(["cosine", "euclidean"]),
    block=st.sampled_from([1, 4000, 2**20]),
    k=st.integers(1, 5),
)
def test_scores_equal_a_naive_loop_whatever_the_block(seed, distance, block, k):
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng, 11) * (1 if distance == "cosine" else 3), unit(rng, 17)
    relevant = np.argwhere(rng.random((11, 17)) < 0.2)
    excluded = np.argwhere(rng.random((11, 17)) < 0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "BLOCK_BYTES", block)
        found = score(queries, gallery, relevance=PairList(relevant, 17), excluded=PairList(excluded, 17), ks=[k], distance=distance)
    wanted = naive_scores(queries, gallery, set(map(tuple, relevant.tolist())), set(map(tuple, excluded.tolist())), k, distance)
    assert found.queries.tolist() == sorted(wanted)
    assert found.lone == 11 - len(wanted)
    names = [f"recall@{k}", f"hit_rate@{k}", f"precision@{k}", "MAP@R"]
    np.testing.assert_allclose(
        np.column_stack([found.values[name] for name in names]), np.array(list(wanted.values())).reshape(-1, 4), atol=1e-12
    )


def test_graded_scores_equal_those_of_scikit_learn():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(3)
    vectors, held, labels = unit(rng, 30), rng.dirichlet([0.3] * 4, 30), rng.integers(0, 3, 30)
    gains = Proportions(queries=held, gallery=held)
    found = score(
        vectors, vectors, relevance=SameLabel(labels, labels), excluded=itself(30), ks=[1, 7], distance="cosine", gains=gains
    ).values
    assert list(found) == metric_names([1, 7], graded=True)
    others = ~np.eye(30, dtype=bool)
    worth = np.minimum(held[:, None], held[None]).sum(2)[others].reshape(30, 29)
    near = (vectors.astype(float) @ vectors.T.astype(float))[others].reshape(30, 29)
    same = (labels[:, None] == labels)[others].reshape(30, 29)
    for k in (1, 7):
        rows = [ndcg_score(worth[[row]], near[[row]], k=k) for row in range(30)]
        np.testing.assert_allclose(found[f"nDCG@{k}/graded"], rows, rtol=1e-6)
        rows = [ndcg_score(same[[row]].astype(float), near[[row]], k=k) for row in range(30)]
        np.testing.assert_allclose(found[f"nDCG@{k}"], rows, rtol=1e-6)


def test_gains_that_are_excluded_are_neither_found_nor_best():
    """The only tile that is worth everything shares the query's ground; the better of the others comes second."""
    vectors = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    held = np.array([[1.0, 0], [1.0, 0], [0.25, 0.75], [0.5, 0.5]])
    excluded = PairList(np.array([[0, 0], [0, 1]]), 4)
    labels = np.zeros(4, np.int64)
    found = score(
        vectors[:1],
        vectors,
        relevance=SameLabel(labels[:1], labels),
        excluded=excluded,
        ks=[1, 9],
        distance="euclidean",
        gains=Proportions(queries=held[:1], gallery=held),
    ).values
    log = np.log2(3)
    assert found["nDCG@1/graded"] == pytest.approx(0.5)
    assert found["nDCG@9/graded"] == pytest.approx((0.25 + 0.5 / log) / (0.5 + 0.25 / log))


def test_a_query_with_nothing_to_gain_is_lone():
    vectors, held = unit(np.random.default_rng(0), 3), np.array([[1.0, 0], [0, 0.1 + 0.2], [0, 1.0]])
    labels = np.zeros(3, np.int64)
    found = score(
        vectors,
        vectors,
        relevance=SameLabel(labels, labels),
        excluded=itself(3),
        ks=[1],
        distance="cosine",
        gains=Proportions(queries=held, gallery=held),
    )
    assert found.queries.tolist() == [1, 2]
    assert found.lone == 1


def test_labels_are_relevant_where_equal_and_known():
    found = SameLabel(np.array([0, 1, -1]), np.array([1, -1, 0])).rows(np.array([2, 0]))
    assert found.tolist() == [[False, False, False], [False, False, True]]


def test_pairs_are_marked_for_the_queries_asked_for_alone():
    pairs = PairList(np.array([[0, 1], [5, 2], [3, 0]]), 3)
    assert pairs.rows(np.array([3, 1])).tolist() == [[True, False, False], [False, False, False]]
    assert pairs.rows(np.empty(0, np.int64)).shape == (0, 3)
    assert not PairList(np.empty((0, 2), np.int64), 3).rows(np.array([0])).any()


def test_pairs_in_any_order_are_marked_for_queries_in_any_order():
    rng = np.random.default_rng(0)
    pairs, queries = rng.integers(0, [30, 20], (200, 2)), rng.permutation(35)[:12]  # some pairs twice, some queries in none
    listed = {tuple(pair) for pair in pairs.tolist()}
    expected = [[(query, item) in listed for item in range(20)] for query in queries.tolist()]
    assert PairList(pairs, 20).rows(queries).tolist() == expected


def test_ties_are_fair_though_the_gallery_is_sorted_by_class():
    """With one and the same vector everywhere, a query of the first class must find what chance gives, not what lies first."""
    labels = np.repeat(np.arange(10), 30)
    gallery = np.tile(unit(np.random.default_rng(0), 1), (300, 1))
    relevance, nothing = SameLabel(labels[:5], labels), PairList(np.empty((0, 2), np.int64), 300)
    found = [
        score(gallery[:5], gallery, relevance=relevance, excluded=nothing, ks=[10], distance="cosine", seed=seed) for seed in range(60)
    ]
    assert np.mean([scores.values["precision@10"].mean() for scores in found]) == pytest.approx(0.1, abs=0.03)


def test_ties_of_codes_favour_no_class():
    """Codes of 128 bits, of which all but two are equal, so that most items are tied: no class is found more often than chance."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(5), 40)
    found = []
    for _ in range(60):
        bits = np.ones((200, 128), np.float32)
        bits[:, :2] = rng.choice([-1, 1], (200, 2))
        codes = bits / np.float32(np.sqrt(128))
        relevance = SameLabel(labels, labels)
        scores = score(codes, codes, relevance=relevance, excluded=itself(200), ks=[10], distance="cosine", seed=int(rng.integers(99)))
        found.append([scores.values["precision@10"][labels == label].mean() for label in range(5)])
    assert np.mean(found, axis=0) == pytest.approx(np.full(5, 39 / 199), abs=0.03)


def test_a_seed_gives_the_same_scores():
    rng = np.random.default_rng(5)
    vectors = np.round(unit(rng, 40), 1)
    labels = rng.integers(0, 4, 40)
    first, second = (
        score(vectors, vectors, relevance=SameLabel(labels, labels), excluded=itself(40), ks=[3], distance="cosine", seed=2)
        for _ in range(2)
    )
    assert all(np.array_equal(first.values[name], second.values[name]) for name in first.values)


def test_memory_stays_within_the_stated_size_and_below_all_pairs(monkeypatch):
    """Half of the gallery is relevant, so that rankings must reach deep."""
    import tracemalloc

    count, bound = 3000, 4 * 2**20
    monkeypatch.setattr(ranking, "BLOCK_BYTES", bound)
    rng = np.random.default_rng(0)
    vectors, labels, held = unit(rng, count), rng.integers(0, 2, count), rng.dirichlet([0.3] * 5, count)
    gains = Proportions(queries=held, gallery=held)
    tracemalloc.start()
    found = score(vectors, vectors, relevance=SameLabel(labels, labels), excluded=itself(count), ks=[1], distance="cosine", gains=gains)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    results = sum(values.nbytes for values in found.values.values())
    assert peak <= bound + 3 * vectors.nbytes + 2 * results + 8 * count * 4
    assert peak < count * count


def test_queries_with_nothing_to_find_are_left_out_and_counted():
    vectors = unit(np.random.default_rng(0), 4)
    found = score(vectors, vectors, relevance=itself(4), excluded=itself(4), ks=[1], distance="cosine")
    assert found.lone == 4
    assert len(found.queries) == 0
    assert found.values["MAP@R"].shape == (0,)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e30])
def test_embeddings_that_are_not_finite_or_whose_length_is_not_are_refused(value):
    vectors = unit(np.random.default_rng(0), 4)
    vectors[2, 0] = value
    with pytest.raises(RetrievalError, match="not finite"):
        score(vectors, vectors, relevance=itself(4), excluded=itself(4), ks=[1], distance="cosine")


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_are_those_of_a_sorted_list(distance):
    rng = np.random.default_rng(1)
    queries, gallery = unit(rng, 3), unit(rng, 20)
    found = nearest(queries, gallery, 5, distance)
    wanted = np.argsort(np.linalg.norm(queries[:, None] - gallery[None], axis=2), axis=1)[:, :5]
    assert found.tolist() == wanted.tolist()


def test_an_interval_resamples_whole_units():
    """Values that are equal within a unit tell no more than one value per unit, however often they are repeated."""
    rng = np.random.default_rng(0)
    of_units = rng.normal(size=25)
    few = bootstrap_interval(of_units, np.arange(25), resamples=4000)
    many = bootstrap_interval(np.repeat(of_units, 40), np.repeat(np.arange(25), 40), resamples=4000)
    assert (many.value, many.low, many.high) == pytest.approx((few.value, few.low, few.high))
    wanted = 2 * 1.96 * of_units.std() / np.sqrt(25)
    assert many.high - many.low == pytest.approx(wanted, rel=0.1)
    assert many.units == 25


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        units = np.repeat(np.arange(60), 5)
        values = 0.5 + rng.normal(size=60)[units] + rng.normal(size=300)
        interval = bootstrap_interval(values, units, resamples=400, seed=trial)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_units_weigh_by_their_queries():
    """The oracle draws units one by one and pools their queries."""
    rng = np.random.default_rng(2)
    units = rng.integers(0, 8, 50)
    values = units + rng.normal(size=50)
    names = np.unique(units)
    means = [np.concatenate([values[units == name] for name in rng.choice(names, len(names))]).mean() for _ in range(4000)]
    found = bootstrap_interval(values, units, resamples=4000)
    np.testing.assert_allclose([found.low, found.high], np.percentile(means, [2.5, 97.5]), atol=0.25)
    assert found.value == pytest.approx(values.mean())


def test_paired_differences_are_tighter_than_their_parts_and_repeatable():
    rng = np.random.default_rng(3)
    base = rng.normal(size=200)
    units = np.arange(200) // 4
    found = paired_difference(base + 0.1 + 0.01 * rng.normal(size=200), base, units, seed=4)
    assert found.low > 0
    assert found.value == pytest.approx(0.1, abs=0.01)
    assert found.high - found.low < 0.01
    assert bootstrap_interval(base, units, seed=4) == bootstrap_interval(base, units, seed=4)
    assert bootstrap_interval(base, units, seed=4) != bootstrap_interval(base, units, seed=5)


def test_an_interval_of_resampled_splits_is_students_corrected_for_shared_tiles():
    values = np.array([0.7, 0.8, 0.75, 0.65, 0.85])
    found = resampled_interval(values, 0.25)
    reach = 2.776445 * np.std(values, ddof=1) * np.sqrt(1 / 5 + 0.25)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75 - reach, 0.75 + reach), abs=1e-6)
    assert found.units == 5


def test_a_single_split_has_no_interval():
    found = resampled_interval(np.array([0.7]), 0.25)
    assert found.value == 0.7
    assert np.isnan([found.low, found.high]).all()


def test_precision_by_rank_is_a_loop_over_queries_and_ranks():
    rng = np.random.default_rng(3)
    vectors, labels = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 4, 30)
    labels[0] = 99  # has nothing to find, and is left out
    itself = PairList(np.repeat(np.arange(30)[:, None], 2, axis=1), 30)
    found = precision_by_rank(vectors, vectors, relevance=SameLabel(labels, labels), excluded=itself, depth=12, distance="euclidean")
    shares = []
    for query in range(1, 30):
        others = [item for item in range(30) if item != query]
        others.sort(key=lambda item: float(((vectors[item] - vectors[query]) ** 2).sum()))
        shares.append([sum(labels[item] == labels[query] for item in others[:rank]) / rank for rank in range(1, 13)])
    np.testing.assert_allclose(found, np.mean(shares, axis=0), rtol=1e-12)


def test_precision_by_rank_of_nothing_to_find_is_nothing():
    vectors = np.eye(3, dtype=np.float32)
    labels, itself = np.arange(3), PairList(np.repeat(np.arange(3)[:, None], 2, axis=1), 3)
    assert not len(precision_by_rank(vectors, vectors, relevance=SameLabel(labels, labels), excluded=itself, depth=2, distance="cosine"))
