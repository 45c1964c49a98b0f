"""The loss on tiles that do not train, and when it has stopped falling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import torch

from rayjobs.errors import ConfigError, TrainingError
from rayjobs.metric.losses import LOSSES, ClassLoss
from rayjobs.tiles.table import read_tiles
from rayjobs.train.augment import Draws
from rayjobs.train.batches import EpochPlan, dealt, plan_epoch
from rayjobs.train.distributed import agree_on_buffers, gather, share_of, total
from rayjobs.train.given_labels import labelled
from rayjobs.train.ground import ground_of, supervise
from rayjobs.train.objective import Batch, Objective, needs_clusters
from rayjobs.train.step import precision

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version
    from rayjobs.train.batches import Supervision
    from rayjobs.train.ground import Ground
    from rayjobs.train.shown import Inputs, IntArray, Shown
    from rayjobs.train.state import State, TrainPlan


def check_patience(experiment: Experiment, source: Version, trained: Ground, *, watched: bool) -> None:
    """Refuse patience where there is no loss on held-out tiles to wait for.

    Args:
        experiment: with its `train.patience`.
        source: the set.
        trained: what is known of the training tiles.
        watched: whether somebody measures the run after each epoch, as a sweep does.

    Raises:
        ConfigError: says why.
    """
    if experiment.train.patience is None:
        return
    if watched:
        raise ConfigError("train.patience ends single runs; a sweep ends trials that fall behind (tune.scheduler): leave patience at null")
    if experiment.model.projection == "hash" or needs_clusters(experiment):
        raise ConfigError(
            "train.patience looks at the loss of the val split, which is not known where embeddings are rounded (model.projection: hash) "
            "or compared with clusters of the training tiles (loss.kind: magnet); leave patience at null"
        )
    try:
        _alike(held_out_tiles(source, experiment), experiment, trained)
    except TrainingError as error:
        raise ConfigError(
            f"train.patience looks at the loss of the val split, which its tiles do not tell (as training tiles: {error}); "
            "label or sample more of them, or leave patience at null"
        ) from error


def held_out_tiles(source: Version, experiment: Experiment) -> pa.Table:
    """Return the rows of the validation split, sorted by tile id, with the labels that training goes by.

    Raises:
        ConfigError: it has no tile.
        TrainingError: nobody has labelled any of them, where people's labels count.
    """
    tiles = read_tiles(source.read("tiles.parquet"))
    tiles = tiles.filter(pc.equal(tiles["split"], "val")).sort_by("tile_id")
    if not tiles.num_rows:
        raise ConfigError("train.patience looks at the loss of the val split, which has no tile; sample with a share in tiles.splits.val")
    return labelled(tiles, experiment, "val")


def _alike(tiles: pa.Table, experiment: Experiment, trained: Ground) -> tuple[Ground, Supervision]:
    """Return what is known of held-out tiles, and which are alike. Raises `TrainingError` where none are."""
    ground = ground_of(tiles, experiment)
    if issubclass(LOSSES[experiment.loss.kind], ClassLoss):
        ground = _numbered_as(ground, trained)
    return ground, supervise(experiment, ground)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Batches of held-out tiles, the same each time."""

    shown: Shown
    batches: EpochPlan
    objective: Objective
    """Of training, with the same weights, on these tiles."""

    @classmethod
    def of(cls, plan: TrainPlan, tiles: pa.Table, shown: Shown, objective: Objective, trained: Ground) -> HeldOut:
        """Plan the batches: as many as make each tile that has another alike the anchor of one group.

        Args:
            plan: of the run.
            tiles: the held-out ones.
            shown: what is shown of them.
            objective: of training.
            trained: what is known of the training tiles.

        Raises:
            TrainingError: no two tiles are alike.
        """
        settings = plan.experiment.train
        ground, supervision = _alike(tiles, plan.experiment, trained)
        steps = max(1, len(supervision.anchors) * settings.tiles_per_group // settings.batch_size)
        rng = np.random.default_rng(settings.seed)
        batch, group = settings.batch_size, settings.tiles_per_group
        planned = plan_epoch(supervision, rng, steps=steps, batch=batch, group=group, mined=None, mined_share=0)
        return cls(shown=shown, batches=dealt(planned, group), objective=objective.on(ground))

    @torch.no_grad()
    def loss(self, plan: TrainPlan, state: State, device: torch.device) -> float:
        """Return the mean loss over the batches, the same on all ranks; the encoder and what is learned beside it are not in training."""
        network, learned, costs = self.shown.network_of(state.learned), self.objective.learned, []
        reduced = precision(plan.experiment.train.precision, device) == "bf16"
        agree_on_buffers(network)
        training = network.training
        network.eval()
        learned.eval()
        for step, (members, groups) in enumerate(zip(self.batches.members, self.batches.groups, strict=True)):
            count = len(members)
            inputs = self._inputs(plan, members, step, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
                local = network(*inputs)
            batch = Batch(items=members, groups=torch.from_numpy(groups).to(device), clusters=None, seed=step)
            costs.append(float(total(self.objective(gather(local.float(), count), batch))))
        learned.train()
        network.train(training)
        return float(np.mean(costs))

    def _inputs(self, plan: TrainPlan, members: IntArray, step: int, device: torch.device) -> Inputs:
        """Return this rank's share of a batch: tiles as they are, or where versions are compared, the same ones each time."""
        settings, share = plan.experiment.train, share_of(len(members))
        if settings.supervision != "views":
            return self.shown.read(members[share], device)
        seed = int(np.random.SeedSequence([settings.seed, step]).generate_state(1)[0])
        draws = Draws(generator=torch.Generator().manual_seed(seed), batch=len(members), share=share)
        return self.shown.augmented(self.shown.read(members[share], device, draws), settings.augment, plan.spec, draws)


def _numbered_as(ground: Ground, trained: Ground) -> Ground:
    """Return the ground with the numbers that classes have in training; -1 of those that did not train."""
    numbers = np.array([trained.class_names.index(name) if name in trained.class_names else -1 for name in ground.class_names] + [-1])
    return replace(ground, labels=numbers[ground.labels], class_names=trained.class_names)
