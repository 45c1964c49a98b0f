"""Periodic distributed mining: every worker embeds its share of the training tiles with the current weights and searches all of them.

Only tiles that have one alike are mined, and they alone are candidates: others never come into a batch as anchors or as their negatives.
Tiles are embedded and searched in canonical blocks of sorted tile ids, whichever worker takes a block and on however many threads, so the
table does not depend on the number of workers. On a GPU its last bits are the GPU's.

Memory of a worker, nothing of it tiles x tiles (`host_bytes`; docs/scale.md has the numbers of a large set). For N tiles, A of them mined,
d dimensions, n mined tiles each, and t threads:

- throughout: 8 N n bytes of the generation in use, and about 160 N of the ground of the tiles, whose ids are 20 characters;
- vectors: 4 A d bytes, twice while they are gathered; on a GPU that searches as many again there, and up to 2 x (4 A d + 8 A) for the index
  that takes the place of exact search above `mining.exact_up_to` tiles;
- what is found: 12 N n bytes, twice while it is gathered;
- a block of 512 anchors in each thread: 16 MiB of scores (128 MiB on a GPU), and 24 KiB x `max_candidates` of candidates;
- on rank 0, when the vectors are gone: the file of the table, at most 56 N n bytes;
- on a rank that reads a published generation (after a restart; on rank 0 one that was mined beside training): the file, and its table
  of about 84 N n bytes.
"""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from rayjobs.metric.indexed import IndexedRanking, cells_of, learn_cells, number_of_cells
from rayjobs.metric.mining import MinedBlock, MinedPositives, mine, mine_positives
from rayjobs.metric.ranking import ExactRanking, canonical_blocks, check_finite, one_thread
from rayjobs.train.batches import HardTiles
from rayjobs.train.distributed import agree_on_buffers, rank, share_rows, world_size
from rayjobs.train.ground import guards_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.metric.guards import Guard
    from rayjobs.metric.section import MiningSection
    from rayjobs.train.batches import Supervision
    from rayjobs.train.ground import Ground
    from rayjobs.train.shown import Inputs, Shown

T = TypeVar("T")

IntArray = np.ndarray[Any, np.dtype[np.int64]]

_EMBED_BLOCK = {"cpu": 8, "cuda": 128}
"""Tiles embedded at a time; few where each thread has a block of its own, and what its layers give beside it."""
_SEARCH_BLOCK = 512
_TABLE_BLOCK = 65_536
"""Anchors whose rows of the table are made at a time."""
SCHEMA = pa.schema(
    [
        ("anchor_id", pa.string()),
        ("candidate_id", pa.string()),
        ("kind", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
    ]
)
"""Of the mining table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    """The hardest admissible negatives of every training tile, the same on every rank."""

    candidates: np.ndarray[Any, np.dtype[np.int64]]
    """(tiles, negatives) index of each negative, nearest first; -1 where there are fewer."""
    scores: np.ndarray[Any, np.dtype[np.float32]]
    """(tiles, negatives) cosine similarity; 0 where there is none."""
    positives: np.ndarray[Any, np.dtype[np.int64]]
    """(tiles, positives) index of each hard positive, least similar first; -1 where there are fewer."""
    positive_scores: np.ndarray[Any, np.dtype[np.float32]]
    """(tiles, positives) cosine similarity; 0 where there is none."""
    refused: dict[str, int]
    """Candidates that each guard refused."""
    search: str
    """Which search was taken, for the log."""

    @property
    def counts(self) -> dict[str, int]:
        """How many were found."""
        return {"negatives": int((self.candidates >= 0).sum()), "positives": int((self.positives >= 0).sum())}

    def of_set(self, rows: IntArray, tiles: int) -> Mined:
        """Return what was found of some tiles of a set, in the set's numbers; nothing of its other tiles.

        Args:
            rows: (these tiles,) number of each in the set, ascending.
            tiles: of the set.
        """
        if len(rows) == tiles:
            return self
        numbers = np.append(rows, -1)
        return replace(
            self,
            candidates=_spread(numbers[self.candidates], rows, tiles, -1),
            scores=_spread(self.scores, rows, tiles, 0),
            positives=_spread(numbers[self.positives], rows, tiles, -1),
            positive_scores=_spread(self.positive_scores, rows, tiles, 0),
        )

    @property
    def anchors(self) -> int:
        """How many tiles have a mined negative."""
        return int((self.candidates >= 0).any(axis=1).sum())

    @property
    def hard_tiles(self) -> HardTiles:
        """What batches take of it: what `from_table` reads from its table."""
        return HardTiles(negatives=_filled(self.candidates), positives=_filled(self.positives))

    def table(self, tile_ids: Sequence[str]) -> pa.Table:
        """Return the mining table of the workspace: one row per anchor and negative, then one per anchor and positive."""
        return pa.concat_tables([SCHEMA.empty_table(), *self._parts(tile_ids)])

    def parquet(self, tile_ids: Sequence[str]) -> bytes:
        """Return the mining table as a file, made some anchors at a time: as a whole it would take much more memory."""
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, SCHEMA) as writer:
            for part in self._parts(tile_ids):
                writer.write_table(part)
        return buffer.getvalue()

    def _parts(self, tile_ids: Sequence[str]) -> Iterator[pa.Table]:
        ids = pa.array(tile_ids, pa.string())
        for kind, candidates, scores in (("negative", self.candidates, self.scores), ("positive", self.positives, self.positive_scores)):
            for block in canonical_blocks(len(candidates), _TABLE_BLOCK) if candidates.shape[1] else ():
                yield _rows(kind, candidates[block], scores[block], ids, block.start)


def _filled(found: IntArray) -> IntArray:
    """Return the columns in which anything was found, which come first."""
    return found[:, : int((found >= 0).any(axis=0).sum())]


def _spread(found: np.ndarray[Any, Any], rows: IntArray, tiles: int, absent: int) -> np.ndarray[Any, Any]:
    every = np.full((tiles, found.shape[1]), absent, found.dtype)
    every[rows] = found
    return every


def _rows(kind: str, candidates: np.ndarray[Any, Any], scores: np.ndarray[Any, Any], ids: pa.Array, first: int) -> pa.Table:
    """Return the rows of some anchors, that of index `first` and those after it."""
    anchors, ranks = np.nonzero(candidates >= 0)
    columns = {
        "anchor_id": ids.take(pa.array(anchors + first)),
        "candidate_id": ids.take(pa.array(candidates[anchors, ranks])),
        "kind": pa.repeat(pa.scalar(kind, pa.string()), len(anchors)),
        "rank": pa.array(ranks + 1, pa.int32()),
        "score": pa.array(scores[anchors, ranks], pa.float32()),
    }
    return pa.table(columns, SCHEMA)


def from_table(table: pa.Table, tile_ids: Sequence[str]) -> HardTiles:
    """Return what a mining table of these tiles says of each; one that was stored is looked at first, by `rayjobs.train.layout`."""
    ids = pa.array(tile_ids, pa.string())
    anchors, candidates = (pc.index_in(table[name], value_set=ids).to_numpy() for name in ("anchor_id", "candidate_id"))
    ranks = table["rank"].to_numpy()
    found = {}
    for kind in ("negative", "positive"):
        rows = np.flatnonzero(pc.equal(table["kind"], kind).to_numpy())
        found[kind] = np.full((len(tile_ids), int(ranks[rows].max(initial=0))), -1, np.int64)
        found[kind][anchors[rows], ranks[rows] - 1] = candidates[rows]
    return HardTiles(negatives=found["negative"], positives=found["positive"])


def host_bytes(settings: MiningSection, *, tiles: int, anchors: int, dim: int, threads: int = 1) -> int:
    """Return the most that mining holds in the memory of a worker, by the formula of docs/scale.md.

    Args:
        settings: of mining.
        tiles: of the training split.
        anchors: tiles among them that have one alike: those that are mined.
        dim: of the embeddings.
        threads: of the worker.
    """
    wanted, vectors = settings.negatives + settings.positives, 4 * anchors * dim
    index = 2 * (vectors + 8 * anchors) if anchors > settings.exact_up_to else 0
    blocks = threads * _SEARCH_BLOCK * (4 * 8192 + 48 * settings.max_candidates)
    searching = vectors + index + 24 * tiles * wanted + blocks
    publishing = (12 + 56) * tiles * wanted
    return 160 * tiles + 8 * tiles * wanted + max(2 * vectors, searching, publishing)


@torch.inference_mode()
def embed_all(module: torch.nn.Module, shown: Shown, device: torch.device, rows: IntArray | None = None) -> torch.Tensor:
    """Embed training tiles, each rank its share of the canonical blocks.

    Args:
        module: the encoder, or that part of it which takes what is shown.
        shown: of all training tiles.
        device: where the module is.
        rows: (tiles,) indices of those that are embedded, ascending; None for all.

    Returns:
        (tiles, dim) float32 on the CPU, on every rank.
    """
    agree_on_buffers(module)
    training = module.training
    module.eval()
    rows = np.arange(len(shown)) if rows is None else rows
    blocks = embed_blocks(len(rows), device)[rank() :: world_size()]
    vectors: torch.Tensor | None = None
    for block, embedded in embed_each(module, partial(shown.read, device=device), device, rows, blocks):
        if vectors is None:
            vectors = torch.zeros(len(rows), embedded.shape[1], device=device)
        vectors[block] = embedded
    if vectors is None:  # more ranks than blocks
        vectors = torch.zeros(len(rows), module(*shown.read(rows[:2], device)).shape[1], device=device)
    module.train(training)
    return share_rows(vectors).cpu()


def embed_blocks(count: int, device: torch.device) -> list[slice]:
    """Return the canonical blocks in which so many tiles are embedded."""
    return canonical_blocks(count, _EMBED_BLOCK[device.type])


def embed_each(
    module: torch.nn.Module, read: Callable[[IntArray], Inputs], device: torch.device, rows: IntArray, blocks: Sequence[slice]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Embed blocks of the tiles `rows`: on a GPU one after the other, on a processor each on a thread of its own.

    Args:
        module: is called with what `read` returns of the tiles of a block.
        read: from (tiles,) indices.
        device: where the module is.
        rows: (tiles,) indices.
        blocks: of `rows`.

    Returns:
        each block with its embeddings (tiles of the block, dim) float32 on the device.
    """
    on_gpu = device.type != "cpu"
    encode = module if on_gpu else module.forward  # a compiled call would be compiled anew for other threads and sizes

    @torch.inference_mode()
    def embedded(block: slice) -> tuple[slice, torch.Tensor]:
        return block, encode(*read(rows[block])).float()

    return map(embedded, blocks) if on_gpu else _in_threads(embedded, blocks)


def mined_with(
    experiment: Experiment, ground: Ground, supervision: Supervision, module: torch.nn.Module, shown: Shown, device: torch.device
) -> tuple[Mined, dict[str, float]]:
    """Mine the tiles that may be anchors, among each other, with a network that takes what is shown of them, as the experiment says.

    Returns:
        what was found, of all tiles; and the seconds that embedding and search took.
    """
    settings, rows = experiment.mining, np.sort(supervision.anchors)
    begun = time.monotonic()
    vectors = embed_all(module, shown, device, rows)
    embedded = time.monotonic()
    mined = mine_all(
        vectors,
        guards_of(experiment, ground.of(rows)),
        negatives=settings.negatives,
        max_candidates=settings.max_candidates,
        device=device,
        positives=settings.positives,
        known=_KnownAmong(supervision, rows, len(ground.tile_ids)) if _asks_positives(settings) else None,
        skip_in_top=settings.skip_in_top,
        exact_up_to=settings.exact_up_to,
    )
    return mined.of_set(rows, len(ground.tile_ids)), {"mine/embed_s": embedded - begun, "mine/search_s": time.monotonic() - embedded}


def _asks_positives(settings: MiningSection) -> bool:
    """Tell whether mining compares anchors with their known positives."""
    return bool(settings.positives or settings.beyond_positives or settings.skip_in_top)


class _KnownAmong:
    """The known positives of some of the training tiles, numbered as they are."""

    def __init__(self, supervision: Supervision, rows: IntArray, tiles: int) -> None:
        self._known, self._rows = supervision.known_positives, rows
        self._numbers = np.full(tiles, -1, np.int64)
        self._numbers[rows] = np.arange(len(rows))

    def __call__(self, anchor: int, most: int) -> IntArray:
        found = self._numbers[self._known(int(self._rows[anchor]), most)]
        kept: IntArray = found[found >= 0]
        return kept


def mine_all(
    vectors: torch.Tensor,
    guards: Sequence[Guard],
    *,
    negatives: int,
    max_candidates: int,
    device: torch.device,
    positives: int = 0,
    known: Callable[..., IntArray] | None = None,
    skip_in_top: int | None = None,
    exact_up_to: int = 3_000_000,
) -> Mined:
    """Find every tile's hardest negatives and positives, each rank its share of the canonical blocks of anchors.

    Args:
        vectors: (tiles, dim) float32 of length 1, on the CPU, the same on every rank.
        guards: which candidates are no negatives, asked in this order.
        negatives: wanted per tile.
        max_candidates: most similar tiles that are looked at per tile; and most of its known positives.
        device: where to compare.
        positives: wanted per tile.
        known: as `Supervision.known_positives`; None where nobody asks.
        skip_in_top: as `rayjobs.metric.mining.mine`.
        exact_up_to: tiles above which an index is searched.

    Raises:
        TrainingError: on all ranks, if a vector is not finite.
    """
    check_finite(vectors)
    ranking = ExactRanking(vectors, device) if len(vectors) <= exact_up_to else _indexed(vectors, device)
    bounded = known and partial(known, most=max_candidates)
    tables = _Tables(len(vectors), negatives, positives, guards)

    def mined(block: slice) -> tuple[slice, MinedBlock, MinedPositives | None]:
        alike = None if bounded is None else mine_positives(vectors, block, bounded, positives=positives)
        found = mine(
            ranking,
            block,
            guards,
            negatives=negatives,
            max_candidates=max_candidates,
            ceilings=None if alike is None else alike.ceilings,
            floors=None if alike is None else alike.floors,
            skip_in_top=skip_in_top,
        )
        return block, found, alike

    for part in _in_threads(mined, canonical_blocks(len(vectors), _SEARCH_BLOCK)[rank() :: world_size()]):
        tables.take(*part)
    return tables.shared(device, ranking.described)


def _indexed(vectors: torch.Tensor, device: torch.device) -> IndexedRanking:
    """Return an index of the tiles: its cells learned by rank 0, the tiles sorted into them by all ranks."""
    cells = number_of_cells(len(vectors))
    centres = learn_cells(vectors) if rank() == 0 else torch.zeros(cells, vectors.shape[1])
    centres = share_rows(centres.to(device)).cpu()
    of_tile = torch.zeros(len(vectors), dtype=torch.int64)
    for block in canonical_blocks(len(vectors), _SEARCH_BLOCK)[rank() :: world_size()]:
        of_tile[block] = cells_of(vectors[block], centres)
    return IndexedRanking(vectors, centres, share_rows(of_tile.to(device)).cpu())


def _in_threads(work: Callable[[slice], T], blocks: Sequence[slice]) -> Iterator[T]:
    """Work at blocks on all threads of this worker, each block on one: so its answer does not depend on how many there are."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool, one_thread():
        yield from pool.map(work, blocks)


class _Tables:
    """What this rank has mined, to be shared with the others; zeros where it mined nothing."""

    def __init__(self, tiles: int, negatives: int, positives: int, guards: Sequence[Guard]) -> None:
        self._indices = torch.zeros(tiles, negatives + positives, dtype=torch.int64)
        self._scores = torch.zeros(tiles, negatives + positives)
        self._refused = torch.zeros(len(guards), dtype=torch.int64)
        self._negatives, self._names = negatives, [guard.name for guard in guards]

    def take(self, block: slice, found: MinedBlock, alike: MinedPositives | None) -> None:
        """Take what one block of anchors has found."""
        self._refused += torch.tensor([found.refused[name] for name in self._names], dtype=torch.int64)
        for part, first in ((found, 0), (alike, self._negatives)):
            if part is not None:
                columns = slice(first, first + part.candidates.shape[1])
                self._indices[block, columns] = torch.from_numpy(part.candidates)
                self._scores[block, columns] = torch.from_numpy(part.scores)

    def shared(self, device: torch.device, search: str) -> Mined:
        """Return what all ranks have mined."""
        indices, scores, refused = (share_rows(part.to(device)).cpu().numpy() for part in (self._indices, self._scores, self._refused))
        return Mined(
            candidates=indices[:, : self._negatives],
            scores=scores[:, : self._negatives],
            positives=indices[:, self._negatives :],
            positive_scores=scores[:, self._negatives :],
            refused=dict(zip(self._names, refused.tolist(), strict=True)),
            search=search,
        )
