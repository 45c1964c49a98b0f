"""Exact rankings of a gallery, a block of queries at a time and only as deep as asked, so that memory stays bounded. Knows no relevance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rayjobs.errors import RetrievalError
from rayjobs.retrieval.kinds.codes import are_codes

if TYPE_CHECKING:
    from collections.abc import Iterator

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]
Distance = Literal["cosine", "euclidean"]

BLOCK_BYTES = 64 * 2**20
"""Most memory that a block of queries may take beside vectors and results; a single query's row is taken even where it needs more."""
CELL_BYTES = 64
"""Memory of one query against one gallery item while it is ranked and measured: similarity, key, masks, gains, and their temporaries."""


class Ranker:
    """Ranks a gallery for a few queries at a time.

    Ties are broken by one random order of the gallery (seeded), never by its own order, which often goes by class or place.
    """

    def __init__(self, queries: Vectors, gallery: Vectors, *, distance: Distance, seed: int = 0) -> None:
        """Take the vectors.

        Args:
            queries: (queries, dim) float32.
            gallery: (gallery, dim) float32; copies of both are held.
            distance: `cosine` of vectors of length 1, or `euclidean`.
            seed: of the order of ties.

        Raises:
            RetrievalError: a vector is not finite.
        """
        if not all(np.isfinite(np.einsum("nd,nd->n", vectors, vectors)).all() for vectors in (queries, gallery)):
            raise RetrievalError(
                "an embedding is not finite, so nothing can be ranked; train the encoder again with a lower train.learning_rate"
            )
        if distance == "cosine" and len(gallery) and are_codes(gallery).all() and are_codes(queries).all():
            queries, gallery = np.sign(queries), np.sign(gallery)  # whole numbers: equal Hamming distances are equal, not nearly so
        self._order = np.random.default_rng(seed).permutation(len(gallery))
        centre = _centre(gallery) if distance == "euclidean" and len(gallery) else np.zeros(1, gallery.dtype)
        self._queries = queries - centre
        self._gallery = np.ascontiguousarray(gallery[self._order]) - centre
        self._distance: Distance = distance

    def ranked(self, rows: IntArray, out: BoolArray, depth: int) -> IntArray:
        """Return (rows, min(depth, gallery)) indices of gallery items, nearest first.

        Args:
            rows: (rows,) indices of queries.
            out: (rows, gallery) True where an item is no candidate of a query; such items come after all candidates.
            depth: how many items, at least 1.
        """
        similarities = similarity(self._queries[rows], self._gallery, self._distance)
        similarities[np.take(out, self._order, axis=1)] = -np.inf
        keys = _descending(similarities).astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= np.arange(len(self._gallery), dtype=np.uint64)
        if depth < keys.shape[1]:
            keys.partition(depth - 1, axis=1)
        places = np.sort(keys[:, :depth], axis=1) & np.uint64(0xFFFF_FFFF)
        return self._order[places.astype(np.int64)]


def similarity(queries: Vectors, gallery: Vectors, distance: Distance) -> Vectors:
    """Return (queries, gallery) float32, higher is nearer: the inner product, or minus the squared distance up to a constant per query."""
    product: Vectors = queries @ gallery.T
    if distance == "cosine":
        return product
    squares: Vectors = np.einsum("nd,nd->n", gallery, gallery)
    return 2 * product - squares[None, :]


def _centre(gallery: Vectors) -> Vectors:
    """Return (dim,) the origin to measure Euclidean distances from, since float32 products are exact only near it.

    A median that occurs, not a mean: codes of whole numbers stay whole, and their many ties stay ties.
    """
    middle: Vectors = np.quantile(gallery, 0.5, axis=0, method="lower").astype(gallery.dtype)
    return middle


def _descending(similarities: Vectors) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return codes that ascend where float32 numbers descend, from their IEEE 754 bits.

    With the place in the gallery below them they become keys without ties, which can be partitioned and sorted at the speed of integers.
    """
    bits = (similarities + np.float32(0)).view(np.int32)  # + 0 makes the two zeros one
    bits ^= (~bits >> 31) & np.int32(0x7FFF_FFFF)  # falling numbers from 0 up have falling bits, those below 0 have rising ones
    return bits.view(np.uint32)


def blocks(count: int, row_bytes: int) -> Iterator[IntArray]:
    """Yield the indices 0 to `count` in runs of as many rows of `row_bytes` as `BLOCK_BYTES` holds, at least one."""
    rows = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, count, rows):
        yield np.arange(start, min(start + rows, count))
