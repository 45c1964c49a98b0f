"""Kinds without lists or graph, which compare every vector: exact, in 8 bits a dimension, or by the signs alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import faiss
import numpy as np

from rayjobs.retrieval.kinds.codes import BinaryFlat, bits_of, signs
from rayjobs.retrieval.kinds.kind import (
    LAST_BITS,
    SPARE,
    BoolArray,
    Effort,
    Exact,
    Found,
    Refined,
    Rows,
    Vectors,
    check_shape,
    products,
    ranked,
    refuse_unless,
    selector_of,
)

_BYTE_NS = 0.1
"""A core reads about 10 GB a second."""
_REFINE_NS = 0.7
"""Per dimension: fetching and comparing one exact vector."""


class Flat(Exact):
    """The vectors as they are, in float32."""

    name: ClassVar[str] = "flat"

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Return an empty index."""
        del rows
        return faiss.IndexFlatIP(sample.shape[1])

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check type and length."""
        check_shape(index, faiss.IndexFlatIP, dimension, rows)
        refuse_unless(index.codes.size() == 4 * dimension * rows, "its vectors are cut short")

    def bytes_per_vector(self, dimension: int) -> float:
        """Return 4 bytes a dimension."""
        return 4 * dimension

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count bytes read."""
        del effort, count
        return float(_BYTE_NS * 4 * index.d * index.ntotal)

    def nearest(self, index: Any, queries: Vectors, count: int, chosen: BoolArray | None) -> Found:
        """Compare by inner product."""
        there = None if chosen is None else np.flatnonzero(chosen)
        available = index.ntotal if there is None else len(there)
        parameters = None if there is None else faiss.SearchParameters(sel=faiss.IDSelectorArray(there))
        _, rows = index.search(queries, min(count + SPARE, available), params=parameters)
        scores, rows = ranked(inner_products(queries, index, rows), rows)
        if rows.shape[1] < available:
            for number in np.flatnonzero(scores[:, count - 1] - scores[:, -1] < LAST_BITS):  # the tie may go on
                scores[number, :count], rows[number, :count] = _above(index, queries[number], scores[number, count - 1], count, chosen)
        return scores[:, :count], rows[:, :count]

    def vectors_of(self, index: Any, rows: Rows, dimension: int) -> Vectors:
        """Return them as they are."""
        del dimension
        vectors: Vectors = index.reconstruct_batch(rows)
        return vectors


def _above(index: Any, query: Vectors, score: np.float32, count: int, chosen: BoolArray | None) -> Found:
    """Return the first `count` of all rows that score at least `score`, of which there are as many or more: (count,) both."""
    parameters = None if chosen is None else faiss.SearchParameters(sel=selector_of(chosen))
    _, _, rows = index.range_search(query[None], float(score) - LAST_BITS, params=parameters)
    scores, rows = ranked(inner_products(query[None], index, rows[None]), rows[None])
    return scores[0, :count], rows[0, :count]


def inner_products(queries: Vectors, index: Any, rows: Rows) -> Vectors:
    """Return (q, n) products of queries with rows of an IndexFlatIP; see `products`."""
    return products(queries, index.get_xb(), rows)


class Sq8(Refined):
    """Each dimension in 8 bits between its least and greatest value, ranked again exactly: a quarter of the bytes."""

    name: ClassVar[str] = "sq8"
    trains: ClassVar[bool] = True
    factors: ClassVar[tuple[int | None, ...]] = (1, 2, 3, 4, 8, 16)

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Learn the range of each dimension."""
        del rows
        index = faiss.IndexScalarQuantizer(sample.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(sample))
        return index

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check the quantiser's shape and the codes' length."""
        check_shape(index, faiss.IndexScalarQuantizer, dimension, rows)
        sq = index.sq
        refuse_unless(sq.qtype == faiss.ScalarQuantizer.QT_8bit and sq.d == dimension, "its codes are not of 8 bits")
        refuse_unless(sq.trained.size() == 2 * dimension, "its ranges are cut short")
        refuse_unless(index.code_size == sq.code_size == dimension, "its codes have another length")
        refuse_unless(index.codes.size() == dimension * rows, "its codes are cut short")

    def bytes_per_vector(self, dimension: int) -> float:
        """Return a byte a dimension."""
        return dimension

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count bytes read, and exact vectors."""
        return float(index.d * (2 * _BYTE_NS * index.ntotal + _REFINE_NS * count * (effort.k_factor or 1)))


class Binary(BinaryFlat, Refined):
    """The sign of each dimension, compared by Hamming distance, ranked again exactly: for embeddings whose signs tell much."""

    name: ClassVar[str] = "binary"
    factors: ClassVar[tuple[int | None, ...]] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

    def filled(self, quantiser: Any, vectors: Vectors) -> Any:
        """Add the signs of (n, dim) vectors."""
        del quantiser
        index = faiss.IndexBinaryFlat(bits_of(vectors.shape[1]))
        index.add(signs(vectors))
        return index

    def attached(self, index: Any, exact: Any) -> Any:
        """Join bits and exact vectors."""
        return _Rescored(bits=index, exact=exact)

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count bytes read, and exact vectors."""
        return float(index.d * (_BYTE_NS / 8 * index.ntotal + _REFINE_NS * count * (effort.k_factor or 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rescored:
    """Sign bits and exact vectors behind FAISS's search, as IndexRefine is for codes: that one takes no binary index."""

    bits: Any
    exact: Any

    def search(self, queries: Vectors, count: int, *, params: Any) -> tuple[Vectors, Rows]:
        """Return scores and rows (q, count) of the candidates nearest by signs, ranked by inner product."""
        asked = max(count, min(int(count * params.k_factor), self.bits.ntotal))
        _, rows = self.bits.search(signs(queries), asked, params=params.base_index_params)
        rows = rows.astype(np.int64)
        scores = inner_products(queries, self.exact, rows)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
