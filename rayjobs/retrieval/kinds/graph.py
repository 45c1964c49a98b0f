"""A graph of near vectors (HNSW, Malkov and Yashunin 2018), walked over the mapped exact vectors, which it does not copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import faiss
import numpy as np

from rayjobs.retrieval.kinds.kind import Effort, Kind, Vectors, check_shape, ladder, refuse_unless

if TYPE_CHECKING:
    from pathlib import Path

_LINKS = 16
_BREADTH = 100
"""Nodes kept in sight while the graph is built."""
_LEAST_EF, _MOST_EF = 10, 4096
_NODE_NS = 1.5
"""Per dimension: fetching and comparing the neighbours of one node."""


class Hnsw(Kind):
    """Fast at high recall and slow to build; the file holds the links alone."""

    name: ClassVar[str] = "hnsw"

    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Return an empty graph."""
        del rows
        index = faiss.IndexHNSWFlat(sample.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BREADTH
        return index

    def filled(self, quantiser: Any, vectors: Vectors) -> Any:
        """Link the vectors. The graph depends on their order, and, where several threads build it, on chance."""
        index = self.trained(vectors)
        del quantiser
        index.add(np.ascontiguousarray(vectors))
        return index

    def _serialised(self, index: Any) -> bytes:
        """Return the links without the vectors."""
        writer = faiss.VectorIOWriter()
        faiss.write_index(index, writer, faiss.IO_FLAG_SKIP_STORAGE)
        return bytes(faiss.vector_to_array(writer.data))

    def _mapped(self, path: Path) -> Any:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_SKIP_STORAGE)

    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Check that every link leads to a row, on a level where that row is."""
        check_shape(index, faiss.IndexHNSWFlat, dimension, rows)
        refuse_unless(index.storage is None or index.ntotal == 0, "it carries vectors of its own")
        _check_graph(index.hnsw, rows)

    def attached(self, index: Any, exact: Any) -> Any:
        """Walk the links over the exact vectors."""
        index.storage, index.own_fields = exact, False
        return index

    def parameters(self, effort: Effort, selector: Any = None) -> Any:
        """Return the breadth of the walk."""
        return faiss.SearchParametersHNSW(efSearch=effort.ef or _LEAST_EF, sel=selector)

    def bytes_per_vector(self, dimension: int) -> float:
        """Return the links of the ground level, those above (one vector in 16 has some), level and offset."""
        del dimension
        return 4 * (2 * _LINKS + 1 + _LINKS / (_LINKS - 1)) + 12

    def efforts(self, index: Any) -> list[list[Effort]]:
        """Return a ladder of breadths."""
        return [[Effort(ef=ef) for ef in ladder(_LEAST_EF, max(_LEAST_EF, min(_MOST_EF, index.ntotal)))]]

    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Count nodes visited."""
        return float(_NODE_NS * index.d * max(effort.ef or 1, count) * _LINKS / 4)


def _check_graph(graph: Any, rows: int) -> None:
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets).astype(np.int64)
    slots = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    refuse_unless(len(levels) == rows and len(offsets) == rows + 1, "it has not one node per vector")
    if not rows:
        return
    refuse_unless(bool(levels.min() >= 1 and levels.max() < len(slots) and (np.diff(slots) >= 0).all()), "a node's level is out of range")
    refuse_unless(offsets[0] == 0 and bool((np.diff(offsets) == slots[levels]).all()), "a node has not the links of its level")
    refuse_unless(graph.neighbors.size() == int(offsets[-1]), "its links are cut short")
    links = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    refuse_unless(bool(links.min() >= -1 and links.max() < rows), "a link leads to a row that does not exist")
    refuse_unless(0 <= graph.entry_point < rows and 0 <= graph.max_level < levels[graph.entry_point], "its entry is out of range")
    for level in range(1, int(graph.max_level) + 1):  # a link above the ground leads to a node that has links there
        nodes = np.flatnonzero(levels > level)
        above = links[offsets[nodes, None] + np.arange(slots[level], slots[level + 1])]
        refuse_unless(bool((levels[above[above >= 0]] > level).all()), "a link leads to a level that its node has not")
