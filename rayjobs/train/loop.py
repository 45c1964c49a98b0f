"""What runs on every training worker: chips, batches, steps, mining, checkpoints. Reads top to bottom from `loop`."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.train
import ray.train.torch
import torch

from rayjobs.errors import TrainingError
from rayjobs.metric.losses import build_loss
from rayjobs.metric.miners import build_miner
from rayjobs.metric.mining import DistanceGuard, Guard, LabelGuard, OverlapGuard
from rayjobs.models.checkpoint import fingerprint, from_files, read_training_state, to_files, training_state_bytes
from rayjobs.models.encoder import build
from rayjobs.models.spec import ModelSpec
from rayjobs.tiles.neighbours import Neighbourhood, positive_pairs
from rayjobs.tiles.positions import positions, sizes
from rayjobs.tiles.table import read_geoparquet
from rayjobs.train import cache as chip_cache
from rayjobs.train.batches import ByGeography, ByLabel, EpochPlan, Supervision, plan_epoch
from rayjobs.train.distributed import barrier, gather, rank, world_size
from rayjobs.train.mine import Mined, embed_all, from_table, mine_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """What the driver decided."""

    experiment: Experiment
    source: Version
    """The set."""
    spec: ModelSpec
    mailbox: Any
    """Where rank 0 tells how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is known of the training tiles apart from their pixels; rows sorted by tile id."""

    tile_ids: list[str]
    positions: FloatArray
    """(tiles, 3) as `rayjobs.tiles.positions`."""
    sizes: FloatArray
    """(tiles,) side of each tile, in the unit of `positions`."""
    labels: np.ndarray[Any, np.dtype[np.int64]]
    """(tiles,) class, -1 where unknown."""


@dataclass(slots=True)
class State:
    """What changes from step to step, and what a checkpoint keeps."""

    module: torch.nn.Module
    """The encoder itself, not its DDP wrapping."""
    parallel: torch.nn.Module
    """The encoder as DDP wraps it."""
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Epochs completed."""
    mined: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """Mined negatives in use."""
    generation: int | None = None
    """Mining generation in use."""


def loop(config: Mapping[str, Any]) -> None:
    """Train from the newest checkpoint, or from the start, to the last epoch."""
    plan: TrainPlan = config["plan"]
    settings = plan.experiment.train
    device = ray.train.torch.get_device()
    tiles = training_tiles(plan.source)
    ground = ground_of(tiles)
    chips = _local_chips(plan, tiles)
    supervision = supervise(plan.experiment, ground)
    state = _restore(plan, _initial(plan, device), ground)
    loss, miner = build_loss(plan.experiment.loss), build_miner(plan.experiment.miner)
    steps = settings.steps_per_epoch or max(1, len(supervision.anchors) * settings.tiles_per_group // settings.batch_size)
    _tell(plan, {"kind": "begun", "steps": steps * settings.epochs, "done": steps * state.epoch})
    for epoch in range(state.epoch, settings.epochs):
        if _is_time_to_mine(plan.experiment, epoch):
            _mine(plan, state, chips, ground, device, generation=epoch)
        batches = _batches(plan.experiment, supervision, state, epoch, steps)
        metrics = _train_epoch(plan, state, chips, ground, batches, (loss, miner), device, epoch)
        state.epoch = epoch + 1
        if state.epoch % settings.checkpoint_every == 0 or state.epoch == settings.epochs:
            _save(plan, state)
        ray.train.report(metrics)
        _tell(plan, {"kind": "epoch", "epoch": state.epoch, "metrics": metrics})


def training_tiles(source: Version) -> pa.Table:
    """Return the rows of the training split, sorted by tile id."""
    tiles = read_geoparquet(source.read("tiles.parquet"))
    return tiles.filter(pc.equal(tiles["split"], "train")).sort_by("tile_id")


def ground_of(tiles: pa.Table) -> Ground:
    """Return what is known of tiles apart from their pixels."""
    classes = sorted({label for label in tiles["label"].to_pylist() if label is not None})
    code = {label: number for number, label in enumerate(classes)} | {None: -1}
    return Ground(
        tile_ids=tiles["tile_id"].to_pylist(),
        positions=positions(tiles),
        sizes=sizes(tiles),
        labels=np.array([code[label] for label in tiles["label"].to_pylist()], np.int64),
    )


def supervise(experiment: Experiment, ground: Ground) -> Supervision:
    """Return what says which tiles are alike.

    Raises:
        TrainingError: nothing is.
    """
    if experiment.train.supervision == "labels":
        return ByLabel(ground.labels)
    tiles = experiment.tiles
    pairs = positive_pairs(ground.positions, ground.sizes, tiles.min_pos_dist, tiles.max_pos_dist)
    return ByGeography(Neighbourhood.from_pairs(pairs, len(ground.tile_ids)))


def guards_of(experiment: Experiment, ground: Ground) -> list[Guard]:
    """Return the mining guards that the experiment switches on, in the order in which they are asked."""
    mining, tiles = experiment.mining, experiment.tiles
    guards: list[Guard] = []
    if mining.overlap:
        guards.append(OverlapGuard(ground.positions, ground.sizes))
    if mining.distance:
        guards.append(DistanceGuard(ground.positions, ground.sizes, min_dist=tiles.min_neg_dist, max_dist=tiles.max_neg_dist))
    if mining.label:
        guards.append(LabelGuard(ground.labels))
    return guards


def _local_chips(plan: TrainPlan, tiles: pa.Table) -> chip_cache.ChipCache:
    """Map the node's chips, filled by the first worker of each node while the others wait."""
    folder = chip_cache.cache_folder(f"{plan.source.version}-{plan.spec.tile_size}")
    if ray.train.get_context().get_local_rank() == 0:
        shard = ray.train.get_dataset_shard("chips")
        chip_cache.fill(folder, shard.iter_batches(batch_size=256, batch_format="numpy"), tiles.num_rows)
    barrier()
    return chip_cache.opened(folder)


def _initial(plan: TrainPlan, device: torch.device) -> State:
    settings = plan.experiment.train
    module = build(plan.spec, seed=settings.seed, pretrained=plan.experiment.model.pretrained).to(device)
    parallel = ray.train.torch.prepare_model(module) if world_size() > 1 else module
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
    return State(module=module, parallel=parallel, optimizer=optimizer)


def _restore(plan: TrainPlan, state: State, ground: Ground) -> State:
    """Take up the newest checkpoint, if the run has one."""
    workspace = plan.experiment.open_workspace()
    newest = workspace.checkpoints.current()
    if newest is None:
        return state
    saved = read_training_state(newest.read("state.pt"))
    loaded = from_files(model_json=newest.read("model.json"), tensors=newest.read("model.safetensors"))
    state.module.load_state_dict(loaded.module.state_dict())
    state.optimizer.load_state_dict(saved["optimizer"])
    state.epoch, state.generation = int(saved["epoch"]), saved["generation"]
    if state.generation is not None:
        table = workspace.mining.at(generation_name(state.generation))
        state.mined = from_table(pq.read_table(io.BytesIO(table.read("mined.parquet"))), ground.tile_ids)
    _tell(plan, {"kind": "resumed", "epoch": state.epoch, "checkpoint": newest.version})
    return state


def generation_name(generation: int) -> str:
    """Return the name of a mining generation: the epoch before which it was mined."""
    return f"generation-{generation:04d}"


def _is_time_to_mine(experiment: Experiment, epoch: int) -> bool:
    every, first = experiment.mining.every, experiment.mining.first
    return every > 0 and epoch >= first and (epoch - first) % every == 0


def _mine(plan: TrainPlan, state: State, chips: chip_cache.ChipCache, ground: Ground, device: torch.device, *, generation: int) -> None:
    """Mine with the current weights; every rank uses the table, rank 0 publishes it."""
    settings = plan.experiment.mining
    begun = time.monotonic()
    vectors = embed_all(state.module, chips, device)
    embedded = time.monotonic()
    guards = guards_of(plan.experiment, ground)
    mined = mine_all(vectors, guards, negatives=settings.negatives, max_candidates=settings.max_candidates, device=device)
    state.mined, state.generation = mined.candidates, generation
    if rank() == 0:
        _publish_mined(plan, state, mined, ground, generation)
    seconds = {"mine/embed_s": embedded - begun, "mine/search_s": time.monotonic() - embedded}
    _tell(plan, {"kind": "mined", "epoch": generation, "refused": mined.refused, "found": int((mined.candidates >= 0).sum()), **seconds})
    barrier()


def _publish_mined(plan: TrainPlan, state: State, mined: Mined, ground: Ground, generation: int) -> None:
    buffer = io.BytesIO()
    pq.write_table(mined.table(ground.tile_ids), buffer)
    draft = plan.experiment.open_workspace().mining.draft(generation_name(generation))
    draft.write("mined.parquet", buffer.getvalue())
    draft.publish(
        {
            "parents": {"set": plan.source.version},
            "generation": generation,
            "encoder_fingerprint": fingerprint(plan.spec, state.module.state_dict()),
            "counts": {"anchors": len(ground.tile_ids), "negatives": int((mined.candidates >= 0).sum()), "refused": mined.refused},
        }
    )


def _batches(experiment: Experiment, supervision: Supervision, state: State, epoch: int, steps: int) -> EpochPlan:
    settings = experiment.train
    return plan_epoch(
        supervision,
        np.random.default_rng([settings.seed, epoch]),
        steps=steps,
        batch=settings.batch_size,
        group=settings.tiles_per_group,
        mined=state.mined,
        mined_share=experiment.mining.share,
    )


def _train_epoch(
    plan: TrainPlan,
    state: State,
    chips: chip_cache.ChipCache,
    ground: Ground,
    batches: EpochPlan,
    objective: tuple[torch.nn.Module, Any],
    device: torch.device,
    epoch: int,
) -> dict[str, float]:
    """Train one epoch; return its mean loss, the share of its time spent waiting for chips, and its speed."""
    settings = plan.experiment.train
    state.parallel.train()
    of_augmentation, of_layers = np.random.SeedSequence([settings.seed, epoch, rank()]).generate_state(2).tolist()
    generator = torch.Generator().manual_seed(of_augmentation)
    torch.manual_seed(of_layers)
    steps = len(batches.members)
    losses, waited, begun = [], 0.0, time.monotonic()
    for step in range(steps):
        waiting = time.monotonic()
        pixels, valid = _local_batch(chips, batches.members[step], device)
        if settings.augment:
            pixels, valid = augmented(pixels, valid, generator)
        waited += time.monotonic() - waiting
        _set_rate(state.optimizer, settings.learning_rate, epoch * steps + step, warmup=steps, total=settings.epochs * steps)
        losses.append(_step(plan, state, pixels, valid, batches.members[step], batches.groups[step], ground, objective))
        _tell(plan, {"kind": "step", "epoch": epoch + 1, "loss": losses[-1]})
    seconds = time.monotonic() - begun
    return {
        "train/loss": float(np.mean(losses)),
        "train/wait_share": waited / seconds,
        "train/tiles_per_s": steps * settings.batch_size / seconds,
    }


def _local_batch(chips: chip_cache.ChipCache, members: np.ndarray[Any, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's consecutive share of a batch."""
    share = len(members) // world_size()
    mine = members[rank() * share : (rank() + 1) * share]
    pixels, valid = torch.from_numpy(chips.pixels[mine]), torch.from_numpy(chips.valid[mine])
    return pixels.to(device, non_blocking=True), valid.to(device, non_blocking=True)


def augmented(pixels: torch.Tensor, valid: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn and flip each chip at random: one of the eight symmetries of the square, four of a rectangle.

    Args:
        pixels: (batch, bands, height, width).
        valid: (batch, height, width).
        generator: on the CPU.
    """
    symmetries = torch.randint(8 if pixels.shape[-1] == pixels.shape[-2] else 4, (len(pixels),), generator=generator)
    pixels, valid = pixels.clone(), valid.clone()
    for symmetry in range(1, 8):
        chosen = (symmetries == symmetry).nonzero().flatten().to(pixels.device)
        if len(chosen):
            pixels[chosen] = _turned(pixels[chosen], symmetry)
            valid[chosen] = _turned(valid[chosen], symmetry)
    return pixels, valid


def _turned(images: torch.Tensor, symmetry: int) -> torch.Tensor:
    flips = [axis for bit, axis in ((1, -1), (2, -2)) if symmetry & bit]
    flipped = images.flip(flips)
    return flipped.transpose(-1, -2) if symmetry & 4 else flipped


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, *, warmup: int, total: int) -> None:
    """Linear warm-up over the first epoch, cosine decay to nothing at the last step."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * fall


def _step(
    plan: TrainPlan,
    state: State,
    pixels: torch.Tensor,
    valid: torch.Tensor,
    members: np.ndarray[Any, Any],
    groups: np.ndarray[Any, Any],
    ground: Ground,
    objective: tuple[torch.nn.Module, Any],
) -> float:
    """One step on the whole batch: each rank embeds its share, all compute the loss of all."""
    loss_of, miner = objective
    reduced = precision(plan.experiment.train.precision, pixels.device) == "bf16"
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=reduced):
        local = state.parallel(pixels, valid)
    embeddings = gather(local.float())
    labels = torch.from_numpy(groups).to(pixels.device)
    forbidden = torch.from_numpy(forbidden_pairs(plan.experiment, ground, members, groups)).to(pixels.device)
    loss = loss_of(embeddings, labels, miner(embeddings.detach(), labels, forbidden))
    if not torch.isfinite(loss):
        raise TrainingError("the loss is not finite; lower train.learning_rate, or set train.precision: fp32")
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    return float(loss.detach())


def precision(chosen: str, device: torch.device) -> str:
    """Return `bf16` or `fp32`: `auto` takes bf16 where matrix units make it faster (2 times, measured on a CPU that has them)."""
    if chosen != "auto":
        return chosen
    return "bf16" if device.type == "cuda" or torch.cpu._is_amx_tile_supported() else "fp32"  # noqa: SLF001  torch has no public name for it


def forbidden_pairs(
    experiment: Experiment, ground: Ground, members: np.ndarray[Any, Any], groups: np.ndarray[Any, Any]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (batch, batch) bool: True where two tiles are no negatives of each other, being too near (or, with max_neg_dist, too far)."""
    tiles = experiment.tiles
    nearest = max(1.0, tiles.min_neg_dist) if experiment.train.supervision == "geography" else 1.0
    where, size = ground.positions[members], ground.sizes[members]
    distance = np.linalg.norm(where[:, None] - where[None, :], axis=2) / np.maximum(size[:, None], size[None, :])
    forbidden = distance < nearest
    if tiles.max_neg_dist is not None and experiment.train.supervision == "geography":
        forbidden |= distance > tiles.max_neg_dist
    result: np.ndarray[Any, np.dtype[np.bool_]] = forbidden & (groups[:, None] != groups[None, :])
    return result


def _save(plan: TrainPlan, state: State) -> None:
    """Publish a checkpoint from rank 0; the others wait, so that no rank runs ahead of what is safe."""
    if rank() == 0:
        workspace = plan.experiment.open_workspace()
        draft = workspace.checkpoints.draft(f"epoch-{state.epoch:04d}")
        for name, data in to_files(state.module, plan.spec).items():
            draft.write(name, data)
        saved = {"optimizer": state.optimizer.state_dict(), "epoch": state.epoch, "generation": state.generation}
        draft.write("state.pt", training_state_bytes(saved))
        draft.publish(
            {
                "parents": {"set": plan.source.version, "mining": None if state.generation is None else generation_name(state.generation)},
                "encoder_fingerprint": fingerprint(plan.spec, state.module.state_dict()),
                "epoch": state.epoch,
                "counts": {},
            }
        )
        _drop_old(plan)
    barrier()


def _drop_old(plan: TrainPlan) -> None:
    artefact = plan.experiment.open_workspace().checkpoints
    keys = artefact.store.list(artefact.prefix + "epoch-")
    versions = sorted({key.removeprefix(artefact.prefix).partition("/")[0] for key in keys})
    for version in versions[: -plan.experiment.train.keep_checkpoints]:
        for key in keys:
            if key.startswith(f"{artefact.prefix}{version}/"):
                artefact.store.delete(key)


def _tell(plan: TrainPlan, message: dict[str, Any]) -> None:
    if rank() == 0 and plan.mailbox is not None:
        plan.mailbox.post.remote(message)
