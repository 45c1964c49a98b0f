"""Mining of hard negatives, exact: ours beside a plain FAISS-flat script, on one thread each, and on two workers.

100,000 unit vectors of 128 dimensions in clusters, as embeddings are: tiles lie on a ground of half-overlapping squares, and near tiles are
of one cluster, so that the guards of overlap and distance refuse much of what is most similar. The plain script is what one would write:
an IndexFlatIP, searched in blocks for as many candidates as ours ranks at first, the same guards in numpy, and a longer search for the
anchors that were left short. Both must find the same negatives. Two workers are processes that share the work by torch.distributed.
The ratio of processor times stands beside that of seconds: it tells the same on a machine that does other things as well.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import command
from rayjobs.metric.guards import DistanceGuard, OverlapGuard
from rayjobs.train.mine import mine_all

if TYPE_CHECKING:
    from collections.abc import Callable

TILES, QUICK, DIM = 100_000, 20_000, 128
NEGATIVES, FIRST, CANDIDATES, MIN_DIST = 5, 120, 1024, 4.0
"""Negatives wanted, candidates ranked for all, candidates ranked for those left short (as ours does), least distance in tile sizes."""
BLOCK = 1024
WORDS = {"plain": "FAISS-flat script", "ours": "ours, 1 worker", "ours_2": "ours, 2 workers"}

Ground = tuple[np.ndarray, np.ndarray]


def made(tiles: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (tiles, 128) float32 of length 1 and (tiles, 3) centres of squares of side 1, half a side apart; in no order."""
    rng = np.random.default_rng(seed)
    side = round(np.ceil(np.sqrt(tiles)))
    place = rng.permutation(side * side)[:tiles]
    row, col = np.divmod(place, side)
    patch = (row // 6) * side + col // 6  # ground of one kind: 6 x 6 tiles
    kinds = rng.normal(size=(max(20, tiles // 200), DIM))
    of_patch = rng.integers(0, len(kinds), side * side)
    own = rng.normal(size=(side * side, DIM))  # what one patch has that others of its kind have not
    vectors = kinds[of_patch[patch]] + 0.7 * own[patch] + 0.7 * rng.normal(size=(tiles, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), np.column_stack([row / 2, col / 2, np.zeros(tiles)]).astype(np.float64)


def guards(positions: np.ndarray) -> list[Any]:
    """Return the guards of a training on such ground."""
    sizes = np.ones(len(positions))
    return [OverlapGuard(positions, sizes / 2**0.5), DistanceGuard(positions, sizes, min_dist=MIN_DIST)]


def plain(vectors: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return (tiles, negatives) found by the script that one would write for this task alone; -1 where there are fewer."""
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    found = np.full((len(vectors), NEGATIVES), -1, np.int64)
    for start in range(0, len(vectors), BLOCK):
        anchors = np.arange(start, min(start + BLOCK, len(vectors)))
        found[anchors] = searched(index, vectors, positions, anchors, FIRST)
        lacking = anchors[found[anchors, -1] < 0]
        if len(lacking):
            found[lacking] = searched(index, vectors, positions, lacking, CANDIDATES)
    return found


def searched(index: Any, vectors: np.ndarray, positions: np.ndarray, anchors: np.ndarray, count: int) -> np.ndarray:
    """Return (anchors, negatives): the first of `count` candidates that neither overlap nor are near."""
    _, candidates = index.search(vectors[anchors], count + 1)  # the anchor itself is among them
    apart = np.sqrt(((positions[anchors, None] - positions[candidates]) ** 2).sum(axis=2))
    admitted = (apart >= 2**0.5) & (apart >= MIN_DIST) & (candidates != anchors[:, None])
    order = np.argsort(~admitted, axis=1, kind="stable")[:, :NEGATIVES]
    return np.where(np.take_along_axis(admitted, order, axis=1), np.take_along_axis(candidates, order, axis=1), -1)


def ours(vectors: torch.Tensor, positions: np.ndarray) -> np.ndarray:
    """Return (tiles, negatives) found by this rank and the others."""
    torch.set_num_threads(1)
    return mine_all(vectors, guards(positions), negatives=NEGATIVES, max_candidates=CANDIDATES, device=torch.device("cpu")).candidates


def worker(rank: int, folder: str, tiles: int, rounds: int) -> None:
    """Mine on one of two ranks, each time when the driver has laid down a ticket."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    vectors, positions = made(tiles)
    shared = torch.from_numpy(vectors)
    for number in range(rounds):
        while not os.path.exists(f"{folder}/go{number}"):  # noqa: PTH110  asked thousands of times
            time.sleep(0.01)
        dist.barrier()
        begun = time.perf_counter()
        found = ours(shared, positions)
        taken = time.perf_counter() - begun
        if rank == 0:
            np.savez(f"{folder}/part.npz", found=found, taken=taken)
            os.replace(f"{folder}/part.npz", f"{folder}/done{number}.npz")  # noqa: PTH105  appears whole
        dist.barrier()
    dist.destroy_process_group()


def run(*, quick: bool) -> dict[str, float]:
    """Measure everything, print the table, and return the figures."""
    tiles, rounds = (QUICK, 3) if quick else (TILES, 5)
    vectors, positions = made(tiles)
    seconds: dict[str, list[float]] = {side: [] for side in WORDS}
    cpu: dict[str, list[float]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="mining-") as folder:
        workers = mp.spawn(worker, args=(folder, tiles, rounds), nprocs=2, join=False)
        shared = torch.from_numpy(vectors)
        for number in range(rounds):
            theirs = timed(seconds["plain"], cpu["plain"], lambda: plain(vectors, positions))
            alone = timed(seconds["ours"], cpu["ours"], lambda: ours(shared, positions))
            together = two_workers(folder, number, workers, seconds["ours_2"])
            check_alike(vectors, theirs, alone, together)
        while not workers.join():
            pass
    return report(tiles, *({side: np.array(of_side) for side, of_side in measured.items()} for measured in (seconds, cpu)))


def timed(seconds: list[float], cpu: list[float], work: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what work finds; note how long it takes, and the processor's time."""
    begun, of_cpu = time.perf_counter(), time.process_time()
    found = work()
    seconds.append(time.perf_counter() - begun)
    cpu.append(time.process_time() - of_cpu)
    return found


def two_workers(folder: str, number: int, workers: Any, seconds: list[float]) -> np.ndarray:
    """Have the two workers mine; return what they find."""
    with open(f"{folder}/go{number}", "x", encoding="utf-8"):  # noqa: PTH123
        pass
    while not os.path.exists(f"{folder}/done{number}.npz"):  # noqa: PTH110
        workers.join(timeout=0.05)  # tells of a worker that failed
    with np.load(f"{folder}/done{number}.npz") as done:
        seconds.append(float(done["taken"]))
        found: np.ndarray = done["found"]
    return found


def check_alike(vectors: np.ndarray, theirs: np.ndarray, alone: np.ndarray, together: np.ndarray) -> None:
    """Make sure that all sides find the same negatives: two workers to the byte, FAISS but for equal similarities and last bits."""
    if not np.array_equal(alone, together):
        raise RuntimeError("two workers find other negatives than one")
    rows, places = np.nonzero(theirs != alone)
    if (theirs[rows, places] < 0).any() or (alone[rows, places] < 0).any():
        raise RuntimeError("the sides find different numbers of negatives")
    exact = vectors.astype(np.float64)
    apart = np.einsum("pd,pd->p", exact[rows], exact[theirs[rows, places]] - exact[alone[rows, places]])
    if (np.abs(apart) > 1e-6).any():
        raise RuntimeError(f"the sides find different negatives: {int((np.abs(apart) > 1e-6).sum())}")


def report(tiles: int, seconds: dict[str, np.ndarray], cpu: dict[str, np.ndarray]) -> dict[str, float]:
    """Print the table and return the figures."""
    print(f"{tiles:,} tiles, {DIM} dimensions, {NEGATIVES} negatives each; medians of {len(seconds['ours'])} rounds, one thread per worker")
    print(f"{'side':<20}{'seconds':>10}{'anchors/s':>12}")
    for side, words in WORDS.items():
        print(f"{words:<20}{np.median(seconds[side]):>10.2f}{tiles / np.median(seconds[side]):>12,.0f}")
    figures = {
        "one_worker_ratio": np.median(seconds["plain"] / seconds["ours"]),
        "two_worker_scaling": np.median(seconds["ours"] / seconds["ours_2"]),
        "one_worker_cpu_ratio": np.median(cpu["plain"] / cpu["ours"]),
        "tiles": tiles,
        **{f"{side}_s": np.median(of_side) for side, of_side in seconds.items()},
        "ours_cpu_ns_per_pair": 1e9 * np.median(cpu["ours"]) / tiles**2,
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def main() -> None:
    """Run from the command line."""
    options = command.parser("mining", __doc__, quick="20,000 tiles, fewer rounds").parse_args()
    figures = run(quick=options.quick)
    print(f"FAISS script's seconds over ours, 1 worker  {figures['one_worker_ratio']:.2f}")
    print(f"their times of the processor, likewise      {figures['one_worker_cpu_ratio']:.2f}")
    print(f"seconds of 1 worker over those of 2         {figures['two_worker_scaling']:.2f}")
    if options.json:
        command.end("mining", figures, ("rayjobs", "torch", "numpy", command.FAISS))


if __name__ == "__main__":
    main()
