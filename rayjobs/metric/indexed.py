"""Rankings of a set too large to compare each tile with every other: a FAISS IVF index, whose cells near an anchor alone are looked into.

The same tiles give the same cells and the same answers, whoever fills the index; `rayjobs.metric.ranking` has the exact form. Memory: the
vectors once more, and 8 bytes for each tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
import torch

from rayjobs.metric.ranking import NOBODY, IntArray, Keys, Scores, packed

_CELLS_PER_ROOT = 2
"""Cells, in multiples of the square root of the number of tiles."""
_LEAST_PROBED = 16
"""Cells that are looked into for an anchor, at least; more where their number has a greater square root."""
_PER_CELL = 64
"""Tiles from which each cell is learned: a sample of the set."""


def number_of_cells(tiles: int) -> int:
    """Return into how many cells so many tiles are sorted."""
    return max(1, min(round(_CELLS_PER_ROOT * math.sqrt(tiles)), tiles))


def learn_cells(vectors: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Return (cells, dim) float32 centres of length 1, by spherical k-means on a sample of the set.

    Args:
        vectors: (tiles, dim) float32 of length 1.
        seed: of the sample and of the first centres.
    """
    cells = number_of_cells(len(vectors))
    sample = np.sort(np.random.default_rng(seed).permutation(len(vectors))[: cells * _PER_CELL])
    method = faiss.Kmeans(
        vectors.shape[1], cells, niter=10, seed=seed, spherical=True, min_points_per_centroid=1, max_points_per_centroid=_PER_CELL
    )
    with _one_thread():
        method.train(vectors[torch.from_numpy(sample)].numpy())
    return torch.from_numpy(np.array(method.centroids, np.float32).reshape(cells, -1))


def cells_of(vectors: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return (tiles,) int64, the cell of each of some tiles: that of the most similar centre."""
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    quantizer.add(centres.numpy())
    with _one_thread():
        _, cells = quantizer.search(vectors.numpy(), 1)
    return torch.from_numpy(cells[:, 0])


class IndexedRanking:
    """Compares each anchor with the tiles of the cells nearest to it, on the processor."""

    def __init__(self, vectors: torch.Tensor, centres: torch.Tensor, cells: torch.Tensor) -> None:
        """Fill the index.

        Args:
            vectors: (tiles, dim) float32 of length 1, finite.
            centres: (cells, dim) of `learn_cells`.
            cells: (tiles,) of `cells_of`.
        """
        self._vectors = np.ascontiguousarray(vectors.numpy())
        self._quantizer = faiss.IndexFlatIP(vectors.shape[1])
        self._quantizer.add(centres.numpy())
        self._index = faiss.IndexIVFFlat(self._quantizer, vectors.shape[1], len(centres), faiss.METRIC_INNER_PRODUCT)
        given = np.ascontiguousarray(cells.numpy())
        self._index.add_core(len(vectors), faiss.swig_ptr(self._vectors), None, faiss.swig_ptr(given))
        self._probes = min(len(centres), max(_LEAST_PROBED, round(math.sqrt(len(centres)))))

    @property
    def described(self) -> str:
        """See `Ranking`."""
        return f"search of {self._probes} in {self._index.nlist:,} cells of an IVF index"

    def most_similar(self, anchors: IntArray, count: int) -> Keys:
        """See `Ranking`."""
        wanted = min(count + 1, len(self._vectors))  # the anchor finds itself
        parameters = faiss.SearchParametersIVF(nprobe=self._probes)
        with _one_thread():
            scores, indices = self._index.search(self._vectors[anchors], wanted, params=parameters)
        keys = _keys(scores, indices, anchors)
        return np.sort(keys, axis=1)[:, :count]


def _keys(scores: Scores, indices: IntArray, anchors: IntArray) -> Keys:
    keys = packed(scores, indices.clip(0))
    keys[(indices < 0) | (indices == anchors[:, None])] = NOBODY
    return keys


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have FAISS work on the calling thread alone: how it shares products among threads may change their last bits."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
