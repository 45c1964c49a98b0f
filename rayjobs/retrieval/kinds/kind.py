"""What every kind of index promises: to be trained, filled, written, opened, checked and searched in one way."""

from __future__ import annotations

import abc
import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import faiss
import numpy as np
import pydantic

from rayjobs.errors import IndexCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Vectors = np.ndarray[Any, np.dtype[np.float32]]
"""(n, dim) float32 of length 1."""
Rows = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
Found = tuple[Vectors, Rows]
"""Scores (q, count) float32, -inf where there is no hit, and rows (q, count) int64, -1 there; best first, ties by row."""

END = b"rayjobs\n"
"""What the file of every index ends with."""
LAST_BITS = 1e-6
"""Products of matrices, and those of another order of adding, differ by less from what `products` gives for a pair."""
SPARE = 8
"""Hits asked for beyond those wanted: where a tie ends among them, it needs no second look."""
_STEP = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard an approximate search tries. A field that a kind does not know is None."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    nprobe: int | None = None
    """Lists that are searched, of an inverted file."""
    ef: int | None = None
    """Nodes that are kept in sight while a graph is walked."""
    k_factor: float | None = None
    """Compressed candidates per hit that are compared again by their exact vectors."""

    def __post_init__(self) -> None:
        """Refuse efforts that find nothing."""
        if any(value is not None and value < 1 for value in (self.nprobe, self.ef, self.k_factor)):
            raise ValueError(f"{self} must be 1 or more in every field")

    def widened(self, factor: float) -> Effort:
        """Return an effort that looks at `factor` times as much, for a filter that lets little of it pass."""
        fields = dataclasses.asdict(self)
        return Effort(**{name: None if value is None else int(np.ceil(value * factor)) for name, value in fields.items()})


class Kind(abc.ABC):
    """One kind of index over unit vectors, compared by inner product. Stateless: the state is the FAISS index."""

    name: ClassVar[str]
    """Its key in `KINDS`."""
    exact: ClassVar[bool] = False
    """Whether it finds the nearest for sure."""
    trains: ClassVar[bool] = False
    """Whether it is trained on a sample first; the trained, empty index is the version's shared quantiser."""
    store: ClassVar[str] = "flat"
    """Key in `STORES` of the kind that keeps the vectors themselves, beside this one or as it."""

    @abc.abstractmethod
    def trained(self, sample: Vectors, *, rows: int | None = None) -> Any:
        """Return an empty index that vectors can be added to.

        The same sample in the same order gives the same index, on the same hardware.

        Args:
            sample: (n, dim) float32 of length 1; `sample_rows` says which to take. Kinds that do not train need its dimension only.
            rows: vectors in the largest segment, by which the number of lists goes; default: the sample's.
        """

    def filled(self, quantiser: Any, vectors: Vectors) -> Any:
        """Return a copy of the empty index `quantiser` that holds (n, dim) vectors; a vector's id is its row."""
        index = faiss.clone_index(quantiser)
        index.add(np.ascontiguousarray(vectors))
        return index

    def dumped(self, index: Any) -> bytes:
        """Return an index as bytes of a file: FAISS's own, and a mark of the end, which FAISS does not read."""
        return self._serialised(index) + END

    def read(self, path: Path) -> Any:
        """Map the file of an index into memory; `check` what it returns.

        Raises:
            IndexCorruptError: FAISS cannot read it, or it does not end as our files do: of one that is cut short FAISS would read up to 7
                bytes beyond the end.
        """
        with path.open("rb") as file:
            file.seek(-min(len(END), path.stat().st_size), os.SEEK_END)
            refuse_unless(file.read() == END, "it is cut short")
        try:
            return self._mapped(path)
        except (RuntimeError, MemoryError) as error:
            raise _unreadable(error) from error

    def read_quantiser(self, data: bytes, dimension: int) -> Any:
        """Return the trained, empty index of a file's bytes.

        Raises:
            IndexCorruptError: it is not one of this kind and dimension.
        """
        refuse_unless(data.endswith(END), "it is cut short")
        try:
            index = self._deserialised(np.frombuffer(data, np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise _unreadable(error) from error
        self.check(index, dimension, 0)
        return index

    def _serialised(self, index: Any) -> bytes:
        return bytes(faiss.serialize_index(index))

    def _deserialised(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
        return faiss.deserialize_index(data)

    def _mapped(self, path: Path) -> Any:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)

    @abc.abstractmethod
    def check(self, index: Any, dimension: int, rows: int) -> None:
        """Make sure that an index out of a file may be searched: nothing in it leads outside of it.

        Args:
            index: as `read` returns it.
            dimension: of the vectors, by the manifest.
            rows: number of vectors, by the manifest; 0 for a quantiser.

        Raises:
            IndexCorruptError: another type, metric, dimension or number of vectors, or ids, codes and lists that do not fit together.
        """

    @abc.abstractmethod
    def attached(self, index: Any, exact: Any) -> Any:
        """Return what is searched: the index, joined with that of the kind `store` and the same vectors, `exact`, which must outlive it."""

    @abc.abstractmethod
    def parameters(self, effort: Effort, selector: Any = None) -> Any:
        """Return FAISS search parameters.

        Args:
            effort: how hard to try.
            selector: a faiss.IDSelector of the rows that may be found; None for all.
        """

    @abc.abstractmethod
    def bytes_per_vector(self, dimension: int) -> float:
        """Return what the index takes per vector, not counting the vectors themselves that are mapped beside it."""

    def efforts(self, index: Any) -> list[list[Effort]]:
        """Return efforts to try on an index: rising ladders, on each of which recall and cost only grow."""
        del index
        return [[Effort()]]

    @abc.abstractmethod
    def cost_ns(self, index: Any, effort: Effort, count: int) -> float:
        """Return about how long one query for `count` hits takes, nanoseconds of one core: to compare efforts, not to promise."""


class Exact(Kind):
    """A kind that keeps every vector as it is, and compares all of them. Every segment has one, and an exact kind nothing else."""

    exact: ClassVar[bool] = True

    @abc.abstractmethod
    def nearest(self, index: Any, queries: Vectors, count: int, chosen: BoolArray | None) -> Found:
        """Return the nearest of all rows, or of the chosen ones.

        The score of a pair is the same number whatever else is asked in the same call, and equal vectors have equal scores.

        Args:
            index: as `read` or `filled` returns it.
            queries: (q, dim) float32 of length 1, at least one.
            count: hits per query, 1 or more, and not more than may be found.
            chosen: (rows,) which rows may be found; None for all.
        """

    @abc.abstractmethod
    def vectors_of(self, index: Any, rows: Rows, dimension: int) -> Vectors:
        """Return the (n, dim) float32 vectors of (n,) rows."""

    def attached(self, index: Any, exact: Any) -> Any:
        """Return the vectors themselves."""
        del index
        return exact

    def parameters(self, effort: Effort, selector: Any = None) -> Any:
        """Return the selector alone."""
        del effort
        return faiss.SearchParameters(sel=selector)


class Refined(Kind):
    """A kind that compares codes, and ranks the candidates which it finds so again by their exact vectors."""

    factors: ClassVar[tuple[int | None, ...]]
    """Candidates per hit that are worth trying; see `Effort.k_factor`."""

    def attached(self, index: Any, exact: Any) -> Any:
        """Join codes and exact vectors."""
        return faiss.IndexRefine(index, exact)

    def parameters(self, effort: Effort, selector: Any = None) -> Any:
        """Return how to find candidates, and how many to compare exactly."""
        candidates = self.candidates(effort, selector)
        return faiss.IndexRefineSearchParameters(k_factor=float(effort.k_factor or 1), base_index_params=candidates)

    def candidates(self, effort: Effort, selector: Any) -> Any:
        """Return FAISS search parameters of the codes alone; arguments as of `parameters`."""
        del effort
        return faiss.SearchParameters(sel=selector)

    def efforts(self, index: Any) -> list[list[Effort]]:
        """Return a ladder of factors."""
        del index
        return [[Effort(k_factor=factor) for factor in self.factors]]


def refuse_unless(true: bool, what: str) -> None:  # noqa: FBT001  reads as a sentence
    """Raise `IndexCorruptError` that says what is wrong with an index file, unless a condition holds."""
    if not true:
        raise IndexCorruptError(f"the index file is not as we write it: {what}; publish the index again")


def _unreadable(error: Exception) -> IndexCorruptError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return IndexCorruptError(f"the index file cannot be read ({said[:200]}); publish the index again")


def check_shape(index: Any, made: type, dimension: int, rows: int) -> None:
    """Refuse an index of another type than `made`, another metric, dimension or number of vectors, or an untrained one."""
    refuse_unless(type(index) is made, f"it is a {type(index).__name__}, not a {made.__name__}")
    refuse_unless(index.metric_type == faiss.METRIC_INNER_PRODUCT, "its metric is not the inner product")
    refuse_unless(
        index.d == dimension and index.ntotal == rows,
        f"it holds {index.ntotal} vectors of {index.d} numbers, not the {rows} of {dimension} of its manifest",
    )
    refuse_unless(index.is_trained, "it is not trained")


def selector_of(chosen: BoolArray) -> Any:
    """Return FAISS's selector of the rows of a mask (rows,)."""
    return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))


def ranked(scores: Vectors, rows: Rows) -> Found:
    """Sort hits (q, n) in place by score, best first, ties by row."""
    loose = np.flatnonzero(~(scores[:, 1:] < scores[:, :-1]).all(axis=1))  # most come in order, and sorting them takes longer than looking
    order = np.lexsort((rows[loose], -scores[loose]))
    scores[loose] = np.take_along_axis(scores[loose], order, axis=1)
    rows[loose] = np.take_along_axis(rows[loose], order, axis=1)
    return scores, rows


def products(queries: Vectors, vectors: Any, rows: Rows) -> Vectors:
    """Return (q, n) float32 inner products of queries with rows of vectors, by FAISS's kernel for one pair; -inf for row -1.

    A pair has the same product in every batch and at every place, to the last bit, which products of matrices do not promise.

    Args:
        queries: (q, dim) float32.
        vectors: pointer to the vectors, float32.
        rows: (q, n) which of them.
    """
    queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
    found = np.full(rows.shape, -np.inf, np.float32)
    pointers = [faiss.swig_ptr(array) for array in (found, queries)]
    faiss.fvec_inner_products_by_idx(*pointers, vectors, faiss.swig_ptr(rows), queries.shape[1], *rows.shape)
    found[rows < 0] = -np.inf
    return found


def ladder(least: int, most: int) -> Iterator[int]:
    """Yield whole numbers from `least`, by steps of one and then of a twentieth, up to `most`."""
    rung = least
    while rung < most:
        yield rung
        rung = max(rung + 1, round(rung * _STEP))
    yield most


def sample_rows(rows: int, count: int, *, seed: int = 0) -> Rows:
    """Return `count` of `rows` row numbers (all, if there are fewer), drawn without replacement and sorted: (n,) int64."""
    if count >= rows:
        return np.arange(rows, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False)).astype(np.int64)
