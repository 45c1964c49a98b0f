"""Mining beside training: a Ray task embeds and searches with the newest checkpoint while the workers go on (Xiong et al., ANCE, 2021).

What it finds is a little out of date when it comes: the lag, in epochs, is a metric. Until it comes, the generation before it stays in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
import torch

from rayjobs.errors import StorageError
from rayjobs.models.checkpoint import from_files
from rayjobs.train import cache as chip_cache
from rayjobs.train.distributed import rank
from rayjobs.train.ground import ground_of, supervise, training_tiles
from rayjobs.train.mine import mined_with
from rayjobs.train.state import MinedTable, from_rank_zero, mined_table, publish_table, use_mined

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from rayjobs.train.state import State, TrainPlan


class BackgroundMining:
    """The mining under way beside a training run. Rank 0 begins it and takes what it found; every rank then uses it."""

    def __init__(self, plan: TrainPlan) -> None:
        """Begin with none under way."""
        self._plan = plan
        self._task: Any = None

    def begin(self, state: State) -> None:
        """Begin to mine with the newest checkpoint, on rank 0, unless mining is under way or that one's generation is in use."""
        settings = self._plan.experiment.mining
        newest = self._plan.experiment.open_workspace().checkpoints.current() if rank() == 0 and self._task is None else None
        if newest is not None and newest.manifest["epoch"] != state.generation:
            wanted = mine_checkpoint.options(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus)
            self._task = wanted.remote(self._plan, newest.version)

    def take(self, state: State, tile_ids: Sequence[str]) -> None:
        """Have every rank use what has been mined since, if anything has; it is published first."""
        generation = from_rank_zero(self._published() if rank() == 0 else None)
        if generation is not None:
            use_mined(self._plan, state, generation, tile_ids)
            self._plan.tell("took", generation=generation, epoch=state.epoch)

    def end(self) -> None:
        """Give up what is under way: nobody would use it."""
        if self._task is not None:
            ray.cancel(self._task, force=True)

    def _published(self) -> int | None:
        """Return the generation that has come and been published; training does without one that fails, which is said."""
        if self._task is None or not ray.wait([self._task], timeout=0)[0]:
            return None
        task, self._task = self._task, None
        try:
            table: MinedTable = ray.get(task)
            publish_table(self._plan, table)
        except (ray.exceptions.RayError, StorageError) as error:
            self._plan.tell("mining_failed", reason=str(error).strip().splitlines()[-1])
            return None
        return table.generation


@ray.remote(max_retries=0)
def mine_checkpoint(plan: TrainPlan, version: str) -> MinedTable:
    """Mine with a checkpoint's weights, on any node; return what is to be published as its generation."""
    checkpoint = plan.experiment.open_workspace().checkpoints.at(version)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = from_files(model_json=checkpoint.read("model.json"), tensors=checkpoint.read("model.safetensors"))
    tiles = training_tiles(plan.source, plan.experiment)
    ground = ground_of(tiles, plan.experiment)
    supervision, module = supervise(plan.experiment, ground), encoder.module.to(device)
    mined, seconds = mined_with(plan.experiment, ground, supervision, module, _chips(plan, tiles), device)
    generation = int(checkpoint.manifest["epoch"])
    plan.tell("mined", epoch=generation, refused=mined.refused, found=mined.counts, search=mined.search, **seconds)
    return mined_table(plan, mined, ground.tile_ids, generation=generation, encoder_fingerprint=encoder.fingerprint)


def _chips(plan: TrainPlan, tiles: pa.Table) -> chip_cache.ChipCache:
    """Return this node's chips, which a worker of training has brought here as a rule."""
    folder = chip_cache.cache_folder(plan.source, tiles, plan.spec.tile_size)
    if not folder.exists():
        chips = chip_cache.chip_dataset(plan.source, tiles, plan.spec.tile_size)
        chip_cache.fill(folder, chips.iter_batches(batch_size=256, batch_format="numpy"), tiles.num_rows)
    return chip_cache.opened(folder)
