"""Exact nearest neighbours of a few queries, for pictures and checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayjobs.retrieval.ranking import Distance, Vectors, similarity


def nearest(queries: Vectors, gallery: Vectors, count: int, distance: Distance) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (queries, count) indices of the nearest gallery items, nearest first, ties by index.

    Args:
        queries: (queries, dim) float32.
        gallery: (gallery, dim) float32; all similarities are held at once.
        count: at most the gallery's size.
        distance: `cosine` of vectors of length 1, or `euclidean`.
    """
    order = np.argsort(-similarity(queries, gallery, distance), axis=1, kind="stable")
    return order[:, :count]
