"""Projection onto principal directions. The oracle is numpy's singular value decomposition."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval.kinds import KINDS
from rayjobs.retrieval.kinds.projection import principal

DIM = 32


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def of_rank(rank, count=2000, noise=0.0, seed=0):
    """Vectors far from the origin that vary in so many directions."""
    rng = np.random.default_rng(seed)
    return unit(
        (2 + rng.normal(size=(count, rank))) @ np.random.default_rng(9).normal(size=(rank, DIM)) + noise * rng.normal(size=(count, DIM))
    )


def matrix_of(transform):
    return faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)


def test_the_directions_are_the_first_singular_ones_of_the_vectors_as_they_are():
    sample = of_rank(6, noise=0.2)
    _, singular, right = np.linalg.svd(sample.astype(np.float64), full_matrices=False)
    held = np.cumsum(singular**2) / (singular**2).sum()
    matrix = matrix_of(principal(sample)).astype(np.float64)
    kept = len(matrix)
    assert kept % 4 == 0
    assert held[kept - 1] >= 0.99 > held[kept - 5]
    np.testing.assert_allclose(matrix.T @ matrix, right[:kept].T @ right[:kept], atol=1e-6)


def test_inner_products_last():
    sample, others = of_rank(7), of_rank(7, count=40, seed=1)
    transform = principal(sample)
    short = transform.apply(others)
    assert short.shape == (40, 8)
    np.testing.assert_allclose(short @ short.T, others @ others.T, atol=1e-5)


def test_at_most_half_of_the_numbers_are_kept():
    assert principal(of_rank(14, noise=0.6)).d_out == DIM // 2


@pytest.mark.parametrize(
    "sample", [unit(np.random.default_rng(0).normal(size=(2000, DIM))), of_rank(3, count=DIM), np.ones((50, 1), np.float32)]
)
def test_vectors_that_vary_alike_or_are_few_are_left_as_they_are(sample):
    np.testing.assert_array_equal(matrix_of(principal(sample)), np.eye(sample.shape[1]))


def test_codes_are_of_the_directions_that_are_kept():
    kind, sample = KINDS["ivf_pq"], of_rank(6, noise=0.05)
    few, all_of_them = kind.trained(sample), kind.trained(unit(np.random.default_rng(0).normal(size=(2000, DIM))))
    for index, numbers, subspaces in ((few, 8, 8), (all_of_them, DIM, DIM // 2)):
        lists = kind.lists(index)
        assert (lists.d, lists.pq.M) == (numbers, subspaces)


def twice(index):
    rotation = faiss.RandomRotationMatrix(DIM, DIM)
    rotation.init(0)
    rotation.this.disown()  # the index frees it
    index.prepend_transform(rotation)


def moved(index):
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    transform.have_bias = True
    faiss.copy_array_to_vector(np.ones(8, np.float32), transform.b)


def cut_short(index):
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    faiss.copy_array_to_vector(np.ones(5, np.float32), transform.A)


def wider(index):
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    transform.d_out = 16
    faiss.copy_array_to_vector(np.ones(16 * DIM, np.float32), transform.A)


def of_wider_vectors(index):
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    transform.d_in = 2 * DIM
    faiss.copy_array_to_vector(np.ones(16 * DIM, np.float32), transform.A)


@pytest.mark.parametrize("change", [twice, moved, cut_short, wider, of_wider_vectors])
def test_a_projection_that_leads_out_of_its_vectors_is_refused(change):
    kind, sample = KINDS["ivf_pq"], of_rank(6, noise=0.05)
    index = kind.filled(kind.trained(sample), sample)
    kind.check(index, DIM, len(sample))
    change(index)
    with pytest.raises(IndexCorruptError, match=r"projection|more than once"):
        kind.check(index, DIM, len(sample))
