"""The `train` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section

Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


@section
class AugmentSection:
    """Random changes of the training tiles that do not change what they show; each tile's are its own."""

    symmetries: bool = True
    """Flips and right-angle rotations; oblong tiles keep their orientation."""
    rotate_degrees: Annotated[float, pydantic.Field(ge=0, le=180)] = 0.0
    """Greatest angle of a free rotation, either way; corners that come from outside the tile are invalid."""
    crop_scale: Annotated[tuple[Fraction, ...], pydantic.Field(min_length=2, max_length=2)] | None = None
    """Least and greatest share of a tile's area that a random crop keeps before it is brought back to the tile's size; null: no crop."""
    brightness: NotNegative = 0.0
    """Greatest shift of all bands of a tile together, in deviations of each band."""
    jitter: Fraction = 0.0
    """Greatest shift of each band by itself, in its deviations, and greatest relative change of its contrast about its mean."""
    band_dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Probability with which a band of a tile is replaced by its mean; one band always stays."""

    def __post_init__(self) -> None:
        """Refuse crops of nothing."""
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(f"crop_scale {list(self.crop_scale)} must be [least, greatest] with 0 < least <= greatest <= 1")


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
    """Peak rate of AdamW; rises over the warm-up and decays as a cosine."""
    backbone_rate: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 1.0
    """Learning rate of the backbone relative to that of the rest: 0.1 spares pretrained weights while a new projection finds its place."""
    warmup_epochs: NotNegative = 1.0
    """Epochs over which the rates rise from nothing; may be a fraction."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 1e-4
    """Of AdamW; norms and biases do not decay."""
    ema: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Decay of the running average of the weights, which is then what checkpoints hold, such as 0.999; 0: no average."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` takes bf16 on a GPU and on a CPU with matrix units for it."""
    augment: AugmentSection = AugmentSection()
    """Random changes of the training tiles."""
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
