"""Mining beside training: a Ray task embeds and searches with the newest checkpoint while the workers go on (Xiong et al., ANCE, 2021).

What it finds is a little out of date when it comes: the lag, in epochs, is a metric. Until it comes, the generation before it stays in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
import torch

from rayjobs.cluster.failures import own_error
from rayjobs.errors import CheckpointError, NotFoundError, StorageError
from rayjobs.models.checkpoint import from_files
from rayjobs.train import cache as chip_cache
from rayjobs.train.distributed import from_rank_zero, rank
from rayjobs.train.ground import ground_of, supervise, training_tiles
from rayjobs.train.mine import mined_with
from rayjobs.train.state import MinedTable, make_way, mined_table, publish_table, published_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from rayjobs.storage import Version
    from rayjobs.train.batches import HardTiles
    from rayjobs.train.shown import ChipCache
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
        newest = self._newest() if rank() == 0 and self._task is None else None
        if newest is not None and newest.manifest["epoch"] != state.generation:
            wanted = mine_checkpoint.options(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus)
            self._task = wanted.remote(self._plan, newest.version)

    def take(self, state: State, tile_ids: Sequence[str]) -> None:
        """Have every rank use what has been mined since, if anything has; it is published first. Rank 0 hands it to the others."""
        taken = from_rank_zero(self._published(tile_ids) if rank() == 0 else None)
        if taken is not None:
            state.generation, state.mined = taken
            self._plan.tell("took", generation=state.generation, epoch=state.epoch)

    def end(self) -> None:
        """Give up what is under way: nobody would use it."""
        if self._task is not None:
            ray.cancel(self._task, force=True)

    def _newest(self) -> Version | None:
        try:
            return self._plan.experiment.open_workspace().checkpoints.current()
        except StorageError as error:
            self._say_failed(error)
            return None

    def _say_failed(self, error: Exception) -> None:
        self._plan.tell("mining_failed", reason=str(own_error(error) or error).strip().splitlines()[-1])

    def _published(self, tile_ids: Sequence[str]) -> tuple[int, HardTiles] | None:
        """Return the generation that has come and been published; training does without one that fails, which is said."""
        if self._task is None or not ray.wait([self._task], timeout=0)[0]:
            return None
        task, self._task = self._task, None
        try:
            table: MinedTable = ray.get(task)
            make_way(self._plan, table.generation, tile_ids)
            publish_table(self._plan, table)
            return table.generation, published_tiles(self._plan, table.generation, tile_ids)
        except (ray.exceptions.RayError, StorageError, CheckpointError) as error:
            self._say_failed(error)
            return None


@ray.remote(max_retries=0)
def mine_checkpoint(plan: TrainPlan, version: str) -> MinedTable:
    """Mine with a checkpoint's weights, on any node; return what is to be published as its generation.

    Raises:
        StorageError: storage fails, or training has removed the checkpoint since, as it does where this task waited for room.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        checkpoint = plan.experiment.open_workspace().checkpoints.at(version)
        encoder = from_files(model_json=checkpoint.read("model.json"), tensors=checkpoint.read("model.safetensors"))
    except NotFoundError as error:
        raise StorageError(f"checkpoint {version} was removed before mining read it; raise train.keep_checkpoints") from error
    tiles = training_tiles(plan.source, plan.experiment)
    ground = ground_of(tiles, plan.experiment)
    supervision, module = supervise(plan.experiment, ground), encoder.module.to(device)
    mined, seconds = mined_with(plan.experiment, ground, supervision, module, _chips(plan, tiles), device)
    generation = int(checkpoint.manifest["epoch"])
    plan.tell("mined", epoch=generation, refused=mined.refused, found=mined.counts, search=mined.search, **seconds)
    return mined_table(plan, mined, ground.tile_ids, generation=generation, encoder_fingerprint=encoder.fingerprint)


def _chips(plan: TrainPlan, tiles: pa.Table) -> ChipCache:
    """Return this node's chips, which a worker of training has brought here as a rule."""
    shape = plan.spec.tile_size, plan.spec.maps_of(len(plan.spec.bands))
    folder = chip_cache.cache_folder(plan.source, tiles, *shape)
    if not folder.exists():
        chips = chip_cache.chip_dataset(plan.source, tiles, *shape)
        chip_cache.fill(folder, chips.iter_batches(batch_size=256, batch_format="numpy"), tiles.num_rows)
    return chip_cache.opened(folder)
