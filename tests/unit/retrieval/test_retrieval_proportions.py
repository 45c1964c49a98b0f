from __future__ import annotations

import numpy as np
import pytest

from rayjobs.errors import RetrievalError
from rayjobs.retrieval import ranking
from rayjobs.retrieval.metrics import PairList
from rayjobs.retrieval.proportions import Proportions, generalised_silhouette, soft_precision_at_r, summed_error


def itself(count):
    return PairList(np.repeat(np.arange(count)[:, None], 2, axis=1), count)


def soft_precision(vectors, held, **options):
    return soft_precision_at_r(
        vectors, vectors, proportions=Proportions(queries=held, gallery=held), **{"excluded": itself(len(vectors)), **options}
    )


def test_shared_proportions_are_sums_of_the_smaller():
    rng = np.random.default_rng(0)
    queries, gallery = rng.dirichlet([0.2] * 5, 4), rng.dirichlet([0.2] * 5, 6)
    found = Proportions(queries=queries, gallery=gallery).rows(np.array([3, 0]))
    np.testing.assert_allclose(found, np.minimum(queries[[3, 0], None], gallery[None]).sum(2), atol=1e-12)


def test_tiles_that_share_no_class_share_nothing_at_all():
    rng = np.random.default_rng(0)
    left, right = np.zeros((50, 6)), np.zeros((50, 6))
    left[:, :3], right[:, 3:] = rng.dirichlet([1] * 3, 50), rng.dirichlet([1] * 3, 50)
    assert not Proportions(queries=left, gallery=right).rows(np.arange(50)).any()


@pytest.mark.parametrize("held", [[[np.nan, 1]], [[-0.1, 1]], [0.5, 0.5]])
def test_what_are_no_proportions_is_refused(held):
    with pytest.raises(ValueError, match="proportions are"):
        Proportions(queries=np.array(held), gallery=np.array([[1.0, 0.0]]))


def test_soft_precision_does_not_depend_on_the_block(monkeypatch):
    rng = np.random.default_rng(1)
    vectors, held = rng.normal(size=(40, 4)).astype(np.float32), rng.dirichlet([0.3] * 4, 40)
    whole = soft_precision(vectors, held)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 10_000)
    pieces = soft_precision(vectors, held)
    assert list(whole) == ["soft_precision@1", "soft_precision@5", "soft_precision@10"]
    for name, values in whole.items():
        np.testing.assert_allclose(values, pieces[name], rtol=1e-12)


def test_missing_candidates_count_nothing():
    held = np.tile([1.0, 0.0], (4, 1))
    vectors = np.arange(4, dtype=np.float32)[:, None]
    found = soft_precision(vectors, held, excluded=PairList(np.array([[0, 0], [0, 1], [0, 2]]), 4), rs=(1, 2, 9))
    assert [found[f"soft_precision@{r}"][0] for r in (1, 2, 9)] == pytest.approx([1, 1 / 2, 1 / 9])


def test_soft_precision_and_gsil_want_pairs_of_classes():
    vectors, held = np.zeros((3, 2), np.float32), np.ones((3, 1))
    with pytest.raises(ValueError, match="two classes"):
        soft_precision(vectors, held)
    with pytest.raises(ValueError, match="two classes"):
        generalised_silhouette(vectors, held)


def test_vectors_that_are_not_finite_are_refused():
    with pytest.raises(RetrievalError, match="not finite"):
        soft_precision(np.full((3, 2), np.inf, np.float32), np.ones((3, 2)))


def test_gsil_of_tiles_of_one_class_each_is_the_silhouette_where_that_is_positive():
    from sklearn.metrics import silhouette_samples

    rng = np.random.default_rng(2)
    vectors, labels = rng.normal(size=(60, 3)).astype(np.float32), rng.integers(0, 2, 60)
    found = generalised_silhouette(vectors, np.eye(2)[labels])
    wanted = silhouette_samples(vectors.astype(float), labels)
    np.testing.assert_allclose(found.values[wanted > 0], wanted[wanted > 0], atol=1e-6)
    assert np.all(found.values[wanted < 0] < 0)
    assert found.value == pytest.approx(found.values.mean())


def test_gsil_sees_whether_mixtures_lie_together():
    rng = np.random.default_rng(3)
    held = rng.dirichlet([0.2] * 4, 300)
    near, far = (
        generalised_silhouette(held.astype(np.float32), held),
        generalised_silhouette(rng.normal(size=(300, 4)).astype(np.float32), held),
    )
    assert near.value > far.value + 0.3
    assert abs(far.value) < 0.1


def test_gsil_of_many_tiles_measures_a_sample_against_all():
    rng = np.random.default_rng(4)
    vectors, held = rng.normal(size=(80, 3)).astype(np.float32), rng.dirichlet([0.3] * 3, 80)
    every, some = generalised_silhouette(vectors, held), generalised_silhouette(vectors, held, most=30, seed=1)
    assert every.tiles.tolist() == list(range(80))
    assert len(set(some.tiles.tolist())) == 30
    np.testing.assert_allclose(some.values, every.values[some.tiles], rtol=1e-12)
    assert generalised_silhouette(vectors, held, most=30, seed=1).value == some.value


def test_gsil_of_one_and_the_same_vector_is_0():
    held = np.random.default_rng(5).dirichlet([0.3] * 3, 9)
    assert generalised_silhouette(np.ones((9, 2), np.float32), held).value == 0


def test_summed_error_knows_no_scale():
    held = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0, 1]])
    predicted = np.array([[3, 3, 0], [0, 2, 0], [0, 0, 0]])
    assert summed_error(predicted.astype(float), held).tolist() == [0, 2, 1]
