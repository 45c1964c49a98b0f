"""Search of one million vectors: ours beside raw FAISS of the same kinds, hnswlib, usearch and LanceDB; recall@10 and queries per core.

And of ten million codes of 128 bits, exact, beside raw FAISS and a scan with numpy: `benchmarks.codes`, which also runs alone.

Vectors as embeddings are: 1,000 things of unequal frequency, each a cloud in 24 latent dimensions, sent to 128 by a random map, with
a little noise in all of them, of length 1. Queries are fresh draws. Of every side each setting of a grid is tried, and the fastest that
finds 0.97 of the 10 nearest is measured again, all sides in turn, for medians; raw FAISS may thereby choose its setting on the very queries
that are measured. Ours may not: kind and effort are what `auto` takes, tuned on rows of the index (each left out of its own answer).

A query's time is the processor's, over all threads, all queries in one call where a side has such: so the figures hold on a machine that
does other things too. Building takes all cores, and is not measured. Memory is measured in a process of its own that opens the published
segment and searches it: what is anonymous (its own) and what is mapped (shared, and the system's to drop). Metadata is counted in, with
footprints and dates for every row; the first process of a machine, which makes the file that all map it from, is told beside.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import hnswlib
import lancedb
import lancedb.index
import numpy as np
import pyarrow as pa
import shapely
import usearch.index

from benchmarks import codes, command
from rayjobs.retrieval.choice import choose, kinds_for, tuned
from rayjobs.retrieval.kinds import KINDS, Effort, inner_products, sample_rows, sample_size
from rayjobs.retrieval.manifest import IndexManifest, read_index_manifest
from rayjobs.retrieval.segments import Segment, build_segment, load_segment, load_table
from rayjobs.storage import Artefact, Version, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DIM, COUNT, RECALL = 128, 10, 0.97
LATENT, THINGS = 24, 1000
OTHERS = 1000
"""Draws that kinds of ours other than `auto`'s are tuned on: not rows, which a graph finds too easily."""
PATIENCE_S = 3.0
"""Sides that are slow are asked fewer queries, so that none takes longer at once; 200 are the least."""
EFS = [10, 12, 14, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64, 72, 80, 96, 112, 128, 160, 224, 320]
SLOWER = 0.7
"""A setting so much slower than the best of its side, of those that find enough, ends its ladder; one measurement says no more."""
FINALISTS = 3
"""Raw settings that are measured in turn with ours: the sweep's fastest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rows: int
    queries: int
    sample: int
    """Rows of the index that efforts are tuned on."""
    rounds: int


FULL = Sizes(rows=1_000_000, queries=10_000, sample=10_000, rounds=5)
QUICK = Sizes(rows=50_000, queries=2000, sample=2000, rounds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One library with one kind of index, built."""

    name: str
    ladders: Sequence[Sequence[Any]]
    """Settings to try. On each ladder recall and time rise, so that what lies above the first that finds enough need not be tried."""
    search: Callable[[np.ndarray, Any], np.ndarray]
    """Queries (q, dim) and setting to rows (q, 10)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A side with one setting, measured."""

    side: Side
    setting: Any
    recall: float
    qps: float
    """Queries per second of one core."""


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Let FAISS build on all cores; it searches on one."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(1)


class Truth:
    """Queries and how much their 10 nearest score at least."""

    def __init__(self, exact: Any, queries: np.ndarray) -> None:
        """Search exactly."""
        self.exact, self.queries = exact, queries
        scores, _ = exact.search(queries, COUNT)
        self.least = scores[:, -1:] - 1e-6

    def recall(self, rows: np.ndarray) -> float:
        """Return the share of hits that score as the nearest do: of equal vectors, any is right."""
        count = len(rows)
        return float((inner_products(self.queries[:count], self.exact, rows) >= self.least[:count]).mean())


def made(rows: int, seed: int) -> np.ndarray:
    """Return (rows, 128) float32 of length 1; another seed gives other draws of the same things."""
    shape, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centres, spread = shape.normal(size=(THINGS, LATENT)), shape.uniform(0.3, 0.7, (THINGS, 1))
    directions = shape.normal(size=(LATENT, DIM)) / math.sqrt(LATENT)
    often = 1 / (np.arange(THINGS) + 20)
    vectors = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, 100_000):
        thing = rng.choice(THINGS, min(100_000, rows - start), p=often / often.sum())
        latent = centres[thing] + spread[thing] * rng.normal(size=(len(thing), LATENT))
        part = latent @ directions + 0.1 * rng.normal(size=(len(thing), DIM))
        vectors[start : start + len(thing)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def known_of(rows: int) -> pa.Table:
    """Return what an index knows of its tiles: ids, footprints, dates."""
    rng = np.random.default_rng(5)
    west, south = rng.uniform(-180, 179.9, rows), rng.uniform(-80, 80, rows)
    return pa.table(
        {
            "tile_id": [f"{number:020x}" for number in range(rows)],
            "scene_id": [f"scene-{number // 1000}" for number in range(rows)],
            "geometry": pa.array(shapely.to_wkb(shapely.box(west, south, west + 0.01, south + 0.01)), pa.binary()),
            "datetime": pa.array(rng.integers(1_500_000_000, 1_700_000_000, rows) * 1_000_000, pa.timestamp("us", tz="UTC")),
        }
    )


# --- ours -------------------------------------------------------------------------------------------------------------------------------


def published(folder: Path, vectors: np.ndarray, known: pa.Table, kind: str, why: str) -> tuple[Version, Segment]:
    """Publish an index of one segment and open it."""
    quantiser = None
    with all_cores():
        if KINDS[kind].trains:
            sample = vectors[sample_rows(len(vectors), sample_size(len(vectors)))]
            quantiser = KINDS[kind].dumped(KINDS[kind].trained(sample, rows=len(vectors)))
        entry, files = build_segment("segment-00000", vectors, known, kind=kind, quantiser=quantiser)
    draft = Artefact(open_store(f"file:{folder}"), "indexes", "benchmark").draft(kind)
    for name, data in files.items():
        draft.write(name, data)
    manifest = IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint="0" * 64,
        distance="cosine",
        dimension=vectors.shape[1],
        kind=kind,
        why=why,
        effort=Effort(),
        recall=None,
        quantiser=hashlib.sha256(quantiser).hexdigest() if quantiser else None,
        segments=(entry,),
        deleted=0,
    )
    version = draft.publish({"parents": {}, "counts": {}, **manifest.fields()})
    return version, load_segment(version, entry, manifest, folder / "cache")


def our_side(segment: Segment, effort: Effort) -> Side:
    """Return an opened index of ours, with the effort that it was tuned to."""
    return Side(
        name=f"ours, {segment.kind}", ladders=[[effort]], search=lambda queries, how: segment.approximate(queries, COUNT, None, how)[1]
    )


# --- the others -------------------------------------------------------------------------------------------------------------------------


def raw_sides(vectors: np.ndarray, exact: Any) -> Iterator[Side]:
    """Yield FAISS indexes as its factory makes them; codes are refined by one shared flat index."""
    clustered: dict[tuple[int, int], Any] = {}
    root = math.sqrt(len(vectors))
    training = vectors[sample_rows(len(vectors), 256 * round(root))]
    wide, narrow = round(4 * root), round(root)
    probes = [*range(4, 20), 22, 24, 28, 32, 40, 48, 64, 96, 128]
    factors = [16, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 20, 24, 32]
    for key, nprobes, k_factors in (
        (f"IVF{wide},PQ64x4fsr", probes, factors),
        (f"IVF{narrow},PQ64x4fsr", probes, factors),
        (f"IVF{wide},PQ32x4fsr", probes, [16, 24, 32, 48, 64]),
        (f"PCA64,IVF{wide},PQ64x4fsr", probes, [3, 4, 5, 6, 7, 8, 10, 12]),
        (f"PCA32,IVF{wide},PQ32x4fsr", probes, [3, 4, 5, 6, 7, 8, 10, 12]),
        (f"PCA32,IVF{narrow},PQ32x4fsr", probes, [3, 4, 5, 6, 7, 8, 10, 12]),
        (f"IVF{wide},RaBitQfs", probes, [8, 12, 16, 24, 32]),
        (f"IVF{wide},Flat", probes, [None]),
        ("SQ8", [None], [1, 2]),
    ):
        with all_cores():
            index = raw_index(key, training, clustered)
            index.add(vectors)
        ladders = [[(factor, nprobe) for nprobe in nprobes] for factor in k_factors]
        yield refined(key, index, exact, ladders)
    graph = faiss.index_factory(DIM, "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 80
    with all_cores():
        graph.add(vectors)
    yield Side(name="FAISS HNSW32", ladders=[EFS], search=lambda queries, ef: graph.search(queries, COUNT, params=graph_parameters(ef))[1])


def raw_index(key: str, training: np.ndarray, clustered: dict[tuple[int, int], Any]) -> Any:
    """Return a trained FAISS index; centroids are made once for each number of lists and of dimensions, and kept in `clustered`."""
    index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    if not key.startswith(("IVF", "PCA")):
        index.train(training)
        return index
    lists = faiss.extract_index_ivf(index)
    shape = lists.nlist, lists.d
    if shape in clustered:
        lists.quantizer.add(clustered[shape])
    index.train(training)
    clustered[shape] = faiss.downcast_index(lists.quantizer).reconstruct_n()
    return index


def graph_parameters(ef: int) -> Any:
    """Return FAISS's parameters of a walk."""
    return faiss.SearchParametersHNSW(efSearch=ef)


def refined(name: str, index: Any, exact: Any, ladders: list[list[tuple[int | None, int | None]]]) -> Side:
    """Return a FAISS index, ranked again exactly where a setting (k_factor, nprobe) has a factor."""
    joined = faiss.IndexRefine(index, exact)

    def search(queries: np.ndarray, setting: tuple[int | None, int | None]) -> np.ndarray:
        k_factor, nprobe = setting
        inner = None if nprobe is None else faiss.SearchParametersIVF(nprobe=nprobe)
        if k_factor is None:
            return index.search(queries, COUNT, params=inner)[1]
        outer = faiss.IndexRefineSearchParameters(k_factor=float(k_factor), base_index_params=inner)
        return joined.search(queries, COUNT, params=outer)[1]

    ending = "" if ladders[0][0][0] is None else ",RFlat"
    return Side(name=f"FAISS {name}{ending}", ladders=ladders, search=search)


def hnswlib_side(vectors: np.ndarray) -> Side:
    """Return hnswlib's graph."""
    index = hnswlib.Index(space="ip", dim=DIM)
    index.init_index(max_elements=len(vectors), M=16, ef_construction=100, random_seed=1)
    index.add_items(vectors, num_threads=-1)

    def search(queries: np.ndarray, ef: int) -> np.ndarray:
        index.set_ef(ef)
        return index.knn_query(queries, k=COUNT, num_threads=1)[0].astype(np.int64)

    return Side(name="hnswlib M16", ladders=[EFS], search=search)


def usearch_side(vectors: np.ndarray) -> Side:
    """Return usearch's graph."""
    index = usearch.index.Index(ndim=DIM, metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    index.add(np.arange(len(vectors)), vectors, threads=0)

    def search(queries: np.ndarray, ef: int) -> np.ndarray:
        index.expansion_search = ef
        return np.asarray(index.search(queries, COUNT, threads=1).keys, np.int64)

    return Side(name="usearch M16", ladders=[EFS], search=search)


def lance_side(vectors: np.ndarray, folder: Path) -> Side:
    """Return LanceDB's inverted file of product codes, ranked again exactly; it takes one query at a time."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
    table = lancedb.connect(folder).create_table("vectors", pa.table({"row": np.arange(len(vectors)), "vector": column}))
    kind = lancedb.index.IvfPq(distance_type="dot", num_partitions=round(math.sqrt(len(vectors))), num_sub_vectors=64, num_bits=4)
    table.create_index("vector", config=kind)

    def search(queries: np.ndarray, setting: tuple[int, int]) -> np.ndarray:
        factor, probes = setting
        asked = (
            table.search(query).distance_type("dot").nprobes(probes).refine_factor(factor).select(["row", "_distance"]) for query in queries
        )
        found = [hits.limit(COUNT).to_arrow()["row"].to_numpy() for hits in asked]
        return np.array([np.pad(rows, (0, COUNT - len(rows)), constant_values=-1) for rows in found], np.int64)

    return Side(
        name="LanceDB IVF_PQ", ladders=[[(factor, probes) for probes in (8, 16, 24, 32, 48, 64)] for factor in (8, 16, 24)], search=search
    )


# --- measuring --------------------------------------------------------------------------------------------------------------------------


def seconds(side: Side, setting: Any, queries: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the processor's time for some queries, and the rows found."""
    begun = time.process_time()
    rows = side.search(queries, setting)
    return time.process_time() - begun, rows


def patient(side: Side, setting: Any, queries: np.ndarray) -> np.ndarray:
    """Return as many of the queries as a side answers in good time."""
    taken, _ = seconds(side, setting, queries[:50])
    return queries[: max(200, min(len(queries), int(50 * PATIENCE_S / max(taken, 1e-6))))]


def swept(side: Side, truth: Truth) -> list[Point]:
    """Return settings measured once: of each ladder those up to the first that finds enough, or is slower than what was found before."""
    points: list[Point] = []
    for ladder in side.ladders:
        for setting in ladder:
            queries = patient(side, setting, truth.queries)
            taken, rows = seconds(side, setting, queries)
            best = max((point.qps for point in points if point.recall >= RECALL), default=0.0)
            points.append(Point(side=side, setting=setting, recall=truth.recall(rows), qps=len(queries) / taken))
            if points[-1].recall >= RECALL or points[-1].qps < SLOWER * best:
                break
    return points


def fastest(points: Sequence[Point], most: int = 1) -> list[Point]:
    """Return the fastest points of those that find enough; where none does, the one that finds most."""
    enough = sorted((point for point in points if point.recall >= RECALL), key=lambda point: -point.qps)
    return enough[:most] or [max(points, key=lambda point: point.recall)]


def in_turn(points: Sequence[Point], truth: Truth, rounds: int) -> dict[int, tuple[float, np.ndarray]]:
    """Measure points again, all in each round. Returns, by number, recall and the (rounds,) queries per second."""
    asked = [patient(point.side, point.setting, truth.queries) for point in points]
    times: list[list[float]] = [[] for _ in points]
    recalls = [0.0] * len(points)
    for _ in range(rounds):
        for number, (point, queries) in enumerate(zip(points, asked, strict=True)):
            taken, rows = seconds(point.side, point.setting, queries)
            times[number].append(len(queries) / taken)
            recalls[number] = truth.recall(rows)
    return {number: (recalls[number], np.array(of_point)) for number, of_point in enumerate(times)}


def resident(pid: str = "self") -> dict[str, int]:
    """Return a process's resident bytes: anonymous, and of mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    said = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(said[name].split()[0]) for name in ("RssAnon", "RssFile")}


def measure_memory(folder: Path, kind: str, effort: Effort) -> None:
    """Open a published index, search it, and print what that added to this process's memory, in bytes per vector."""
    faiss.omp_set_num_threads(1)
    version = Artefact(open_store(f"file:{folder}"), "indexes", "benchmark").at(kind)
    manifest = read_index_manifest(version.manifest, kind)
    queries = made(2000, 9)
    before = resident()
    segment = load_segment(version, manifest.segments[0], manifest, folder / "cache")
    table = load_table(version, manifest.segments[0], folder / "cache")
    for part in np.split(queries, 4):
        segment.approximate(part, COUNT, None, effort)
    after = resident()
    print(json.dumps({name: (after[name] - before[name]) / table.rows for name in before}))


def memory(folder: Path, kind: str, effort: Effort) -> list[dict[str, float]]:
    """Return bytes per vector, anonymous and mapped, of two processes of their own: the first makes the metadata that both map."""
    said = json.dumps(dataclasses.asdict(effort))
    measuring = [sys.executable, "-m", "benchmarks.search", "--measure", str(folder), kind, said]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = [subprocess.run(measuring, capture_output=True, text=True, check=True, env=environment) for _ in range(2)]
    return [json.loads(one.stdout.splitlines()[-1]) for one in done]


# --- the whole --------------------------------------------------------------------------------------------------------------------------


def run(sizes: Sizes) -> dict[str, float]:
    """Measure everything, print the table, and return the figures."""
    faiss.omp_set_num_threads(1)
    vectors, known = made(sizes.rows, 1), known_of(sizes.rows)
    exact = faiss.IndexFlatIP(DIM)
    exact.add(vectors)
    truth = Truth(exact, made(sizes.queries, 2))
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        choice = choose(sizes.rows, DIM, recall=RECALL)
        print(f"auto: {choice.why}")
        auto, efforts = choice.kind, {}
        points: list[Point] = []
        for kind in dict.fromkeys([auto, *kinds_for(codes=False)]):
            segment = published(Path(folder), vectors, known, kind, choice.why)[1]
            sample = vectors[sample_rows(sizes.rows, sizes.sample, seed=3)] if kind == auto else made(OTHERS, 3)
            efforts[kind], estimate = tuned(kind, [segment], sample, recall=RECALL)
            tell(f"ours, {kind}: {efforts[kind]}, {estimate}")
            points += swept(our_side(segment, efforts[kind]), truth)
        raw = [point for side in raw_sides(vectors, exact) for point in told(swept(side, truth))]
        by_side = {point.side.name: [one for one in raw if one.side is point.side] for point in raw}
        best = fastest(raw, FINALISTS)
        points += best + [fastest(of_side)[0] for of_side in by_side.values() if fastest(of_side)[0] not in best]
        for built in (hnswlib_side, usearch_side, functools.partial(lance_side, folder=Path(folder) / "lance")):
            points += fastest(told(swept(built(vectors), truth)))
        measured = in_turn(points, truth, sizes.rounds)
        return report(sizes, points, measured, memory(Path(folder), auto, efforts[auto]))


def told(points: list[Point]) -> list[Point]:
    """Print the fastest that finds enough; return all."""
    best = fastest(points)[0]
    tell(f"{best.side.name}: {best.setting} finds {best.recall:.4f} at {best.qps:,.0f}/s")
    return points


def tell(words: str) -> None:
    """Print what goes on, beside the table."""
    print(words, file=sys.stderr, flush=True)


def report(
    sizes: Sizes, points: Sequence[Point], measured: dict[int, tuple[float, np.ndarray]], bytes_per_vector: list[dict[str, float]]
) -> dict[str, float]:
    """Print the table and return the figures. The first point is `auto`'s."""
    print(f"{sizes.rows:,} vectors of {DIM} dimensions, recall@{COUNT} of {RECALL} wanted; medians of {sizes.rounds} rounds, one core")
    print(f"{'side':<34}{'setting':<34}{'recall@10':>10}{'queries/s':>11}")
    for number, point in enumerate(points):
        recall, qps = measured[number]
        print(f"{point.side.name:<34}{words_of(point.setting):<34}{recall:>10.4f}{np.median(qps):>11,.0f}")
    recall, qps = measured[0]
    raw = {n: qps_of for n, (found, qps_of) in measured.items() if points[n].side.name.startswith("FAISS") and found >= RECALL}
    best = max(raw, key=lambda number: float(np.median(raw[number])))
    figures = {
        "auto_recall_at_10": recall,
        "auto_qps_ratio": float(np.median(qps / raw[best])),
        "auto_bytes_per_vector": bytes_per_vector[1]["RssAnon"],
        "auto_mapped_bytes_per_vector": bytes_per_vector[1]["RssFile"],
        "auto_bytes_per_vector_of_first_process": bytes_per_vector[0]["RssAnon"],
        "auto_qps": float(np.median(qps)),
        "best_raw_qps": float(np.median(raw[best])),
        "rows": sizes.rows,
        **{f"{name}_qps": median_of(name, points, measured) for name in ("hnswlib", "usearch", "LanceDB")},
    }
    return {name.lower(): round(float(value), 4) for name, value in figures.items()}


def words_of(setting: Any) -> str:
    """Return a setting in few words."""
    if isinstance(setting, Effort):
        return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(setting).items() if value is not None)
    if isinstance(setting, tuple):
        return " ".join(f"{name}={value}" for name, value in zip(("k_factor", "nprobe"), setting, strict=True) if value is not None)
    return f"ef={setting}"


def median_of(name: str, points: Sequence[Point], measured: dict[int, tuple[float, np.ndarray]]) -> float:
    """Return the median queries per second of the side whose name begins so."""
    return next(float(np.median(measured[number][1])) for number, point in enumerate(points) if point.side.name.startswith(name))


def main() -> None:
    """Run from the command line."""
    parser = command.parser("search", __doc__, quick="50,000 vectors, fewer queries and rounds")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "KIND", "EFFORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, kind, effort = options.measure
        measure_memory(Path(folder), kind, Effort(**json.loads(effort)))
        return
    figures = codes.run(codes.QUICK if options.quick else codes.FULL) | of_vectors(QUICK if options.quick else FULL)
    if options.json:
        command.end("search", figures, ("rayjobs", "numpy", command.FAISS, "hnswlib", "usearch", "lancedb"))


def of_vectors(sizes: Sizes) -> dict[str, float]:
    """Measure vectors, print what matters, and return the figures."""
    figures = run(sizes)
    print(f"recall@10 of auto                            {figures['auto_recall_at_10']:.4f}")
    print(f"its queries/s over the best raw FAISS's      {figures['auto_qps_ratio']:.3f}")
    print(f"its own (anonymous) bytes per vector         {figures['auto_bytes_per_vector']:.1f}")
    print(f"that of the first process                    {figures['auto_bytes_per_vector_of_first_process']:.1f}")
    print(f"its mapped bytes per vector                  {figures['auto_mapped_bytes_per_vector']:.0f}")
    return figures


if __name__ == "__main__":
    main()
