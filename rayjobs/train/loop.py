"""What runs on every training worker, epoch by epoch."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray.train
import ray.train.torch

from rayjobs.errors import CheckpointError, ConfigError, RetrievalError, TrainingError
from rayjobs.metric.clusters import cluster, plan_batches
from rayjobs.metric.interclass import looks
from rayjobs.train import cache as chip_cache
from rayjobs.train.background import BackgroundMining
from rayjobs.train.batches import EpochPlan, Supervision, dealt, plan_epoch
from rayjobs.train.distributed import agree_on_weights, agreed, barrier, found_by_rank_zero, world_size
from rayjobs.train.features import frozen_features
from rayjobs.train.ground import ground_of, supervise, target_tiles, training_tiles
from rayjobs.train.mine import embed_all, mined_with
from rayjobs.train.objective import Objective, needs_clusters
from rayjobs.train.patience import HeldOut, held_out_tiles
from rayjobs.train.state import State, TrainPlan, publish_mined, require_finite, save, taken_up
from rayjobs.train.step import Bench, train_epoch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from rayjobs.experiment import Experiment
    from rayjobs.models.encoder import Encoder
    from rayjobs.train.section import TrainSection
    from rayjobs.train.shown import ChipCache, Shown


def loop(config: Mapping[str, Any]) -> None:
    """Train from the newest checkpoint, or from the start, to the last epoch.

    What no restart mends, and all ranks meet together, is told to the driver instead of raised: Ray Train would only try it again. Where
    some do not meet it, or the driver cannot be told, it is raised; the worker group that is started again then ends at once.
    """
    plan: TrainPlan = config["plan"]
    if plan.failures():
        return
    try:
        _train(plan)
    except (CheckpointError, ConfigError, RetrievalError, TrainingError) as error:
        if not plan.tell_failure(error):
            raise


def _train(plan: TrainPlan) -> None:
    settings = plan.experiment.train
    tiles = training_tiles(plan.source, plan.experiment)
    ground = ground_of(tiles, plan.experiment)
    device = ray.train.torch.get_device()
    objective = Objective(plan.experiment, ground, dim=plan.spec.dim, device=device)
    supervision = supervise(plan.experiment, ground)
    state = taken_up(plan, objective, device, ground.tile_ids)
    shown = _shown(plan, state, tiles, versions=settings.frozen_features)
    validated = _shown(plan, state, plan.validation.tiles, "validated") if plan.validation else None
    target = (
        _shown(replace(plan, source=plan.target), state, target_tiles(plan.target), "target", settings.frozen_features or 1)
        if plan.target
        else None
    )
    on = Bench(plan=plan, ground=ground, shown=shown, device=device, objective=objective, validated=validated, target=target)
    held_out = _held_out(on, state) if settings.patience else None
    if not state.epoch and not state.step:
        begin_projection(on, state)
        find_looks(on, state)
    steps = steps_per_epoch(plan.experiment, supervision)
    plan.tell("begun", steps=steps * settings.epochs, done=steps * state.epoch + state.step, workers=world_size())
    background = BackgroundMining(plan)
    while not state.is_over(settings):
        _train_epoch(on, state, supervision, steps, background, held_out)
    if state.epoch < settings.epochs:
        plan.tell("stalled", epoch=state.epoch, stalled=state.stalled, least=state.least)
    background.end()


def _held_out(on: Bench, state: State) -> HeldOut:
    """Return the batches of the val split, on which patience looks."""
    tiles, settings = held_out_tiles(on.plan.source, on.plan.experiment), on.plan.experiment.train
    versions = settings.frozen_features if settings.supervision == "views" else 1
    shown = _shown(on.plan, state, tiles, "held_out", versions)
    return HeldOut.of(on.plan, tiles, shown, on.objective, on.ground)


def _train_epoch(
    on: Bench, state: State, supervision: Supervision, steps: int, background: BackgroundMining, held_out: HeldOut | None
) -> None:
    """Train one epoch, or what is left of the one that a checkpoint was made in."""
    plan, settings = on.plan, on.plan.experiment.train
    if state.batches is None:
        _refresh(on, state, supervision, background)
        state.batches = plan_next(on, state, supervision, steps)
    metrics = train_epoch(on, state, state.batches, functools.partial(_after_step, on, state))
    if state.batches.joined_share is not None:
        metrics |= {"mine/joined_share": state.batches.joined_share}
    state.end_epoch()
    if _is_kept(settings, state.epoch):
        state.validated = _validated(on, state)
        if held_out is not None:
            require_finite(state, on.objective)
            state.validated["val/loss"] = held_out.loss(plan, state, on.device)
            state.measured(state.validated["val/loss"])
        save(plan, state, on.objective, last=state.is_over(settings))
        metrics |= state.validated
    metrics |= {"train/failed_uploads": float(state.failed_uploads)}
    if state.generation is not None:
        metrics |= {"mine/lag_epochs": float(state.epoch - 1 - state.generation)}
    ray.train.report(metrics)
    plan.tell("epoch", epoch=state.epoch, done=steps * state.epoch, metrics=metrics)


def _validated(on: Bench, state: State) -> dict[str, float]:
    """Embed the tiles that are held out, each rank its share, and measure them on rank 0, if anybody asked for it."""
    validation = on.plan.validation
    if validation is None or on.validated is None:
        return {}
    require_finite(state, on.objective)
    vectors = embed_all(on.validated.network_of(state.learned), on.validated, on.device).numpy()
    measured = found_by_rank_zero(lambda: dict(validation.measure(vectors)))
    return {f"val/{name}": float(value) for name, value in measured.items()}


def _after_step(on: Bench, state: State) -> None:
    """Make a checkpoint within the epoch where one is due, or where training is about to be cut off; all ranks ask in the same step."""
    settings = on.plan.experiment.train
    if state.step % settings.ask_every == 0 and _is_cut_off_soon(on, state):
        return
    ended = state.batches is not None and state.step == len(state.batches.members)
    if settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0 and not (ended and _is_kept(settings, state.epoch + 1)):
        save(on.plan, state, on.objective)


def _is_kept(settings: TrainSection, epoch: int) -> bool:
    """Whether a checkpoint is made after so many epochs."""
    return epoch % settings.checkpoint_every == 0 or epoch == settings.epochs


def _is_cut_off_soon(on: Bench, state: State) -> bool:
    """Ask whether the driver was told to end, or a node is about to be taken away; if so, make a checkpoint and tell the driver."""
    ending = not agreed(not on.plan.is_ending(), on.device)
    if not ending and ray.train.get_preemption_info() is None:
        return False
    published = save(on.plan, state, on.objective)
    on.plan.tell("cut_off", ending=ending, published=published, epoch=state.epoch, step=state.step)
    return True


def begin_projection(on: Bench, state: State) -> None:
    """Begin with a whitening of the backbone's features, where one is wanted; the same on every rank."""
    encoder, shrinkage = cast("Encoder", state.module), on.plan.experiment.model.whitening
    if shrinkage is not None:
        encoder.whiten(embed_all(on.shown.features_of(encoder), on.shown, on.device), shrinkage)
        agree_on_weights(encoder.projection)


def find_looks(on: Bench, state: State) -> None:
    """Find which tiles look alike to the network before training, where triplets across classes are wanted; rank 0 finds for all."""
    section = on.plan.experiment.interclass
    if section.weight:
        features = embed_all(on.shown.features_of(cast("Encoder", state.module)), on.shown, on.device).numpy()
        on.objective.looks = found_by_rank_zero(lambda: looks(features, section))


def steps_per_epoch(experiment: Experiment, supervision: Supervision) -> int:
    """Return how many batches make an epoch: as told, or as many as the training tiles fill."""
    settings = experiment.train
    return settings.steps_per_epoch or max(1, len(supervision.anchors) * settings.tiles_per_group // settings.batch_size)


def _shown(plan: TrainPlan, state: State, tiles: pa.Table, dataset: str = "chips", versions: int = 1) -> Shown:
    """Return what is shown of tiles: their chips, or where the backbone is frozen for good, its features."""
    chips = functools.partial(local_chips, plan, tiles, dataset)
    if not plan.experiment.train.frozen_features:
        return chips()
    fills = ray.train.get_context().get_local_rank() == 0
    encoder = cast("Encoder", state.module)
    return frozen_features(plan, encoder, tiles["tile_id"].to_pylist(), chips, versions=versions, fills=fills)


def local_chips(plan: TrainPlan, tiles: pa.Table, dataset: str = "chips") -> ChipCache:
    """Map the node's chips, filled out of a dataset by the first worker of each node while the others wait."""
    folder = chip_cache.cache_folder(plan.source, tiles, plan.spec.tile_size, plan.spec.maps_of(len(plan.spec.bands)))
    if ray.train.get_context().get_local_rank() == 0:
        chip_cache.drop_old(folder)
        shard = ray.train.get_dataset_shard(dataset)
        chip_cache.fill(folder, shard.iter_batches(batch_size=256, batch_format="numpy"), tiles.num_rows)
    barrier()
    return chip_cache.opened(folder)


def is_time_to_mine(experiment: Experiment, epoch: int) -> bool:
    """Tell whether the epoch after `epoch` completed ones begins with mining."""
    every, first = experiment.mining.every, experiment.mining.first
    return every > 0 and epoch >= first and (epoch - first) % every == 0


def _refresh(on: Bench, state: State, supervision: Supervision, background: BackgroundMining) -> None:
    """Mine where it is time, or take what was mined beside training and begin anew."""
    due = is_time_to_mine(on.plan.experiment, state.epoch)
    if on.plan.experiment.mining.mode == "asynchronous":
        background.take(state, on.ground.tile_ids)
        if due:
            background.begin(state)
    elif due:
        _mine(on, state, supervision)


def _mine(on: Bench, state: State, supervision: Supervision) -> None:
    """Mine with the current weights; every rank uses the table, rank 0 publishes it."""
    network = on.shown.network_of(state.module)
    mined, seconds = mined_with(on.plan.experiment, on.ground, supervision, network, on.shown, on.device)
    on.plan.tell("mined", epoch=state.epoch, refused=mined.refused, found=mined.counts, search=mined.search, **seconds)
    publish_mined(on.plan, state, mined, on.ground.tile_ids)


def plan_next(on: Bench, state: State, supervision: Supervision, steps: int) -> EpochPlan:
    """Plan the batches of the next epoch, the same on every rank."""
    experiment = on.plan.experiment
    settings = experiment.train
    rng = np.random.default_rng([settings.seed, state.epoch])
    if needs_clusters(experiment):
        return _batches_of_clusters(on, state, rng, steps)
    planned = plan_epoch(
        supervision,
        rng,
        steps=steps,
        batch=settings.batch_size,
        group=settings.tiles_per_group,
        mined=state.mined,
        mined_share=experiment.mining.share,
        joined=experiment.mining.joined,
        before=state.epoch * steps,
    )
    return dealt(planned, settings.tiles_per_group)


def _batches_of_clusters(on: Bench, state: State, rng: np.random.Generator, steps: int) -> EpochPlan:
    """Plan batches of neighbouring clusters, found anew with the current weights when it is time; rank 0 finds them for all."""
    settings, train = on.plan.experiment.clustering, on.plan.experiment.train
    if state.clusters is None or state.epoch % settings.every == 0:
        vectors = embed_all(on.shown.network_of(state.module), on.shown, on.device).numpy()
        state.clusters = found_by_rank_zero(
            lambda: cluster(vectors, on.ground.labels, per_class=settings.per_class, seed=train.seed + state.epoch)
        )
    clusters, samples = state.clusters, train.batch_size // settings.per_batch
    planned = found_by_rank_zero(
        lambda: plan_batches(clusters, on.objective.recent, rng, steps=steps, per_batch=settings.per_batch, samples=samples)
    )
    return dealt(EpochPlan(members=planned.members, groups=planned.classes, clusters=planned.clusters), samples)
