"""Inverted files: vectors in lists about centroids, of which a search opens a few. Whole vectors, product codes or RaBitQ bits."""

from __future__ import annotations

import abc
import functools
import math
from typing import TYPE_CHECKING, Any, ClassVar

import faiss
import numpy as np

from rayjobs.retrieval.kinds.kind import Effort, Refined, Vectors, check_shape, ladder, refuse_unless
from rayjobs.retrieval.kinds.projection import check_projection, principal

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 1234
ITERATIONS = 10
"""Rounds of k-means; further ones move centroids of embeddings hardly."""
_LISTS_PER_ROOT = 4
"""Lists per square root of the rows: 4,000 for a million, as FAISS's guidelines have it."""
_LEAST_PER_LIST = 39
"""Vectors that k-means wants per centroid (FAISS's own least)."""
_SAMPLE_PER_LIST = 64
_LEAST_SAMPLE = 10_000
ID_BYTES = 8
_CENTROID_NS = 0.04
"""Per dimension: comparing a centroid, many queries at once."""
LIST_NS = 800
"""Per list: opening it."""
_CANDIDATE_NS, _REFINE_NS = 120, 1.9
"""Per candidate: keeping it, and, per dimension, fetching and comparing its exact vector. Measured on a million vectors."""
_PQ_BITS = 4
_CODE_BOOK = 1 << _PQ_BITS
_PQ_BLOCK = 32
"""Codes that are compared together."""


def lists_for(rows: int) -> int:
    """Return the number of lists for a segment of so many rows."""
    return max(1, min(round(_LISTS_PER_ROOT * math.sqrt(rows)), rows // _LEAST_PER_LIST))


def sample_size(rows: int) -> int:
    """Return how many vectors to train lists for a segment of so many rows on."""
    return max(_LEAST_SAMPLE, _SAMPLE_PER_LIST * lists_for(rows))


class _Lists(Refined):
    """What inverted files have in common."""

    trains: ClassVar[bool] = True
    made: ClassVar[type]
    factors: ClassVar[tuple[int | None, ...]] = (12, 10, 8, 16, 4, 6, 2, 3, 5, 7, 9, 11, 13, 14, 18, 20, 24, 28, 32, 40, 48, 64, 96, 128)
    """Likely ones first: what these cost spares trying dearer ones."""

    @abc.abstractmethod
    def check_codes(self, index: Any) -> None:
        """Refuse a codec that does not fit the index's dimension and its codes."""

    @abc.abstractmethod
    def code_bytes(self, dimension: int) -> int:
        """Return the bytes of one vector's code."""

    @abc.abstractmethod
    def scan_ns(self, lists: Any) -> float:
        """Return about how long comparing one code of an inverted file takes, nanoseconds."""

    def lists(self, index: Any) -> Any:
        """Return the inverted file within an index."""
        return index

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check type, centroids, codec, and that the lists hold each row once."""
        check_shape(index, self.made, dimension, rows)
        centroids = faiss.downcast_index(index.quantizer)
        refuse_unless(index.nlist >= 1, "it has no lists")
        check_shape(centroids, faiss.IndexFlatIP, dimension, index.nlist)
        refuse_unless(centroids.codes.size() == 4 * dimension * index.nlist, "its centroids are cut short")
        self.check_codes(index)
        check_lists(index, rows)

    def candidates(self, effort: Effort, selector: Any) -> Any:
        """Return how many lists to open; a projection in front of them hands that on."""
        return faiss.SearchParametersIVF(nprobe=effort.nprobe or 1, sel=selector)

    def bytes_per_vector(self, dimension: int) -> float:
        """Return code and id."""
        return self.code_bytes(dimension) + ID_BYTES

    def efforts(self, index: Any) -> list[list[Effort]]:
        """Return a ladder of lists to open, for each factor of candidates."""
        return [[Effort(nprobe=nprobe, k_factor=factor) for nprobe in ladder(1, self.lists(index).nlist)] for factor in self.factors]

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count centroids, codes and exact vectors compared."""
        lists = self.lists(index)
        probed = LIST_NS + self.scan_ns(lists) * int(index.ntotal) / lists.nlist
        candidate = _CANDIDATE_NS + _REFINE_NS * index.d
        centroids = _CENTROID_NS * lists.d * lists.nlist
        return float(centroids + probed * min(effort.nprobe or 1, lists.nlist) + candidate * (effort.k_factor or 0) * count)


class IvfFlat(_Lists):
    """Whole vectors in lists: no loss but by lists that are not opened, nothing to rank again; as large as the vectors."""

    name: ClassVar[str] = "ivf_flat"
    made: ClassVar[type] = faiss.IndexIVFFlat
    factors: ClassVar[tuple[int | None, ...]] = (None,)

    def attached(self, index: Any, exact: Any) -> Any:
        """Return the index alone."""
        del exact
        return index

    def parameters(self, effort: Effort, selector: Any = None) -> Any:
        """Return how many lists to open."""
        return self.candidates(effort, selector)

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Cluster the sample."""
        return _clustered(sample, rows, faiss.IndexIVFFlat)

    def check_codes(self, index: Any) -> None:
        """Check the length of a code."""
        refuse_unless(index.code_size == 4 * index.d, "its codes are not whole vectors")

    def code_bytes(self, dimension: int) -> int:
        """Return the vector's bytes."""
        return 4 * dimension

    def scan_ns(self, lists: Any) -> float:
        """Return the time that one vector takes to come from memory."""
        return 0.1 * 4 * float(lists.d)


class IvfPq(_Lists):
    """Product codes of 4 bits, compared in registers (FAISS fast-scan; André et al. 2017), ranked again exactly.

    A code is of each of the principal directions (`projection`), or of pairs of numbers where vectors vary in all directions alike.
    """

    name: ClassVar[str] = "ivf_pq"
    made: ClassVar[type] = faiss.IndexIVFPQFastScan

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Find the principal directions, cluster and train codes in them."""
        projection = principal(sample)
        subspaces = projection.d_out if projection.d_out < projection.d_in else _pairs(projection.d_in)
        lists = _clustered(projection.apply(sample), rows, functools.partial(_product_codes, subspaces))
        return faiss.IndexPreTransform(projection, lists)

    def lists(self, index: Any) -> Any:
        """Return what is behind the projection."""
        return faiss.downcast_index(index.index)

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check the projection, and what is behind it as of all inverted files."""
        check_shape(index, faiss.IndexPreTransform, dimension, rows)
        check_projection(index, dimension)
        lists = self.lists(index)
        super().check(lists, lists.d, rows)

    def check_codes(self, index: Any) -> None:
        """Check the shape of the code book."""
        pq = index.pq
        refuse_unless(pq.d == index.d and pq.M in {pq.d, _pairs(pq.d)} and pq.nbits == _PQ_BITS, "its product code has another shape")
        refuse_unless(pq.centroids.size() == pq.d * _CODE_BOOK and pq.dsub * pq.M == pq.d, "its code book is cut short")
        refuse_unless((index.M, index.M2, index.bbs) == (pq.M, pq.M + pq.M % 2, _PQ_BLOCK), "its blocks have another shape")
        refuse_unless(type(faiss.downcast_InvertedLists(index.invlists)) is faiss.BlockInvertedLists, "its lists are not in blocks")

    def code_bytes(self, dimension: int) -> int:
        """Return half a byte per pair of numbers, the most that codes take."""
        return -(-_pairs(dimension) // 2)

    def scan_ns(self, lists: Any) -> float:
        """Return the time of a table look-up per subspace, many at once."""
        return 0.1 * float(lists.pq.M)


class IvfRabitq(_Lists):
    """One bit per dimension of what is left beside the centroid (RaBitQ, Gao and Long 2024), ranked again exactly."""

    name: ClassVar[str] = "ivf_rabitq"
    made: ClassVar[type] = faiss.IndexIVFRaBitQ

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Cluster the sample; bits need no training."""
        return _clustered(sample, rows, faiss.IndexIVFRaBitQ)

    def check_codes(self, index: Any) -> None:
        """Check the quantiser's shape."""
        refuse_unless(index.rabitq.d == index.d and index.rabitq.code_size == index.code_size, "its bits have another shape")

    def code_bytes(self, dimension: int) -> int:
        """Return a bit per dimension and the two factors of the estimate."""
        return -(-dimension // 8) + 8

    def scan_ns(self, lists: Any) -> float:
        """Return the time of bitwise products with a query of 8 bits a dimension."""
        return 10 + 0.1 * float(lists.d)


def _clustered(sample: Vectors, rows: int | None, untrained: Callable[[Any, int, int, int], Any]) -> Any:
    """Cluster a sample on the sphere, on a GPU where one is, and train the codec.

    Args:
        sample: (n, dim) float32.
        rows: vectors in the largest segment; None for the sample's.
        untrained: from centroids, their dimension, their number and the metric to an inverted file with default values where they do not
            matter.
    """
    dimension = sample.shape[1]
    lists = lists_of(sample, rows)
    centroids = faiss.IndexFlatIP(dimension)
    index = untrained(centroids, dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.own_fields = True
    centroids.this.disown()
    clustering = index.cp
    clustering.seed, clustering.niter, clustering.spherical = SEED, ITERATIONS, True
    clustering.min_points_per_centroid = 1  # what FAISS would warn of, a small set, is no fault
    on_gpus = on_all_gpus(faiss.IndexFlatIP(dimension))
    index.clustering_index = on_gpus
    index.train(np.resize(sample, (max(len(sample), _CODE_BOOK), dimension)))  # a code book wants as many vectors as it has words
    index.clustering_index = None
    return index


def _product_codes(subspaces: int, centroids: Any, dimension: int, lists: int, metric: int) -> Any:
    """Code what is left beside the centroid: for an inner product that costs a search nothing."""
    index = faiss.IndexIVFPQFastScan(centroids, dimension, lists, subspaces, _PQ_BITS, metric, _PQ_BLOCK)
    index.by_residual = True
    index.pq.cp.seed, index.pq.cp.min_points_per_centroid = SEED, 1
    return index


def _pairs(dimension: int) -> int:
    """Return the number of subspaces of two numbers each, or of one where the number of dimensions is odd."""
    return dimension // 2 if dimension % 2 == 0 else dimension


def lists_of(sample: Vectors, rows: int | None) -> int:
    """Return the number of lists for the largest segment of so many rows, the sample's for None, that a sample is enough to train."""
    return min(lists_for(rows or len(sample)), max(1, len(sample) // _LEAST_PER_LIST))


def on_all_gpus(index: Any) -> Any:
    """Return what k-means searches centroids with: an index on all GPUs, if there are any and FAISS was built for them, else None."""
    gpus = getattr(faiss, "get_num_gpus", int)()
    return faiss.index_cpu_to_all_gpus(index) if gpus else None


def check_lists(index: Any, rows: int) -> None:
    """Refuse lists of another layout, and ids that are not the rows, each once. FAISS itself compares the lengths of codes and ids."""
    lists = faiss.downcast_InvertedLists(index.invlists)
    if type(lists) is faiss.BlockInvertedLists:
        fits = lists.n_per_block == _PQ_BLOCK and lists.block_size == _PQ_BLOCK * index.M2 // 2
    else:
        fits = type(lists) is faiss.ArrayInvertedLists and lists.code_size == index.code_size
    refuse_unless(fits and lists.nlist == index.nlist, "its lists have another layout")
    refuse_unless(sum(map(lists.list_size, range(index.nlist))) == rows, "its lists hold more or fewer vectors than it says")
    seen = np.zeros(rows, bool)
    for number in range(index.nlist):
        if size := lists.list_size(number):
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            refuse_unless(bool(ids.min() >= 0 and ids.max() < rows), "a list leads to a row that does not exist")
            seen[ids] = True
    refuse_unless(bool(seen.all()), "its lists leave rows out")  # and, being as many, hold none twice
