"""Rankings of a whole set: the tiles most similar to some anchors, exactly.

Memory: the vectors, and for a block of b anchors about b x (12 x 8,192 + 40 x candidates) bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from rayjobs.errors import TrainingError

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Scores = np.ndarray[Any, np.dtype[np.float32]]
Keys = np.ndarray[Any, np.dtype[np.uint64]]
"""Score and index packed into one number, see `packed`."""

NOBODY = np.uint64(2**64 - 1)
"""Key of a place without a tile; greater than any other."""

_GALLERY = 8192
"""Tiles compared with a block at once: as few as numpy compares without copies, whose buffers hold so many."""
_MARKS = 131_072
"""Scores compared with their floor at once: their marks stay in the processor's cache."""
_FIRST_FLOOR = 2048
"""Tiles of which the first floor is taken."""
_GALLERY_GPU = 65_536
"""Likewise on a GPU, where few large products are better."""
_ALIGNED = 64
"""Bytes: a product of vectors that lie otherwise in memory may differ in its last bit."""
_LOW_HALF = np.uint64(2**32 - 1)
_SIGN = np.uint32(2**31)


class Ranking(Protocol):
    """Finds the tiles most similar to some anchors."""

    @property
    def described(self) -> str:
        """How it looks, for the log."""

    def most_similar(self, anchors: IntArray, count: int) -> Keys:
        """Return the most similar tiles of each anchor, never itself.

        Args:
            anchors: (anchors,) indices of tiles, ascending.
            count: how many tiles are wanted of each.

        Returns:
            (anchors, at most count) keys, most similar first, equal similarities by index; `NOBODY` where there are fewer.
        """
        ...


class ExactRanking:
    """Compares each anchor with every tile: blocked matrix products with a running choice of the best."""

    described = "exact search"

    def __init__(self, vectors: torch.Tensor, device: torch.device | None = None) -> None:
        """Take the set.

        Args:
            vectors: (tiles, dim) float32 of length 1, at most 2**32 of them.
            device: where to compare; a GPU holds the vectors once more.

        Raises:
            TrainingError: one is not finite.
        """
        check_finite(vectors)
        self._vectors = _aligned(vectors.to(device or vectors.device).float())

    def most_similar(self, anchors: IntArray, count: int) -> Keys:
        """See `Ranking`."""
        with torch.inference_mode(), one_thread():
            return self._most_similar(anchors, min(count, len(self._vectors)))

    def _most_similar(self, anchors: IntArray, count: int) -> Keys:
        queries = self._vectors[torch.from_numpy(anchors).to(self._vectors.device)]
        size = _GALLERY if queries.device.type == "cpu" else _GALLERY_GPU
        scores = torch.empty(len(anchors) * min(size, len(self._vectors)), device=queries.device)
        best = _Best(len(anchors), count)
        for part in canonical_blocks(len(self._vectors), size):
            compared = scores[: len(anchors) * (part.stop - part.start)].view(len(anchors), -1)
            torch.mm(queries, self._vectors[part].T, out=compared)
            inside = (anchors >= part.start) & (anchors < part.stop)
            compared[np.flatnonzero(inside), anchors[inside] - part.start] = -torch.inf
            best.offer(compared, part.start)
        return best.ranked()


class _Best:
    """The best tiles of some anchors among those offered so far. Few are looked at twice: only such as beat the anchor's floor."""

    def __init__(self, anchors: int, count: int) -> None:
        self._anchors, self._count = anchors, count
        self._floor = np.full(anchors, np.finfo(np.float32).min, np.float32)
        """Of each anchor, a score that `count` tiles reach: what lies below is not among the best."""
        self._chosen: Keys = np.full((anchors, 0), NOBODY)
        self._rivals: list[tuple[IntArray, Keys]] = []
        self._waiting = np.zeros(anchors, np.int64)

    def offer(self, scores: torch.Tensor, first: int) -> None:
        """Look at the scores (anchors, tiles) of the tiles from index `first` on."""
        if not first and self._count < scores.shape[1]:
            some = scores[:, : max(_FIRST_FLOOR, 2 * self._count)]  # a floor of some is a floor of all
            self._floor = np.maximum(self._floor, _nth_score(some, self._count))
        rows, columns, values = _at_least(scores, self._floor)
        self._rivals.append((rows, packed(values, columns + first)))
        self._waiting += np.bincount(rows, minlength=self._anchors)
        if self._waiting.max(initial=0) >= 2 * self._count:
            self._choose()

    def ranked(self) -> Keys:
        """Return the keys of the best (anchors, count), best first."""
        self._choose()
        return np.sort(self._chosen, axis=1)

    def _choose(self) -> None:
        rivals = np.concatenate([self._chosen, self._padded()], axis=1)
        if rivals.shape[1] >= self._count:
            rivals = np.partition(rivals, self._count - 1, axis=1)[:, : self._count]
            _, floor = unpacked(rivals[:, -1])
            full = rivals[:, -1] != NOBODY
            self._floor[full] = floor[full]
        self._chosen, self._rivals, self._waiting = rivals, [], np.zeros(self._anchors, np.int64)

    def _padded(self) -> Keys:
        """Return the keys of the rivals as (anchors, most rivals of one)."""
        padded = np.full((self._anchors, int(self._waiting.max(initial=0))), NOBODY)
        filled = np.zeros(self._anchors, np.int64)
        for rows, keys in self._rivals:  # rows ascend within a part
            counts = np.bincount(rows, minlength=self._anchors)
            padded[rows, np.arange(len(rows)) + (filled - counts.cumsum() + counts)[rows]] = keys
            filled += counts
        return padded


def _nth_score(scores: torch.Tensor, nth: int) -> Scores:
    """Return the nth greatest score of each row."""
    if scores.device.type == "cpu":
        found: Scores = np.partition(scores.numpy(), -nth, axis=1)[:, -nth]
        return found
    on_device: Scores = torch.topk(scores, nth, dim=1).values[:, -1].cpu().numpy()
    return on_device


def _at_least(scores: torch.Tensor, floor: Scores) -> tuple[IntArray, IntArray, Scores]:
    """Return row, column and score of all that reach the floor of their row, row by row."""
    if scores.device.type == "cpu":
        values = scores.numpy()
        places = _places_at_least(values, floor)
        rows = places // values.shape[1]  # much faster than np.divmod
        return rows, places - rows * values.shape[1], values.ravel()[places]
    row, column = torch.nonzero(scores >= torch.from_numpy(floor).to(scores.device)[:, None], as_tuple=True)
    return row.cpu().numpy(), column.cpu().numpy(), scores[row, column].cpu().numpy()


def _places_at_least(values: Scores, floor: Scores) -> IntArray:
    """Return the flat places of all that reach the floor of their row; some rows at a time, whose marks stay in the cache."""
    rows = max(1, _MARKS // values.shape[1])
    marks = np.empty((rows, values.shape[1]), bool)
    found = []
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        np.greater_equal(part, floor[start : start + rows, None], out=marks[: len(part)])
        found.append(np.flatnonzero(marks[: len(part)]) + start * values.shape[1])
    return np.concatenate(found)


def canonical_blocks(count: int, size: int) -> list[slice]:
    """Cut `count` tiles into consecutive blocks of `size`, the last one shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def check_finite(vectors: torch.Tensor) -> None:
    """Check a set before it is ranked.

    Raises:
        TrainingError: a vector is not finite.
    """
    parts = canonical_blocks(len(vectors), _GALLERY_GPU)  # since what is looked at is copied
    if not all(bool(torch.isfinite(vectors[part]).all()) for part in parts):
        raise TrainingError(
            "an embedding is not finite, so there is nothing to mine; lower train.learning_rate, or set train.precision: fp32, in a new run"
        )


def packed(scores: Scores, indices: IntArray) -> Keys:
    """Pack score and index into one number whose order is: greater score first, equal scores by index."""
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum makes -0.0 equal 0.0
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    keys: Keys = ((~ascending).astype(np.uint64) << np.uint64(32)) | indices.astype(np.uint64)
    return keys


def unpacked(keys: Keys) -> tuple[IntArray, Scores]:
    """Return the indices and the scores of keys."""
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ascending & _SIGN, ascending & ~_SIGN, ~ascending)
    return (keys & _LOW_HALF).astype(np.int64), bits.view(np.float32)


def _aligned(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors as they lie in memory on every worker."""
    vectors = vectors.detach().contiguous()
    return vectors if vectors.data_ptr() % _ALIGNED == 0 else vectors.clone()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, in full float32: how a product is shared among threads may change its last bit, and with it the table."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
