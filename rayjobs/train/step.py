"""The steps of one epoch: each rank embeds its share of a batch, and all compute the loss of the whole."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayjobs.errors import TrainingError
from rayjobs.train.augment import augment
from rayjobs.train.distributed import agree_on_gradients, gather, rank, share_of, total
from rayjobs.train.objective import Batch

if TYPE_CHECKING:
    from rayjobs.train.batches import EpochPlan
    from rayjobs.train.cache import ChipCache
    from rayjobs.train.ground import Ground
    from rayjobs.train.objective import Objective
    from rayjobs.train.state import State, TrainPlan

_TELL_EVERY_S = 0.5
"""How often the driver hears of a step: more would cost the step more than a person can see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a rank works with, the same in all epochs."""

    plan: TrainPlan
    ground: Ground
    chips: ChipCache
    device: torch.device
    objective: Objective


def train_epoch(on: Bench, state: State, batches: EpochPlan) -> dict[str, float]:
    """Train the epoch after the completed ones; return its mean loss, the share of its time spent waiting for chips, and its speed."""
    settings, epoch, steps = on.plan.experiment.train, state.epoch, len(batches.members)
    of_augmentation, of_layers = np.random.SeedSequence([settings.seed, epoch, rank()]).generate_state(2).tolist()
    generator = torch.Generator().manual_seed(of_augmentation)
    torch.manual_seed(of_layers)
    state.parallel.train()
    losses, waited, begun, told = [], 0.0, time.monotonic(), 0.0
    for step in range(steps):
        waiting = time.monotonic()
        pixels, valid = _local_batch(on, batches.members[step])
        pixels, valid = augment(pixels, valid, settings.augment, on.plan.spec.mean, on.plan.spec.std, generator)
        waited += time.monotonic() - waiting
        done = epoch * steps + step
        _set_rates(state.optimizer, done, warmup=settings.warmup_epochs * steps, total=settings.epochs * steps)
        losses.append(learn(on, state, pixels, valid, _batch(on, batches, step, done)))
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            on.plan.tell("step", done=epoch * steps + step + 1, epoch=epoch + 1, loss=losses[-1])
    seconds = time.monotonic() - begun
    return {
        "train/loss": float(np.mean(losses)),
        "train/wait_share": waited / seconds,
        "train/tiles_per_s": steps * settings.batch_size / seconds,
    }


def _local_batch(on: Bench, members: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's consecutive share of a batch."""
    mine = members[share_of(len(members))]
    pixels, valid = torch.from_numpy(on.chips.pixels[mine]), torch.from_numpy(on.chips.valid[mine])
    return pixels.to(on.device, non_blocking=True), valid.to(on.device, non_blocking=True)


def _batch(on: Bench, batches: EpochPlan, step: int, done: int) -> Batch:
    clusters = None if batches.clusters is None else torch.from_numpy(batches.clusters[step]).to(on.device)
    groups = torch.from_numpy(batches.groups[step]).to(on.device)
    return Batch(items=batches.members[step], groups=groups, clusters=clusters, seed=on.plan.experiment.train.seed + done)


def _set_rates(optimizer: torch.optim.Optimizer, step: int, *, warmup: float, total: int) -> None:
    """Scale each group's own rate: linear over the warm-up, then a cosine to nothing at the last step."""
    rise = min(1.0, (step + 1) / max(1.0, warmup))
    fall = 0.5 * (1 + math.cos(math.pi * max(0.0, step - warmup) / max(1.0, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rise * fall


def learn(on: Bench, state: State, pixels: torch.Tensor, valid: torch.Tensor, batch: Batch) -> float:
    """Embed, compare, learn; return the loss of the whole batch."""
    reduced = precision(on.plan.experiment.train.precision, on.device) == "bf16"
    with torch.autocast(on.device.type, torch.bfloat16, enabled=reduced):
        local = state.parallel(pixels, valid)
    loss = on.objective(gather(local.float(), len(batch.items)), batch)
    value = float(total(loss))  # one wait for the device, not one to look and one to tell; the same on all ranks, as what follows
    if not math.isfinite(value):
        raise TrainingError("the loss is not finite; lower train.learning_rate, or set train.precision: fp32")
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    agree_on_gradients(on.objective.loss)
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.module)
    return value


def precision(chosen: str, device: torch.device) -> str:
    """Return `bf16` or `fp32`: `auto` takes bf16 where matrix units make it faster (2 times, measured on a CPU that has them)."""
    if chosen != "auto":
        return chosen
    return "bf16" if device.type == "cuda" or torch.cpu._is_amx_tile_supported() else "fp32"  # noqa: SLF001  torch has no public name for it
