"""The `train` and `adaptation` sections of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section
from rayjobs.workspace import ArtefactName

Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Count = Annotated[int, pydantic.Field(ge=1)]
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
    noise: NotNegative = 0.0
    """Greatest deviation of Gaussian noise added to each pixel, in deviations of each band; each tile's is drawn from 0 to that."""

    def __post_init__(self) -> None:
        """Refuse crops of nothing."""
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(f"crop_scale {list(self.crop_scale)} must be [least, greatest] with 0 < least <= greatest <= 1")

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return any(vars(self).values())


@section
class AdaptationSection:
    """Another set of the same bands, without labels, to which an encoder with `model.domain_whitening` is adapted while it trains.

    Each step also passes a random batch of it through the target's whitening and the projection (Roy et al., 2019). The batch norms of a
    backbone that is not frozen see both sets.
    """

    target: ArtefactName | None = None
    """Name of a set in the workspace; tiles of its train split alone are shown. null: none, and both statistics are of the training
    tiles."""
    term: Literal["entropy", "consensus"] = "entropy"
    """What is made small, of the softmax over the numbers of an embedding (with `projection: hash`, over h): its `entropy`; or the
    min-entropy `consensus` of two views of each tile, which `train.augment` makes. Of numbers between 0 and 1 the softmax is nearly even
    whatever they are, so that it teaches little; the statistics are what helps."""
    weight: NotNegative = 1.0
    """Of the term, beside the loss; 0: the target's statistics alone."""


@section
class PoolSection:
    """Which of the training tiles are used, by their class: the dominant one with `supervision: proportions`."""

    per_class: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Most tiles of a class, the same ones each time; null: all."""
    min_per_class: Annotated[int, pydantic.Field(ge=1)] = 1
    """Classes with fewer tiles are left out."""

    @property
    def everything(self) -> bool:
        """Whether all training tiles are used."""
        return self.per_class is None and self.min_per_class == 1


@section
class TrainSection:
    """How long, on what and how fast to train."""

    supervision: Literal["geography", "labels", "proportions", "places", "views"] = "geography"
    """`geography`: near tiles are alike and distant ones are not (Tile2Vec); `labels`: tiles of one class are alike; `proportions`: tiles
    that share most of what a label map says of them are alike; `places`: tiles of one place (`tiles.place_tolerance`) on several dates are
    alike, and those of other places, the neighbouring ones among them, are not; `views`: versions of one tile that `augment` makes are
    alike, and all other tiles are not (SimCLR): neither labels nor ground are asked."""
    labels_from: ArtefactName | None = None
    """With `supervision: labels`, a taxonomy of the workspace: the labels that people gave count, as they are when the run begins, in place
    of the set's own, and tiles without one are left out. null: the set's own."""
    min_pos_shared: Fraction = 0.8
    """With `supervision: proportions`, least share of their classes that alike tiles have in common: the sum over classes of the lesser."""
    max_neg_shared: Fraction = 0.5
    """Likewise, greatest such share of two tiles that count as different; between the two nothing is claimed."""
    pool: PoolSection = PoolSection()
    """Bounds on the number of training tiles of a class."""
    epochs: Annotated[int, pydantic.Field(ge=1, le=9999)] = 10
    """Rounds, each of `steps_per_epoch` batches, between which mining, checkpoints and metrics fall."""
    steps_per_epoch: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Default: as many batches as make each tile that has another alike the anchor of one group."""
    batch_size: Annotated[int, pydantic.Field(ge=4)] = 128
    """Tiles per step, over all workers: P x K, so that P = batch_size / tiles_per_group groups meet in a batch."""
    tiles_per_group: Annotated[int, pydantic.Field(ge=2)] = 2
    """K, the tiles of a group, which are alike: a tile and its neighbours, tiles of one class or mixture, or versions of one tile. The P
    groups of a batch are of different (dominant) classes where there are P classes, and all classes come equally often; mined negatives
    that join may repeat one."""
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
    loss_memory_mib: Annotated[int, pydantic.Field(ge=1)] = 512
    """Most memory of each worker for comparing its anchors with the tiles of the batch, and with the memory of past ones: where it is not
    enough, anchors are taken some at a time, and computed twice. Miners that list every triplet take more (`semi_hard` with
    `negatives: all`); quadruplets, and losses on classes or clusters, compare the whole batch at once."""
    micro_batch: Annotated[int, pydantic.Field(ge=2)] | None = None
    """Most tiles that a worker embeds at a time with a graph, for shares of a batch that do not fit its memory: the loss stays that of the
    whole batch, at the price of one more forward pass (GradCache; Gao et al. 2021). Batch norms then see parts. null: all at once."""
    activation_checkpointing: bool = False
    """Keep few of the backbone's activations and compute the others again on the way back, for large backbones; batch norms' running
    statistics then move twice as fast."""
    sync_batch_norm: bool = False
    """Batch norms take their statistics over all workers' tiles instead of each worker's own; on GPUs alone."""
    frozen_features: Annotated[int, pydantic.Field(ge=0, le=256)] = 0
    """With `model.freeze: all`, versions of each tile of which the backbone's features are computed once, before training, and kept in the
    workspace for all runs on the same tiles and backbone; steps, mining and validation then run the projection alone. 1: of the tile as it
    is, so that nothing is augmented; more: further ones, changed by `augment`, of which each place of a batch draws one. 0: none, the
    backbone sees each batch anew."""
    compile: bool = False
    """Compile the network (`torch.compile`), which takes minutes at the start and wants a C++ compiler on every node."""
    augment: AugmentSection = AugmentSection()
    """Random changes of the training tiles."""
    checkpoint_every: Annotated[int, pydantic.Field(ge=1)] = 1
    """Epochs between checkpoints."""
    checkpoint_steps: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Steps between further checkpoints within an epoch; null: none, but when a node is about to be taken away."""
    ask_every: Annotated[int, pydantic.Field(ge=1)] = 20
    """Steps between questions to the cluster and the driver whether training is about to be cut off (some milliseconds each): then a
    checkpoint is written at once."""
    keep_checkpoints: Annotated[int, pydantic.Field(ge=1)] = 2
    """Newest checkpoints that stay."""
    num_workers: Count | Annotated[tuple[Count, ...], pydantic.Field(min_length=2, max_length=2)] = 1
    """Workers of Ray Train; `[least, most]`: as many as the cluster has room for while it grows and shrinks; the batches stay the same."""
    cpus_per_worker: Annotated[int, pydantic.Field(ge=1)] | None = None
    """CPUs of each worker; default an even share of the cluster's."""
    max_failures: Annotated[int, pydantic.Field(ge=0)] = 3
    """Restarts of the worker group before the run fails."""
    seed: int = 0
    """Of initial weights, batches and augmentation."""

    def __post_init__(self) -> None:
        """Check that batches divide, and that keys go together."""
        if self.batch_size % self.tiles_per_group:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of tiles_per_group {self.tiles_per_group}; change one of the two"
            )
        least, most = self.workers
        if least > most:
            raise ValueError(f"num_workers [{least}, {most}] must be [least, most]; turn them round")
        if self.batch_size < 2 * most:
            raise ValueError(f"batch_size {self.batch_size} gives {most} workers less than two tiles each; raise it, or lower num_workers")
        if self.max_neg_shared > self.min_pos_shared:
            raise ValueError(f"max_neg_shared {self.max_neg_shared} is above min_pos_shared {self.min_pos_shared}; lower it")
        if self.labels_from is not None and self.supervision != "labels":
            raise ValueError(f"labels_from names labels, and supervision: {self.supervision} asks for none; set supervision: labels")
        if self.supervision == "views" and not self.augment.changes:
            raise ValueError("with supervision: views a group is one tile, whose versions augment makes, and all of augment is off")
        if self.supervision in {"geography", "places", "views"} and not self.pool.everything:
            raise ValueError(
                f"pool is by class, and supervision: {self.supervision} knows none; drop it, or set supervision: labels or proportions"
            )

    @property
    def workers(self) -> tuple[int, int]:
        """Least and most workers."""
        if isinstance(self.num_workers, int):
            return self.num_workers, self.num_workers
        least, most = self.num_workers
        return least, most
