"""Search of ten million codes of 128 bits, exact: ours beside raw FAISS and a scan with numpy. A section of `benchmarks.search`.

Codes as hash heads give them: 1,000 things of unequal frequency, each a code of which bits are flipped, more of them in some things than in
others. Queries are fresh draws. Ours is what a user has: an index of the kind `hamming`, published in segments of a million and mapped,
searched by `Searcher.search_batch`, which merges the segments' hits, ties by tile id, with scores; the ids of the hits are looked up, too.
Raw FAISS is one `IndexBinaryFlat` of all codes in memory. numpy counts the bits of 64-bit words that differ, a million codes at a time, and
keeps the nearest. All find the same codes, ties alike, which is checked before anything is measured.

Time is the processor's; of medians over rounds in which all sides are measured in turn, the ratio of the times of FAISS and ours is told.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pyarrow as pa

from benchmarks import command
from rayjobs.retrieval.kinds import Effort
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.search import Searcher, open_searcher
from rayjobs.retrieval.segments import build_segment
from rayjobs.storage import Artefact, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

BITS, THINGS = 128, 1000
COUNTS = (10, 64)
"""Hits per query."""

Packed = np.ndarray[Any, np.dtype[np.uint8]]
Distances = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rows: int
    per_segment: int
    alone: int
    """Queries asked one after the other in a round."""
    together: int
    """Queries asked in one call."""
    scans: int
    """Queries of numpy in a round."""
    rounds: int


FULL = Sizes(rows=10_000_000, per_segment=1_000_000, alone=16, together=64, scans=3, rounds=9)
QUICK = Sizes(rows=500_000, per_segment=250_000, alone=16, together=64, scans=3, rounds=5)


def made(rows: int, seed: int) -> Packed:
    """Return (rows, 16) codes of 128 bits; another seed gives other draws of the same things."""
    shape, rng = np.random.default_rng(0), np.random.default_rng(seed)
    things, rates = shape.random((THINGS, BITS)) < 0.5, shape.uniform(0.03, 0.3, THINGS)
    often = 1 / (np.arange(THINGS) + 20)
    codes = np.empty((rows, BITS // 8), np.uint8)
    for start in range(0, rows, 100_000):
        thing = rng.choice(THINGS, min(100_000, rows - start), p=often / often.sum())
        flipped = rng.random((len(thing), BITS), np.float32) < rates[thing, None]
        codes[start : start + len(thing)] = np.packbits(things[thing] ^ flipped, axis=1)
    return codes


def vectors_of(codes: Packed) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return (n, 128) float32 codes as an encoder gives them."""
    size = np.float32(1 / np.sqrt(BITS))
    return np.where(np.unpackbits(codes, axis=1).astype(bool), size, -size)


def published(folder: Path, codes: Packed, per_segment: int) -> tuple[Searcher, float]:
    """Publish an index of codes and open it; return it, and what its vectors take on disk, bytes a code."""
    draft = Artefact(open_store(f"file:{folder}"), "indexes", "codes").draft("v1")
    entries, size = [], 0
    for number, start in enumerate(range(0, len(codes), per_segment)):
        part = codes[start : start + per_segment]
        known = pa.table(
            {
                "tile_id": [f"{row:020x}" for row in range(start, start + len(part))],
                "geometry": pa.nulls(len(part), pa.binary()),
                "datetime": pa.nulls(len(part), pa.timestamp("us", tz="UTC")),
            }
        )
        entry, files = build_segment(f"segment-{number:05d}", vectors_of(part), known, kind="hamming")
        for name, data in files.items():
            draft.write(name, data)
        entries.append(entry)
        size += len(files[f"{entry.name}.vectors"])
    manifest = IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="0" * 64,
        distance="cosine",
        dimension=BITS,
        kind="hamming",
        why="asked for",
        effort=Effort(),
        recall=None,
        quantiser=None,
        segments=tuple(entries),
        deleted=0,
    )
    version = draft.publish({"parents": {}, "counts": {}, **manifest.fields()})
    return open_searcher(version, manifest, folder / "cache"), size / len(codes)


def scanned(codes: Packed, query: Packed, count: int) -> tuple[Distances, Distances]:
    """Return distances and rows of the codes nearest to one, (16,), by numpy; ties by row."""
    words, asked = codes.view(np.uint64), query.view(np.uint64)
    distances, rows = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, len(words), 1_000_000):
        part = words[start : start + 1_000_000]
        differ = np.bitwise_count(part[:, 0] ^ asked[0]) + np.bitwise_count(part[:, 1] ^ asked[1])
        last = np.partition(differ, min(count, len(part)) - 1)[min(count, len(part)) - 1]
        near = np.flatnonzero(differ <= last)
        distances, rows = np.concatenate([distances, differ[near]]), np.concatenate([rows, start + near])
        best = np.lexsort((rows, distances))[:count]
        distances, rows = distances[best], rows[best]
    return distances, rows


def run(sizes: Sizes) -> dict[str, float]:
    """Measure everything, print the table, and return the figures."""
    faiss.omp_set_num_threads(1)
    codes, queries = made(sizes.rows, 1), made(sizes.together, 2)
    raw = faiss.IndexBinaryFlat(BITS)
    raw.add(codes)
    with tempfile.TemporaryDirectory(prefix="codes-") as folder:
        ours, size = published(Path(folder), codes, sizes.per_segment)
        print(f"{sizes.rows:,} codes of {BITS} bits, exact, {len(ours.tables)} segments; medians of {sizes.rounds} rounds, one core")
        print(f"{'queries':<20}{'hits':>5}{'ours/s':>10}{'FAISS/s':>10}{'numpy/s':>10}{'over FAISS':>12}{'over numpy':>12}")
        figures: dict[str, float] = {"codes_rows": sizes.rows, "codes_bytes_per_vector": size}
        for count in COUNTS:
            check(ours, raw, codes, queries, count)
            for name, batch in (("alone", 1), ("together", sizes.together)):
                figures |= measured(name, ours, raw, codes, queries[: sizes.alone if batch == 1 else batch], count, batch, sizes)
    return {name: round(value, 4) for name, value in figures.items()}


def asked(
    ours: Searcher, queries: np.ndarray[Any, np.dtype[np.float32]], count: int
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Return ids and scores of the hits of each query."""
    return [(ours.ids_of(hits.rows), hits.scores) for hits in ours.search_batch(queries, count)]


def check(ours: Searcher, raw: Any, codes: Packed, queries: Packed, count: int) -> None:
    """Make sure that all sides find the same, ties alike."""
    distances, rows = raw.search(queries, count)
    for number, (ids, scores) in enumerate(asked(ours, vectors_of(queries), count)):
        if [int(name, 16) for name in ids] != rows[number].tolist() or not np.allclose(scores, 1 - 2 * distances[number] / BITS):
            raise SystemExit(f"query {number}: ours and FAISS find other codes")
    if scanned(codes, queries[0], count)[1].tolist() != rows[0].tolist():
        raise SystemExit("numpy and FAISS find other codes")


def measured(name: str, ours: Searcher, raw: Any, codes: Packed, queries: Packed, count: int, batch: int, sizes: Sizes) -> dict[str, float]:
    """Measure all sides in turn, print a line and return its figures."""
    vectors = vectors_of(queries)
    starts = range(0, len(queries), batch)
    times: list[tuple[float, float, float]] = []
    for _ in range(sizes.rounds):
        of_ours = seconds(lambda: [asked(ours, vectors[start : start + batch], count) for start in starts]) / len(queries)
        of_faiss = seconds(lambda: [raw.search(queries[start : start + batch], count) for start in starts]) / len(queries)
        of_numpy = seconds(lambda: [scanned(codes, query, count) for query in queries[: sizes.scans]]) / sizes.scans
        times.append((of_ours, of_faiss, of_numpy))
    taken = np.array(times)
    qps = 1 / np.median(taken, axis=0)
    over_faiss, over_numpy = (float(np.median(taken[:, side] / taken[:, 0])) for side in (1, 2))
    words = "one at a time" if batch == 1 else f"{batch} in one call"
    print(f"{words:<20}{count:>5}{qps[0]:>10,.1f}{qps[1]:>10,.1f}{qps[2]:>10,.1f}{over_faiss:>12.3f}{over_numpy:>12.2f}", flush=True)
    return {
        f"codes_{name}_at_{count}_qps": float(qps[0]),
        f"codes_{name}_at_{count}_faiss_qps": float(qps[1]),
        f"codes_{name}_at_{count}_qps_ratio": over_faiss,
        f"codes_{name}_at_{count}_numpy_ratio": over_numpy,
    }


def seconds(act: Callable[[], Any]) -> float:
    """Return the processor's time that something takes."""
    begun = time.process_time()
    act()
    return time.process_time() - begun


def main() -> None:
    """Run from the command line."""
    options = command.parser("codes", __doc__, quick="500,000 codes, fewer rounds").parse_args()
    figures = run(QUICK if options.quick else FULL)
    if options.json:
        command.end("codes", figures, ("rayjobs", "numpy", command.FAISS))


if __name__ == "__main__":
    main()
