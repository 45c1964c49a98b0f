"""The service over HTTP beside a bare FastAPI under uvicorn with the same index.

One made-up index of clustered vectors. Bare: one process that maps it, takes embeddings and answers hits as GeoJSON; see
`benchmarks.bare_server`. Ours: `rayjobs serve` with all that it does besides, one process that searches, behind Ray Serve's default
proxy and behind HAProxy. All are up at once; loads are put on them in turn, and figures are medians over rounds.

`single_ratio` is requests per second at 64 connections with one query each, ours behind HAProxy over bare; `batch_ratio` queries per
second with 64 queries in each request. Added latency is what a request takes on one connection beyond the raw search in memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import httpx
import numpy as np
import pyarrow as pa
import shapely

from benchmarks import command
from benchmarks.load import Load, load
from rayjobs.models import encoder
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.spec import ModelSpec
from rayjobs.retrieval.choice import choose, tuned
from rayjobs.retrieval.kinds import KINDS, Effort
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.retrieval.segments import build_segment, load_segment
from rayjobs.storage import Artefact, Version, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayjobs.retrieval.segments import Segment

ROOT = Path(__file__).parents[1]
ROWS, QUICK_ROWS, DIM = 200_000, 30_000, 128
CENTRES, LIMIT, BATCH, CONNECTIONS, BODIES = 400, 10, 64, 64, 1024
ENCODER = ModelSpec(
    backbone="resnet10t", dim=DIM, bands=("red", "green", "blue"), dtype="uint8", mean=(99.0,) * 3, std=(50.0,) * 3,
    tile_size=8, input_size=32, resolution_m=10.0,
)  # fmt: skip
SIDES = ("bare", "python", "haproxy")


def clustered(rows: int, seed: int) -> np.ndarray:
    """Return (rows, DIM) float32 unit vectors around the same centres for every seed."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIM), np.float32)
    vectors = centres[random.integers(len(centres), size=rows)] + 0.6 * random.standard_normal((rows, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tiles(rows: int) -> pa.Table:
    """Return what is known of each tile: a grid of footprints, dates, labels."""
    side = int(np.ceil(np.sqrt(rows)))
    west, south = 0.01 * (np.arange(rows) % side), 0.01 * (np.arange(rows) // side) % 60
    days = np.datetime64("2020-01-01") + np.arange(rows) % 1000
    return pa.table(
        {
            "tile_id": [f"{row:020x}" for row in range(rows)],
            "scene_id": [f"scene-{row // 1000:04}" for row in range(rows)],
            "row": pa.array(np.arange(rows) // side, pa.int32()),
            "col": pa.array(np.arange(rows) % side, pa.int32()),
            "height": pa.array(np.full(rows, 32), pa.int32()),
            "width": pa.array(np.full(rows, 32), pa.int32()),
            "place_id": [f"{row:016x}" for row in range(rows)],
            "geometry": shapely.to_wkb(shapely.box(west, south, west + 0.01, south + 0.01)),
            "datetime": pa.array(days, pa.timestamp("us", tz="UTC")),
            "label": [f"class-{row % 12}" for row in range(rows)],
        }
    )


def published(folder: Path, rows: int) -> tuple[Version, Segment, Effort]:
    """Publish the index in a workspace; return it, opened, and how hard its searches try."""
    vectors = clustered(rows, seed=1)
    choice = choose(rows, DIM)
    kind = KINDS[choice.kind]
    quantiser = kind.dumped(kind.trained(vectors[: 64 * 1024], rows=rows)) if kind.trains else None
    entry, files = build_segment("segment-00000", vectors, tiles(rows), kind=kind.name, quantiser=quantiser)
    files |= {f"encoder/{name}": data for name, data in to_files(encoder.build(ENCODER, seed=0), ENCODER).items()}
    if quantiser:
        files["quantiser.faiss"] = quantiser
    made = Artefact(open_store(str(folder / "workspace")), "indexes", "benchmark")
    draft = made.draft("measured")
    for name, data in files.items():
        draft.write(name, data)
    fingerprint = from_files(files["encoder/model.json"], files["encoder/model.safetensors"]).fingerprint
    manifest = functools.partial(
        IndexManifest, encoder_uri="encoder", encoder_fingerprint=fingerprint, distance="cosine", dimension=DIM, kind=kind.name,
        why=choice.why, quantiser=quantiser and hashlib.sha256(quantiser).hexdigest(), segments=(entry,), deleted=0,
    )  # fmt: skip
    untuned = draft.publish({"parents": {}, "counts": {"rows": rows}, **manifest(effort=Effort(), recall=None).fields()})
    segment = load_segment(untuned, entry, manifest(effort=Effort(), recall=None), folder / "cache")
    effort, recall = tuned(kind.name, [segment], clustered(1000, seed=2), recall=0.97)
    final = made.draft("tuned")
    for name, data in files.items():
        final.write(name, data)
    return final.publish({"parents": {}, "counts": {"rows": rows}, **manifest(effort=effort, recall=recall).fields()}), segment, effort


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(started: list[str], port: int, path: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a server for the length of the block, which begins when it answers."""
    with log.open("wb") as said:
        process = subprocess.Popen(started, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not answers(port, path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{shlex.join(started)} does not come up: {log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int, path: str) -> bool:
    """Whether a server answers 200."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).is_success
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def bare(folder: Path, version: Version, kind: str, effort: Effort) -> Iterator[int]:
    """Run the bare service, and yield its port."""
    port = free_port()
    flat = folder / "flat"
    flat.mkdir()
    for entry in version.files:
        if entry.name.startswith("segment-"):
            (flat / entry.name).symlink_to(version.store.fetch(entry.key(version.prefix), folder))
    arguments = [str(flat), str(port), kind, str(effort.nprobe or 1), str(effort.k_factor or 1)]
    started = [sys.executable, "-m", "benchmarks.bare_server", *arguments]
    with running(started, port, "/openapi.json", os.environ | {"OMP_NUM_THREADS": "1"}, folder / "bare.log"):
        yield port


@contextlib.contextmanager
def ours(folder: Path, proxy: str) -> Iterator[int]:
    """Run `rayjobs serve` with a Ray of its own, and yield its port."""
    port = free_port()
    config = folder / "experiment.yaml"
    sections = {
        "workspace": {"uri": str(folder / "workspace"), "index": "benchmark"},
        "rasters": {"sources": [{"kind": "files", "uris": ["-"]}]},
    }
    config.write_text(json.dumps({"name": "benchmark", **sections, "ray": {"object_store_mb": 100, "num_cpus": 2}}))
    options = {"port": port, "proxy": proxy, "check_tiles": 0, "watch_s": 0}
    started = [sys.executable, "-m", "rayjobs.serve", "--config", str(config)]
    started += [part for name, value in options.items() for part in (f"--serve.{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    temporary = tempfile.mkdtemp(prefix="rayjobs-serve-", dir="/tmp")  # Ray's sockets want a short path
    environment |= {"RAY_TMPDIR": temporary, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    try:
        with running(started, port, "/healthz", environment, folder / f"{proxy}.log"):
            yield port
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def bodies(side: str, queries: np.ndarray, batch: int) -> tuple[str, list[str]]:
    """Return the path, and bodies that ask for `batch` queries each."""
    asked = [
        {"embedding": query, "limit": LIMIT} if side == "bare" else {"positives": [{"embedding": query}], "limit": LIMIT}
        for query in queries.round(6).tolist()
    ]
    if batch == 1:
        return ("/search" if side == "bare" else "/v1/search"), [json.dumps(query) for query in asked]
    groups = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    return ("/batch" if side == "bare" else "/v1/search/batch"), [json.dumps({"searches": group}) for group in groups]


def raw_ms(segment: Segment, effort: Effort, queries: np.ndarray) -> np.ndarray:
    """Return the milliseconds of each query's search in memory, nothing around it."""
    faiss.omp_set_num_threads(1)
    taken = []
    for query in queries:
        begun = time.perf_counter()
        segment.approximate(query[None], LIMIT, None, effort)
        taken.append(1e3 * (time.perf_counter() - begun))
    return np.array(taken)


def check_alike(ports: dict[str, int], queries: np.ndarray) -> None:
    """Make sure that all sides find the same tiles."""
    found = {}
    for side, port in ports.items():
        path, [body] = bodies(side, queries[:1], 1)
        answer = httpx.post(f"http://127.0.0.1:{port}{path}", content=body, headers={"content-type": "application/json"}, timeout=30)
        found[side] = [feature["id"] for feature in answer.json()["features"]]
    if len({tuple(ids) for ids in found.values()}) != 1:
        raise RuntimeError(f"the sides find different tiles: {found}")


def measured(folder: Path, ports: dict[str, int], queries: np.ndarray, *, rounds: int, seconds: float) -> dict[str, list[Load]]:
    """Put each load on each side in turn; return what came of `SIDE LOAD` in each round."""
    loads = {"alone": (1, 1), "single": (CONNECTIONS, 1), "batch": (CONNECTIONS, BATCH)}
    found: dict[str, list[Load]] = {f"{side} {name}": [] for side in ports for name in loads}
    for side in ports:
        for name, (_, batch) in loads.items():
            (folder / f"{side}-{name}.json").write_text(json.dumps(bodies(side, queries, batch)))
    for number in range(rounds + 1):  # the first warms up
        for name, (connections, _) in loads.items():
            for side, port in ports.items():
                came = load(port, folder / f"{side}-{name}.json", connections=connections, seconds=seconds)
                if came.failed:
                    raise RuntimeError(f"{side} failed {came.failed} requests")
                if number:
                    found[f"{side} {name}"].append(came)
    return found


def report(found: dict[str, list[Load]], raw: np.ndarray, kind: str, rows: int) -> dict[str, float]:
    """Print the table and return the figures."""
    middle = {
        name: {key: float(np.median([getattr(one, key) for one in of_name])) for key in Load.__slots__} for name, of_name in found.items()
    }
    p50, p99 = np.percentile(raw, [50, 99])
    print(f"{rows:,} vectors of {DIM}, kind {kind}; raw search {p50:.2f} ms at the median, {p99:.2f} ms at p99")
    print(f"{'side':<10}{'added p50':>12}{'added p99':>12}{'requests/s':>12}{'p50 / p99 ms':>18}{'queries/s in batches':>22}")
    figures: dict[str, float] = {"raw_p50_ms": float(p50), "raw_p99_ms": float(p99)}
    for side in SIDES:
        alone, single, batch = (middle[f"{side} {name}"] for name in ("alone", "single", "batch"))
        own = {
            "added_p50_ms": alone["p50_ms"] - p50, "added_p99_ms": alone["p99_ms"] - p99, "requests_per_s": single["per_second"],
            "single_p50_ms": single["p50_ms"], "single_p99_ms": single["p99_ms"], "batch_queries_per_s": BATCH * batch["per_second"],
        }  # fmt: skip
        spread = f"{own['single_p50_ms']:.1f} / {own['single_p99_ms']:.1f}"
        print(
            f"{side:<10}{own['added_p50_ms']:>12.2f}{own['added_p99_ms']:>12.2f}{own['requests_per_s']:>12,.0f}{spread:>18}{own['batch_queries_per_s']:>22,.0f}"
        )
        figures |= {f"{side}_{name}": value for name, value in own.items()}
    for name, key in (("single", "single_ratio"), ("batch", "batch_ratio")):
        pairs = zip(found[f"haproxy {name}"], found[f"bare {name}"], strict=True)
        figures[key] = float(np.median([one.per_second / other.per_second for one, other in pairs]))
    return {name: round(value, 4) for name, value in figures.items()}


def run(*, quick: bool) -> dict[str, float]:
    """Measure everything, print the table, and return the figures."""
    rows, rounds, seconds = (QUICK_ROWS, 3, 2.0) if quick else (ROWS, 5, 5.0)
    queries = clustered(BODIES, seed=3)
    with tempfile.TemporaryDirectory(prefix="serve-") as name, contextlib.ExitStack() as up:
        folder = Path(name)
        version, segment, effort = published(folder, rows)
        ports = {"bare": up.enter_context(bare(folder, version, segment.kind, effort))}
        ports |= {proxy: up.enter_context(ours(folder, proxy)) for proxy in SIDES[1:]}
        check_alike(ports, queries)
        found = measured(folder, ports, queries, rounds=rounds, seconds=seconds)
        raw = raw_ms(segment, effort, queries)
    return report(found, raw, segment.kind, rows)


def main() -> None:
    """Run from the command line."""
    options = command.parser("serve", __doc__, quick=f"{QUICK_ROWS:,} vectors, shorter and fewer rounds").parse_args()
    figures = run(quick=options.quick)
    print(f"requests/s behind HAProxy over bare uvicorn, one query each     {figures['single_ratio']:.2f}")
    print(f"queries/s behind HAProxy over bare uvicorn, {BATCH} queries each     {figures['batch_ratio']:.2f}")
    if options.json:
        command.end("serve", figures, ("rayjobs", "ray", "fastapi", "uvicorn", "numpy"))


if __name__ == "__main__":
    main()
