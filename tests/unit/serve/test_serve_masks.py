"""Masks come out as they went in, and are short where few rows are in or out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.serve.masks import packed, unpacked


@settings(deadline=None)
@given(size=st.integers(1, 500), share=st.sampled_from([0.0, 0.005, 0.5, 0.995, 1.0]), seed=st.integers(0, 10**6))
def test_a_mask_comes_out_as_it_went_in(size, share, seed):
    mask = np.random.default_rng(seed).random(size) < share
    found = unpacked(packed(mask))
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (1e-4, 200), (0.5, 12_500), (1 - 1e-4, 200), (1.0, 0)])
def test_a_mask_is_short(share, most):
    mask = np.zeros(100_000, bool)
    mask[: round(share * len(mask))] = True
    assert packed(mask).numbers.nbytes <= most
