"""Kinds for vectors that are codes, each number +1/sqrt(dim) or -1/sqrt(dim): one bit a number is all that is kept of them.

The inner product of two codes is 1 - 2 h / dim, with h their Hamming distance: the bits in which they differ. A query that is no code, such
as the mean of several, has an inner product with each code all the same: it is summed up over the bytes of the code out of tables of the
products with all 256 signs of 8 numbers, which is FAISS's search of product codes (Jégou, Douze, Schmid 2011) with a given code book.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import faiss
import numpy as np

from rayjobs.retrieval.kinds.kind import (
    LAST_BITS,
    SPARE,
    BoolArray,
    Effort,
    Exact,
    Found,
    Kind,
    Rows,
    Vectors,
    ladder,
    products,
    ranked,
    refuse_unless,
    selector_of,
)
from rayjobs.retrieval.kinds.lists import ID_BYTES, ITERATIONS, LIST_NS, SEED, check_lists, lists_of, on_all_gpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Bits = np.ndarray[Any, np.dtype[np.uint8]]
"""(n, bytes) uint8: bit 7 of byte 0 is the first number's, 1 where it is positive; what fills up the last byte is 0."""
Distances = np.ndarray[Any, np.dtype[np.int32]]
Answer = tuple[Vectors, Rows, Vectors]
"""Scores and rows (q, asked), best first; and (q,) the score above which nothing is missing, -inf where nothing more is to be had."""

_NEAR = 1e-5
"""Share by which a number may differ from those of a code."""
_FEW = 0.05
"""Share of the codes up to which those that may be found are copied."""
_MORE = 1.5
"""Hits asked for where a share of the codes may be found, over those that hold as many on average."""
_DEEPEST = 1024
"""Hits up to which keeping more of them takes less time than asking of each code whether it may be found."""
_SPARE_PRODUCTS = 1000
"""As `SPARE`, where many ties are likely, and where hits cost little beside the tables."""
_TOGETHER = 2**17
"""Hits that are looked through together, of one query or of several."""
_DEEPER = 8
_CODE_NS = 0.06
"""Per byte of a code: comparing it, a million or more in a row."""


def are_codes(vectors: Vectors) -> BoolArray:
    """Tell which of (n, dim) vectors are codes: every number is +1/sqrt(dim) or -1/sqrt(dim), but for its last bits."""
    sizes = np.abs(vectors)
    unit = 1 / np.sqrt(vectors.shape[1])
    codes: BoolArray = (sizes.max(axis=1) < unit * (1 + _NEAR)) & (sizes.min(axis=1) > unit * (1 - _NEAR))
    return codes


def least_cosine(vectors: Vectors, least: float) -> float:
    """Return the least cosine of (n, dim) vectors to those of the same tiles embedded anew, elsewhere; `least` of what are no codes.

    A number that is nearly 0 before its sign is taken has another sign on another device: one bit in twenty may differ, and one at least.
    """
    dimension = vectors.shape[1]
    between = max(1, dimension // 20) + 0.5  # of those that may differ and one more
    return 1 - 2 * between / dimension if are_codes(vectors).all() else least


def signs(vectors: Vectors) -> Bits:
    """Return which numbers of (n, dim) vectors are positive, packed."""
    return np.packbits(vectors > 0, axis=1)


def bits_of(dimension: int) -> int:
    """Return the bits of a code of so many numbers, filled up to whole bytes."""
    return -(-dimension // 8) * 8


def check_bits(index: Any, dimension: int, rows: int) -> None:
    """Refuse all but an IndexBinaryFlat of so many codes, all of them there. Raises `IndexCorruptError`."""
    refuse_unless(type(index) is faiss.IndexBinaryFlat, f"it is a {type(index).__name__}, not an IndexBinaryFlat")
    check_codes(index, dimension, rows)
    refuse_unless(index.xb.size() == index.code_size * rows, "its codes are cut short")


def check_codes(index: Any, dimension: int, rows: int) -> None:
    """Refuse a binary FAISS index of another number of codes, or of codes of another length. Raises `IndexCorruptError`."""
    refuse_unless(
        index.d == bits_of(dimension) and index.ntotal == rows,
        f"it holds {index.ntotal} codes of {index.d} bits, not the {rows} of {bits_of(dimension)} of its manifest",
    )
    refuse_unless(index.code_size == index.d // 8, "its codes have another length")


class BinaryFile(Kind):
    """A kind whose file is one of FAISS's binary indexes."""

    def _serialised(self, index: Any) -> bytes:
        return bytes(faiss.serialize_index_binary(index))

    def _deserialised(self, data: Bits) -> Any:
        return faiss.deserialize_index_binary(data)

    def _mapped(self, path: Path) -> Any:
        return faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC)


class BinaryFlat(BinaryFile):
    """A kind whose file is one bit of each number of each vector, one after the other."""

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Return an empty index of as many bits as numbers, filled up to whole bytes."""
        del rows
        return faiss.IndexBinaryFlat(bits_of(sample.shape[1]))

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check type and length."""
        check_bits(index, dimension, rows)

    def bytes_per_vector(self, dimension: int) -> float:
        """Return a bit a number."""
        return bits_of(dimension) / 8


class Hamming(BinaryFlat, Exact):
    """Codes, one bit a number and nothing beside: exact, by Hamming distance. Queries that are no codes by inner product."""

    name: ClassVar[str] = "hamming"
    store: ClassVar[str] = "hamming"

    def filled(self, quantiser: Any, vectors: Vectors) -> Any:
        """Add the bits of (n, dim) codes. Raises `ValueError` where they are none."""
        del quantiser
        index = faiss.IndexBinaryFlat(bits_of(vectors.shape[1]))
        index.add(_packed(vectors))
        return index

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count bytes compared."""
        del effort, count
        return float(_CODE_NS * index.code_size * index.ntotal)

    def nearest(self, index: Any, queries: Vectors, count: int, chosen: BoolArray | None) -> Found:
        """Compare codes by Hamming distance, and other queries by inner product."""
        coded = are_codes(queries)
        if coded.all():
            return _by_distance(index, queries, count, chosen)
        scores, rows = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
        for part, compared in ((coded, _by_distance), (~coded, self._by_product)):
            if part.any():
                scores[part], rows[part] = compared(index, queries[part], count, chosen)
        return scores, rows

    def vectors_of(self, index: Any, rows: Rows, dimension: int) -> Vectors:
        """Unpack codes."""
        positive = np.unpackbits(_view(index)[rows], axis=1, count=dimension).astype(bool)
        return np.where(positive, _unit(dimension), -_unit(dimension))

    def _by_product(self, index: Any, queries: Vectors, count: int, chosen: BoolArray | None) -> Found:
        dimension = queries.shape[1]
        there = None if chosen is None else np.flatnonzero(chosen)
        tables = _tables(index, dimension, there)
        filled = np.pad(queries, ((0, 0), (0, index.d - dimension)))

        def search(numbers: Rows, asked: int) -> Answer:
            estimates, rows = tables.search(filled[numbers], asked)
            rows = rows if there is None else there[rows]
            distinct, places = np.unique(rows, return_inverse=True)
            vectors = self.vectors_of(index, distinct, dimension)
            scores = products(queries[numbers], faiss.swig_ptr(vectors), places.reshape(rows.shape))
            floor = np.full(len(numbers), -np.inf) if asked == tables.ntotal else estimates[:, -1]
            return *ranked(scores, rows), floor

        return _settled(search, len(queries), count, most=tables.ntotal, spare=_SPARE_PRODUCTS)


def _packed(vectors: Vectors) -> Bits:
    """Return codes packed. Raises `ValueError` where a vector is none."""
    if not are_codes(vectors).all():
        raise ValueError("vectors are no codes: not every number is +1/sqrt(dim) or -1/sqrt(dim); choose another kind of index")
    return signs(vectors)


def _unit(dimension: int) -> np.float32:
    return np.float32(1 / np.sqrt(dimension))


def _view(index: Any) -> Bits:
    """Return the codes of an IndexBinaryFlat where they lie: not to be used when the index is gone."""
    codes: Bits = faiss.rev_swig_ptr(index.xb.data(), index.xb.size()).reshape(index.ntotal, index.code_size)
    return codes


def _by_distance(index: Any, queries: Vectors, count: int, chosen: BoolArray | None) -> Found:
    """Compare bits."""
    distances, rows = _nearest_bits(index, signs(queries), count, chosen)
    return _scores(distances, queries.shape[1]), rows


def _nearest_bits(index: Any, asked: Bits, count: int, chosen: BoolArray | None) -> tuple[Distances, Rows]:
    """Return distances and rows (q, count). Of equal distances FAISS keeps the lowest rows, in order, which the tests hold.

    FAISS asks a selector for each code, which takes longer than comparing it. So of few codes a copy is searched, and of many all, for some
    more than are wanted: mostly enough of those may be found.
    """
    if chosen is None:
        distances, rows = faiss.knn_hamming(asked, _view(index), count)
        return distances, rows
    share = np.count_nonzero(chosen) / len(chosen)
    if share <= _FEW:
        there = np.flatnonzero(chosen)
        distances, rows = faiss.knn_hamming(asked, _view(index)[there], count)
        return distances, there[rows]
    deeper = min(int(_MORE * count / share) + SPARE, len(chosen))
    if deeper > _DEEPEST:
        return _passing(index, asked, count, chosen)
    distances, rows = faiss.knn_hamming(asked, _view(index), deeper)
    passes = chosen[rows]
    first = np.argsort(~passes, axis=1, kind="stable")[:, :count]
    distances, rows = np.take_along_axis(distances, first, axis=1), np.take_along_axis(rows, first, axis=1)
    short = passes.sum(axis=1) < count
    if short.any():
        distances[short], rows[short] = _passing(index, asked[short], count, chosen)
    return distances, rows


def _passing(index: Any, asked: Bits, count: int, chosen: BoolArray) -> tuple[Distances, Rows]:
    """Have FAISS ask for each code whether it may be found; returns as `_nearest_bits`."""
    distances, rows = index.search(asked, count, params=faiss.SearchParameters(sel=selector_of(chosen)))
    return distances, rows


def _scores(distances: Distances, dimension: int) -> Vectors:
    """Return inner products of codes at Hamming distances."""
    return (1 - 2 * distances.astype(np.float64) / dimension).astype(np.float32)


def _tables(index: Any, dimension: int, there: Rows | None) -> Any:
    """Return the codes of an IndexBinaryFlat, or some of them, as product codes of a byte whose words are the signs of 8 numbers."""
    made = faiss.IndexPQ(index.d, index.code_size, 8, faiss.METRIC_INNER_PRODUCT)
    words = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), _unit(dimension), -_unit(dimension))
    faiss.copy_array_to_vector(np.tile(words.ravel(), index.code_size), made.pq.centroids)
    made.is_trained = True
    if there is None:
        made.codes, made.ntotal = index.xb, index.ntotal  # of a mapped index that is a view, and no copy
    else:
        made.add_sa_codes(_view(index)[there])
    return made


def _settled(search: Callable[[Rows, int], Answer], queries: int, count: int, *, most: int, spare: int = SPARE) -> Found:
    """Return the first `count` hits, ties by row, of a search that cuts ties as they come: it is asked deeper until the tie has ended.

    Args:
        search: takes numbers of queries and how many hits to ask for.
        queries: how many there are.
        count: hits per query.
        most: hits that can be asked for.
        spare: hits asked for at first beyond those wanted.
    """
    scores, rows = np.empty((queries, count), np.float32), np.empty((queries, count), np.int64)
    left, asked = np.arange(queries), min(count + spare, most)
    while len(left):
        tied = np.zeros(queries, np.bool_)
        for part in np.array_split(left, -(-len(left) * asked // _TOGETHER)):
            found, where, floor = search(part, asked)
            scores[part], rows[part] = found[:, :count], where[:, :count]
            tied[part] = (floor > -np.inf) & (found[:, count - 1] < floor + LAST_BITS)
        left, asked = np.flatnonzero(tied), min(_DEEPER * asked, most)
    return scores, rows


class HammingIvf(BinaryFile):
    """Codes in lists about centroids that are codes, too, of which a search opens a few (FAISS's IndexBinaryIVF).

    A query that is no code finds nothing here, and is compared with every code (`Hamming`) instead.
    """

    name: ClassVar[str] = "hamming_ivf"
    store: ClassVar[str] = "hamming"
    trains: ClassVar[bool] = True

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Cluster the sample."""
        bits, lists = _packed(sample), lists_of(sample, rows)
        centroids = faiss.IndexBinaryFlat(bits_of(sample.shape[1]))
        index = faiss.IndexBinaryIVF(centroids, centroids.d, lists)
        index.own_fields = True
        centroids.this.disown()
        clustering = index.cp
        clustering.seed, clustering.niter, clustering.min_points_per_centroid = SEED, ITERATIONS, 1
        on_gpus = on_all_gpus(faiss.IndexFlatL2(centroids.d))
        index.clustering_index = on_gpus
        index.train(bits)
        index.clustering_index = None
        return index

    def filled(self, quantiser: Any, vectors: Vectors) -> Any:
        """Put the bits of (n, dim) codes into lists. Raises `ValueError` where they are none."""
        index = faiss.clone_binary_index(quantiser)
        index.add(_packed(vectors))
        return index

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check type, centroids, and that the lists hold each row once."""
        refuse_unless(type(index) is faiss.IndexBinaryIVF, f"it is a {type(index).__name__}, not an IndexBinaryIVF")
        check_codes(index, dimension, rows)
        refuse_unless(index.is_trained and index.nlist >= 1, "it has no lists")
        check_bits(faiss.downcast_IndexBinary(index.quantizer), dimension, index.nlist)
        check_lists(index, rows)

    def lists(self, index: Any) -> Any:
        """Return the inverted file."""
        return index

    def attached(self, index: Any, exact: Any) -> Any:
        """Return the lists, which hold the codes themselves."""
        del exact
        return _Listed(lists=index)

    def parameters(self, effort: Effort, selector: Any = None) -> Any:
        """Return how many lists to open, and which rows may be found."""
        return _Probing(nprobe=effort.nprobe or 1, selector=selector)

    def bytes_per_vector(self, dimension: int) -> float:
        """Return code and id."""
        return bits_of(dimension) / 8 + ID_BYTES

    def efforts(self, index: Any) -> list[list[Effort]]:
        """Return a ladder of lists to open."""
        return [[Effort(nprobe=nprobe) for nprobe in ladder(1, index.nlist)]]

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count centroids and codes compared."""
        del count
        probed = LIST_NS + _CODE_NS * index.code_size * int(index.ntotal) / index.nlist
        return float(_CODE_NS * index.code_size * index.nlist + probed * min(effort.nprobe or 1, index.nlist))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probing:
    """How lists of codes are searched."""

    nprobe: int
    selector: Any
    """IDSelectorBitmap of the rows that may be found; None for all."""

    def passes(self, rows: Rows) -> BoolArray:
        """Tell which of some rows, -1 for none, may be found."""
        there: BoolArray = rows >= 0
        if self.selector is not None:
            bitmap = faiss.rev_swig_ptr(self.selector.bitmap, self.selector.n)
            there &= (bitmap[rows >> 3] >> (rows & 7) & 1).astype(bool)
        return there


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """An IndexBinaryIVF behind FAISS's search of float vectors, with the filter that it lacks and ties by row."""

    lists: Any

    def search(self, queries: Vectors, count: int, *, params: _Probing) -> Found:
        """Return scores and rows (q, count) of the nearest in the lists that are opened; -inf and -1 for queries that are no codes."""
        scores, rows = np.full((len(queries), count), -np.inf, np.float32), np.full((len(queries), count), -1, np.int64)
        coded = np.flatnonzero(are_codes(queries))
        bits, opened = signs(queries[coded]), faiss.SearchParametersIVF(nprobe=params.nprobe)

        def search(numbers: Rows, asked: int) -> Answer:
            distances, found = self.lists.search(bits[numbers], asked, params=opened)
            said = np.where(found < 0, np.float32(-np.inf), _scores(distances, queries.shape[1]))
            floor = np.full(len(numbers), -np.inf) if asked == self.lists.ntotal else said[:, -1].copy()
            passes = params.passes(found)
            return *ranked(np.where(passes, said, np.float32(-np.inf)), np.where(passes, found, -1)), floor

        scores[coded], rows[coded] = _settled(search, len(coded), count, most=self.lists.ntotal)
        return scores, rows
