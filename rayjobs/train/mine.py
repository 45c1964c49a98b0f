"""Periodic distributed mining: every worker embeds its share of the training tiles with the current weights and searches all of them.

Tiles are embedded and searched in canonical blocks of sorted tile ids, whichever worker takes a block, so the table does not depend on
the number of workers. Memory per worker: the vectors of all training tiles (tiles x dim x 4 bytes) and one block of similarities.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from rayjobs.metric.mining import MinedBlock, mine
from rayjobs.metric.ranking import ExactRanking, canonical_blocks, one_thread
from rayjobs.train.distributed import agree_on_buffers, rank, share_rows, world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rayjobs.metric.guards import Guard
    from rayjobs.train.cache import ChipCache

_EMBED_BLOCK = 128
_SEARCH_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    """The hardest admissible negatives of every training tile, the same on every rank."""

    candidates: np.ndarray[Any, np.dtype[np.int64]]
    """(tiles, negatives) index of each negative, nearest first; -1 where there are fewer."""
    scores: np.ndarray[Any, np.dtype[np.float32]]
    """(tiles, negatives) cosine similarity; 0 where there is none."""
    refused: dict[str, int]
    """Candidates that each guard refused."""

    def table(self, tile_ids: Sequence[str]) -> pa.Table:
        """Return the mining table of the workspace: one row per anchor and negative."""
        anchors, ranks = np.nonzero(self.candidates >= 0)
        ids = np.asarray(tile_ids, dtype=object)
        return pa.table(
            {
                "anchor_id": pa.array(ids[anchors], pa.string()),
                "candidate_id": pa.array(ids[self.candidates[anchors, ranks]], pa.string()),
                "kind": pa.array(["negative"] * len(anchors), pa.string()),
                "rank": pa.array(ranks + 1, pa.int32()),
                "score": pa.array(self.scores[anchors, ranks], pa.float32()),
            }
        )


def from_table(table: pa.Table, tile_ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return `Mined.candidates` of a stored mining table."""
    index = {tile_id: number for number, tile_id in enumerate(tile_ids)}
    ranks = table["rank"].to_numpy()
    candidates = np.full((len(tile_ids), int(ranks.max()) if len(ranks) else 1), -1, np.int64)
    anchors = [index[tile_id] for tile_id in table["anchor_id"].to_pylist()]
    candidates[anchors, ranks - 1] = [index[tile_id] for tile_id in table["candidate_id"].to_pylist()]
    return candidates


@torch.inference_mode()
def embed_all(module: torch.nn.Module, cache: ChipCache, device: torch.device) -> torch.Tensor:
    """Embed every training tile, each rank its share of the canonical blocks; return (tiles, dim) float32 on the CPU, on every rank."""
    agree_on_buffers(module)
    training = module.training
    module.eval()
    count = len(cache.pixels)
    vectors: torch.Tensor | None = None
    for block in canonical_blocks(count, _EMBED_BLOCK)[rank() :: world_size()]:
        pixels = torch.from_numpy(np.array(cache.pixels[block])).to(device)
        embedded = module(pixels, torch.from_numpy(np.array(cache.valid[block])).to(device)).float()
        if vectors is None:
            vectors = torch.zeros(count, embedded.shape[1], device=device)
        vectors[block] = embedded
    if vectors is None:  # more ranks than blocks
        vectors = torch.zeros(count, module(*_one(cache, device)).shape[1], device=device)
    module.train(training)
    return share_rows(vectors).cpu()


def _one(cache: ChipCache, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(cache.pixels[:2])).to(device), torch.from_numpy(np.array(cache.valid[:2])).to(device)


def mine_all(vectors: torch.Tensor, guards: Sequence[Guard], *, negatives: int, max_candidates: int, device: torch.device) -> Mined:
    """Find every tile's nearest admissible negatives, each rank its share of the canonical blocks of queries."""
    count = len(vectors)
    ranking = ExactRanking(vectors, device)
    candidates = torch.zeros(count, negatives, dtype=torch.int64)
    scores = torch.zeros(count, negatives)
    refused = torch.zeros(len(guards), dtype=torch.int64)

    def mined(block: slice) -> tuple[slice, MinedBlock]:
        return block, mine(ranking, block, guards, negatives=negatives, max_candidates=max_candidates)

    for block, found in _in_threads(mined, canonical_blocks(count, _SEARCH_BLOCK)[rank() :: world_size()]):
        candidates[block] = torch.from_numpy(found.candidates)
        scores[block] = torch.from_numpy(found.scores)
        refused += torch.tensor([found.refused[guard.name] for guard in guards], dtype=torch.int64)
    for shared in (candidates, scores, refused):
        shared.copy_(share_rows(shared.to(device)).cpu())
    return Mined(
        candidates=candidates.numpy(),
        scores=scores.numpy(),
        refused={guard.name: int(count) for guard, count in zip(guards, refused, strict=True)},
    )


def _in_threads(mined: Callable[[slice], tuple[slice, MinedBlock]], blocks: Sequence[slice]) -> Iterator[tuple[slice, MinedBlock]]:
    """Mine blocks on all threads of this worker, each block on one: so its answer does not depend on how many there are."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, one_thread():
        yield from pool.map(mined, blocks)
