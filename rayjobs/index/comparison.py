"""What each kind of index costs and finds, measured on a sample of the user's own vectors, on one thread."""

from __future__ import annotations

import dataclasses
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pyarrow as pa

from rayjobs.index.versions import as_drafted
from rayjobs.retrieval.choice import tuned
from rayjobs.retrieval.kinds import KINDS, LAST_BITS, STORES, Effort
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.segments import Segment, build_segment, load_segment
from rayjobs.storage import Artefact, LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

Vectors = np.ndarray[Any, np.dtype[np.float32]]

AT = 10
"""Hits per query."""
_RUNS = 3
_SEGMENT = "segment-00000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One kind of index on the sample."""

    kind: str
    """Key of `KINDS`."""
    recall: float
    """Mean share of the true ten nearest that were found; a hit as near as the tenth counts, whichever it is."""
    enough: bool
    """Whether that is the wanted recall."""
    bytes_per_vector: float
    """Of the compressed index; none of exact kinds, which search the vectors themselves."""
    mapped_bytes_per_vector: float
    """Of the vectors themselves, in a mapped file beside it."""
    p50_ms: float
    """Median time of one query, asked alone."""
    p99_ms: float
    queries_per_second: float
    """Of all queries asked together: the median of three runs."""
    build_s: float
    """Training and filling."""
    effort: dict[str, int]
    """How hard a search tries."""


def measured(kind: str, vectors: Vectors, tuning: Vectors, queries: Vectors, *, recall: float, folder: Path) -> Measured:
    """Build an index of one kind as `rayjobs index` does, choose its effort on some queries, and measure it on others.

    Args:
        kind: key of `KINDS`.
        vectors: (rows, dim) float32 of length 1.
        tuning: (q, dim) queries that the effort is chosen on.
        queries: (q, dim) queries that are measured.
        recall: wanted share of the ten nearest.
        folder: for the index's files; each kind wants its own.
    """
    with _one_thread():
        begun = time.perf_counter()
        segment, size = _built(kind, vectors, folder)
        build_s = time.perf_counter() - begun
        effort, _ = tuned(kind, [segment], tuning, recall=recall)
        share = _recall(segment, queries, effort)
        alone = [_seconds(segment, query[None], effort) for query in queries]
        together = float(np.median([_seconds(segment, queries, effort) for _ in range(_RUNS)]))
    return Measured(
        kind=kind,
        recall=share,
        enough=share >= recall,
        bytes_per_vector=size / len(vectors),
        mapped_bytes_per_vector=float(STORES[KINDS[kind].store].bytes_per_vector(vectors.shape[1])),
        p50_ms=1e3 * float(np.quantile(alone, 0.5)),
        p99_ms=1e3 * float(np.quantile(alone, 0.99)),
        queries_per_second=len(queries) / together,
        build_s=build_s,
        effort={name: value for name, value in dataclasses.asdict(effort).items() if value is not None},
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _built(kind: str, vectors: Vectors, folder: Path) -> tuple[Segment, int]:
    """Return a loaded segment, and the bytes of its compressed index."""
    draft = Artefact(LocalStore(str(folder)), "indexes", kind).draft("sample")
    trained = KINDS[kind].dumped(KINDS[kind].trained(vectors)) if KINDS[kind].trains else None
    entry, files = build_segment(_SEGMENT, vectors, _unknown(len(vectors)), kind=kind, quantiser=trained)
    for name, data in files.items():
        draft.write(name, data)
    manifest = IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="0" * 64,
        distance="cosine",
        dimension=vectors.shape[1],
        kind=kind,
        why="a sample",
        effort=Effort(),
        recall=None,
        quantiser="0" * 64 if KINDS[kind].trains else None,
        segments=(entry,),
        deleted=0,
    )
    return load_segment(as_drafted(draft), entry, manifest, folder), len(files.get(f"{_SEGMENT}.faiss", b""))


def _unknown(rows: int) -> pa.Table:
    """Return metadata of tiles of which nothing is known."""
    ids = [f"{number:020d}" for number in range(rows)]
    return pa.table({"tile_id": ids, "geometry": pa.nulls(rows, pa.binary()), "datetime": pa.nulls(rows, pa.timestamp("us", tz="UTC"))})


def _recall(segment: Segment, queries: Vectors, effort: Effort) -> float:
    least = segment.exact(queries, AT)[0].min(axis=1, keepdims=True) - LAST_BITS
    found = segment.approximate(queries, AT, None, effort)[0]
    return float((found >= least).mean())


def _seconds(segment: Segment, queries: Vectors, effort: Effort) -> float:
    begun = time.perf_counter()
    segment.approximate(queries, AT, None, effort)
    return time.perf_counter() - begun
