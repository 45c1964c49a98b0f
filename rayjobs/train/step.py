"""The steps of one epoch: each rank embeds its share of a batch, and all compute the loss of the whole."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rayjobs.errors import TrainingError
from rayjobs.train.adapt import adapt
from rayjobs.train.augment import Draws
from rayjobs.train.distributed import agree_on_gradients, gather, rank, share_of, total
from rayjobs.train.gradient_cache import embed_without_graph, in_parts, parts_of, pass_on
from rayjobs.train.objective import Batch
from rayjobs.train.optimizers import set_rates

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayjobs.models.domains import Domain
    from rayjobs.train.batches import EpochPlan
    from rayjobs.train.gradient_cache import Embed
    from rayjobs.train.ground import Ground
    from rayjobs.train.objective import Objective
    from rayjobs.train.shown import Inputs, Shown
    from rayjobs.train.state import State, TrainPlan

_TELL_EVERY_S = 0.5
"""How often the driver hears of a step: more would cost the step more than a person can see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a rank works with, the same in all epochs."""

    plan: TrainPlan
    ground: Ground
    shown: Shown
    """Of the training tiles: chips, or the features of a frozen backbone."""
    device: torch.device
    objective: Objective
    validated: Shown | None = None
    """Of the tiles of `plan.validation`."""
    target: Shown | None = None
    """Of the training tiles of `plan.target`."""


def train_epoch(on: Bench, state: State, batches: EpochPlan, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Train what is left of the epoch after the completed ones; return its mean loss and last rate, the seconds of each phase, and speed.

    `train/spread` is that of the last batch: near 0 all embeddings have become one.

    `after_step` is called on every rank when `state` has taken in a step: there a checkpoint may be made.
    """
    settings, epoch, steps, first = on.plan.experiment.train, state.epoch, len(batches.members), state.step
    state.parallel.train()
    waited, learned, begun, told = 0.0, 0.0, time.monotonic(), 0.0
    for step in range(first, steps):
        waiting = time.monotonic()
        draws = _seeded(settings.seed, epoch, step, batches.members.shape[1])
        inputs = on.shown.read(batches.members[step][draws.share], on.device, draws)
        waited += time.monotonic() - waiting
        inputs = on.shown.augmented(inputs, settings.augment, on.plan.spec, draws)
        done = epoch * steps + step
        set_rates(state.optimizer, settings, done, steps)
        learning = time.monotonic()
        state.losses.append(learn(on, state, inputs, _batch(on, batches, step, done)))
        learned += time.monotonic() - learning
        state.step = step + 1
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            on.plan.tell("step", done=epoch * steps + step + 1, epoch=epoch + 1, loss=state.losses[-1])
        after_step()
    set_rates(state.optimizer, settings, (epoch + 1) * steps - 1, steps)
    metrics = {"train/loss": float(np.mean(state.losses[-steps:])), "train/learning_rate": state.optimizer.param_groups[-1]["lr"]}
    if first == steps:  # the checkpoint that training goes on from held the whole epoch
        return metrics
    metrics["train/spread"] = float(on.objective.spread)
    seconds = max(time.monotonic() - begun, 1e-9)
    return metrics | {
        "train/wait_share": waited / seconds,
        "train/wait_s": waited,
        "train/step_s": learned,
        "train/tiles_per_s": (steps - first) * settings.batch_size / seconds,
    }


def _seeded(seed: int, epoch: int, step: int, batch: int) -> Draws:
    """Seed what is drawn by chance in one step, so that it is the same wherever training was taken up.

    How tiles are changed does not depend on the number of ranks; what layers draw (dropout) differs between them.
    """
    of_augmentation = int(np.random.SeedSequence([seed, epoch, step, 0]).generate_state(1)[0])
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, step, rank()]).generate_state(2)[1]))
    return Draws(generator=torch.Generator().manual_seed(of_augmentation), batch=batch, share=share_of(batch))


def _batch(on: Bench, batches: EpochPlan, step: int, done: int) -> Batch:
    clusters = None if batches.clusters is None else torch.from_numpy(batches.clusters[step]).to(on.device)
    groups = torch.from_numpy(batches.groups[step]).to(on.device)
    return Batch(items=batches.members[step], groups=groups, clusters=clusters, seed=on.plan.experiment.train.seed + done)


def learn(on: Bench, state: State, inputs: Inputs, batch: Batch) -> float:
    """Embed, compare, learn; return the loss of the whole batch. `inputs` are of this rank's share of it."""
    settings, count = on.plan.experiment.train, len(batch.items)
    reduced = precision(settings.precision, on.device) == "bf16"

    def embed_as(**domain: Domain) -> Embed:
        def embed(*part: torch.Tensor) -> torch.Tensor:
            with torch.autocast(on.device.type, torch.bfloat16, enabled=reduced):
                embedded: torch.Tensor = state.parallel(*part, **domain)
            return embedded.float()

        return embed

    embed = embed_as() if on.target is None else embed_as(domain="source")
    state.optimizer.zero_grad(set_to_none=True)
    adapted = 0.0 if on.target is None else adapt(on.plan, state, on.target, embed_as(domain="target"), on.device)
    cut = in_parts(inputs, parts_of(count, settings.micro_batch))
    local, parts = (embed(*inputs), []) if len(cut) == 1 else embed_without_graph(state.module, embed, cut)
    loss = on.objective(gather(local, count), batch)
    value = float(total(loss)) + adapted  # one wait for the device, not one to look and one to tell; the same on all ranks, as what follows
    if not math.isfinite(value):
        raise TrainingError("the loss is not finite; lower train.learning_rate, or set train.precision: fp32, in a new run")
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if parts:
        pass_on(state.parallel, embed, parts, cast("torch.Tensor", local.grad))
    agree_on_gradients(on.objective.learned)
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.module)
    return value


def precision(chosen: str, device: torch.device) -> str:
    """Return `bf16` or `fp32`: `auto` takes bf16 where matrix units make it faster (2 times, measured on a CPU that has them)."""
    if chosen != "auto":
        return chosen
    return "bf16" if device.type == "cuda" or torch.cpu._is_amx_tile_supported() else "fp32"  # noqa: SLF001  torch has no public name for it
