"""Kinds without lists or graph, which compare every vector: exact, in 8 bits a dimension, or by the signs alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import faiss
import numpy as np

from rayjobs.retrieval.kinds.kind import Effort, Kind, Refined, Rows, Vectors, check_shape, refuse_unless

if TYPE_CHECKING:
    from pathlib import Path

_BYTE_NS = 0.1
"""A core reads about 10 GB a second."""
_REFINE_NS = 0.7
"""Per dimension: fetching and comparing one exact vector."""
LAST_BITS = 1e-6
"""Products of matrices, and those of another order of adding, differ by less from what `inner_products` gives for a pair."""


class Flat(Kind):
    """The vectors as they are: exact. Every segment has this, and the kind `flat` nothing else."""

    name: ClassVar[str] = "flat"
    exact: ClassVar[bool] = True

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Return an empty index."""
        del rows
        return faiss.IndexFlatIP(sample.shape[1])

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check type and length."""
        check_shape(index, faiss.IndexFlatIP, dimension, rows)
        refuse_unless(index.codes.size() == 4 * dimension * rows, "its vectors are cut short")

    def attached(self, index: Any, exact: Any) -> Any:
        """Return the exact vectors."""
        del index
        return exact

    def parameters(self, effort: Effort, selector: Any = None) -> Any:
        """Return the selector alone."""
        del effort
        return faiss.SearchParameters(sel=selector)

    def bytes_per_vector(self, dimension: int) -> float:
        """Return 4 bytes a dimension: here the exact vectors are the index."""
        return 4 * dimension

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count bytes read."""
        del effort, count
        return float(_BYTE_NS * 4 * index.d * index.ntotal)


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


class Binary(Refined):
    """The sign of each dimension, compared by Hamming distance, ranked again exactly: for embeddings trained to be hashed."""

    name: ClassVar[str] = "binary"
    factors: ClassVar[tuple[int | None, ...]] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Return an empty index of as many bits as dimensions, filled up to whole bytes."""
        del rows
        return faiss.IndexBinaryFlat(_bits(sample.shape[1]))

    def filled(self, quantiser: Any, vectors: Vectors) -> Any:
        """Add the signs of (n, dim) vectors."""
        del quantiser
        index = faiss.IndexBinaryFlat(_bits(vectors.shape[1]))
        index.add(_signs(vectors))
        return index

    def _serialised(self, index: Any) -> bytes:
        return bytes(faiss.serialize_index_binary(index))

    def _mapped(self, path: Path) -> Any:
        return faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC)

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check type and length."""
        refuse_unless(type(index) is faiss.IndexBinaryFlat, f"it is a {type(index).__name__}, not an IndexBinaryFlat")
        refuse_unless(
            index.d == _bits(dimension) and index.ntotal == rows,
            f"it holds {index.ntotal} codes of {index.d} bits, not the {rows} of {_bits(dimension)} of its manifest",
        )
        refuse_unless(index.code_size == index.d // 8 and index.xb.size() == index.code_size * rows, "its codes are cut short")

    def attached(self, index: Any, exact: Any) -> Any:
        """Join bits and exact vectors."""
        return _Rescored(bits=index, exact=exact)

    def bytes_per_vector(self, dimension: int) -> float:
        """Return a bit a dimension."""
        return _bits(dimension) / 8

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
        _, rows = self.bits.search(_signs(queries), asked, params=params.base_index_params)
        rows = rows.astype(np.int64)
        scores = inner_products(queries, self.exact, rows)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def inner_products(queries: Vectors, exact: Any, rows: Rows) -> Vectors:
    """Return (q, n) float32 products of queries with rows of an IndexFlatIP, by FAISS's kernel for one pair; -inf for row -1.

    A pair has the same product in every batch and at every place, to the last bit, which products of matrices do not promise.
    """
    queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
    found = np.full(rows.shape, -np.inf, np.float32)
    pointers = [faiss.swig_ptr(array) for array in (found, queries)]
    faiss.fvec_inner_products_by_idx(*pointers, exact.get_xb(), faiss.swig_ptr(rows), exact.d, *rows.shape)
    found[rows < 0] = -np.inf
    return found


def _bits(dimension: int) -> int:
    return -(-dimension // 8) * 8


def _signs(vectors: Vectors) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.packbits(vectors > 0, axis=1)
