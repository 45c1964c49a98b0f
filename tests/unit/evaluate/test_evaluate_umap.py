from __future__ import annotations

import numpy as np
import pytest

from rayjobs.evaluate import pictures


@pytest.mark.slow  # it compiles
@pytest.mark.skipif(pictures.umap_missing() is not None, reason="UMAP is an extra")
def test_umap_keeps_groups_together_and_is_deterministic():
    rng = np.random.default_rng(3)
    vectors = np.concatenate([rng.normal(size=(20, 6)), rng.normal(size=(20, 6)) + 30]).astype(np.float32)
    found = pictures.project_umap(vectors, 0).points
    assert np.array_equal(found, pictures.project_umap(vectors, 0).points)
    middles = found[:20].mean(0), found[20:].mean(0)
    spread = max(np.linalg.norm(found[:20] - middles[0], axis=1).max(), np.linalg.norm(found[20:] - middles[1], axis=1).max())
    assert np.linalg.norm(middles[0] - middles[1]) > spread
    assert pictures.project_umap(vectors[:6], 0).points.shape == (6, 2)
