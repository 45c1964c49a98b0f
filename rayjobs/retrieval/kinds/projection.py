"""Projection onto the directions in which vectors vary most, so that codes are spent on those.

Embeddings of 128 numbers mostly vary in far fewer directions. Codes of those alone are finer at the same length, and centroids are compared
in less time: transform coding (Brandt, Transform coding for fast approximate nearest neighbor search in high dimensions, CVPR 2010).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from rayjobs.retrieval.kinds.kind import Vectors, refuse_unless

_HELD = 0.99
"""Share of the vectors' energy (mean square) that the kept directions hold: what they lose is then below what codes of 4 bits lose."""
_HELD_BY_HALF = 0.95
"""Where half as many directions hold less, codes of pairs of all numbers lose less."""
_STEP = 4
_LEAST_PER_NUMBER = 10
"""Vectors per number from which on a sample shows in which directions others will vary."""


def principal(sample: Vectors) -> Any:
    """Return the projection of (n, dim) vectors onto their principal directions, through the origin, so that inner products last.

    Returns:
        a faiss.LinearTransform from `dim` to at most half as many numbers; to all of them, changing nothing, where half hold too little
        or the sample is too small to tell.
    """
    count, dimension = sample.shape
    if count < _LEAST_PER_NUMBER * dimension:
        return _transform(np.eye(dimension))
    wide = sample.astype(np.float64)
    energy, directions = np.linalg.eigh(wide.T @ wide)
    held = np.cumsum(energy[::-1]) / energy.sum()
    half = dimension // 2
    if not half or held[half - 1] < _HELD_BY_HALF:
        return _transform(np.eye(dimension))
    enough = int(np.searchsorted(held, _HELD)) + 1
    kept = min(-(-enough // _STEP) * _STEP, half)
    return _transform(directions[:, ::-1][:, :kept].T)


def _transform(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    kept, dimension = matrix.shape
    transform = faiss.LinearTransform(dimension, kept, False)  # noqa: FBT003  FAISS takes no keywords: no bias
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def check_projection(index: Any, dimension: int) -> None:
    """Refuse an IndexPreTransform that is anything but one linear projection, of vectors of a dimension, in front of an index.

    Raises:
        IndexCorruptError: see above.
    """
    refuse_unless(index.chain.size() == 1, "vectors are changed more than once before they are searched")
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    refuse_unless(type(transform) is faiss.LinearTransform and transform.is_trained, "its projection is of another type")
    refuse_unless(transform.d_in == dimension and 1 <= transform.d_out <= dimension, "its projection has another shape")
    refuse_unless(not transform.have_bias and transform.b.size() == 0, "its projection moves vectors")
    refuse_unless(transform.A.size() == transform.d_in * transform.d_out, "its projection is cut short")
    refuse_unless(index.index is not None and index.index.d == transform.d_out, "its projection does not fit its lists")
