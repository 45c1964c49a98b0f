"""The `train` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section


@section
class TrainSection:
    """How long, on what and how fast to train."""

    supervision: Literal["geography", "labels"] = "geography"
    """`geography`: near tiles are alike and distant ones are not (Tile2Vec); `labels`: tiles of one class are alike."""
    epochs: Annotated[int, pydantic.Field(ge=1)] = 10
    """Passes over the training tiles."""
    steps_per_epoch: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Default: as many batches as the training tiles fill."""
    batch_size: Annotated[int, pydantic.Field(ge=4)] = 128
    """Tiles per step, over all workers."""
    tiles_per_group: Annotated[int, pydantic.Field(ge=2)] = 2
    """Tiles that are alike in a batch: a tile and its neighbours, or K of one class."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    """Peak rate of AdamW; warms up over the first epoch and decays as a cosine."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-4
    """Of AdamW."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` takes bf16 on a GPU and on a CPU with matrix units for it."""
    augment: bool = True
    """Flips and right-angle rotations."""
    checkpoint_every: Annotated[int, pydantic.Field(ge=1)] = 1
    """Epochs between checkpoints."""
    keep_checkpoints: Annotated[int, pydantic.Field(ge=1)] = 2
    """Newest checkpoints that stay."""
    num_workers: Annotated[int, pydantic.Field(ge=1)] = 1
    """Workers of Ray Train."""
    cpus_per_worker: Annotated[int, pydantic.Field(ge=1)] | None = None
    """CPUs of each worker; default an even share of the cluster's."""
    max_failures: Annotated[int, pydantic.Field(ge=0)] = 3
    """Restarts of the worker group before the run fails."""
    seed: int = 0
    """Of initial weights, batches and augmentation."""

    def __post_init__(self) -> None:
        """Check that batches divide."""
        if self.batch_size % (self.tiles_per_group * self.num_workers):
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of tiles_per_group x num_workers "
                f"= {self.tiles_per_group * self.num_workers}; change one of the three"
            )
