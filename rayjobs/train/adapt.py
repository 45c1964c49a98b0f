"""Tiles of another domain in each step: without labels, they move its statistics and are asked to be told apart surely.

See `adaptation` of the experiment file. They are training tiles of the other set alone: what is validated and measured is never among them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from rayjobs.metric.adaptation import consensus, entropy
from rayjobs.train.augment import Draws
from rayjobs.train.distributed import share_of, total, world_size
from rayjobs.train.gradient_cache import in_parts, parts_of

if TYPE_CHECKING:
    from rayjobs.train.gradient_cache import Embed
    from rayjobs.train.shown import Inputs, Shown
    from rayjobs.train.state import State, TrainPlan

_VIEWS = {"entropy": 1, "consensus": 2}
_OF_TARGET = 1
"""Tells what is drawn for the target from what is drawn for the batch of the same step."""


def adapt(plan: TrainPlan, state: State, target: Shown, embed: Embed, device: torch.device) -> float:
    """Show the network a random batch of the target, and add to the gradients what its term makes of them.

    To be called before the batch of the step: gradients are added on each rank by itself, and ranks agree on them with those of the batch.

    Args:
        plan: names term and weight.
        state: of the run, in training mode; its epoch and step say which tiles are drawn, the same on any number of ranks.
        target: what is shown of the target's training tiles.
        embed: as the encoder does in training mode, with the target's statistics.
        device: where the encoder is.

    Returns:
        the weighed term, over all ranks.
    """
    settings, section = plan.experiment.train, plan.experiment.adaptation
    rng = np.random.default_rng([settings.seed, state.epoch, state.step, 0, _OF_TARGET])
    count = settings.batch_size
    members = rng.choice(len(target), count, replace=len(target) < count)[share_of(count)]
    seeds = rng.integers(2**31, size=_VIEWS[section.term])
    views = [_view(plan, target, members, int(seed), count, device) for seed in seeds.tolist()]
    apart = contextlib.nullcontext() if not isinstance(state.parallel, DistributedDataParallel) else state.parallel.no_sync()
    costs = torch.zeros((), device=device)
    parts = parts_of(count, settings.micro_batch)
    with apart, torch.set_grad_enabled(section.weight > 0):
        for part in zip(*(in_parts(view, parts) for view in views), strict=True):
            outputs = [embed(*inputs) for inputs in part]
            outputs = [logits.sigmoid() for logits in outputs] if plan.spec.hashes else outputs
            term = consensus(*outputs) if section.term == "consensus" else entropy(*outputs)
            if section.weight:  # DDP takes the mean over ranks, of whose shares some have one tile more
                (section.weight * term * len(outputs[0]) * world_size() / count).backward()  # type: ignore[no-untyped-call]  # torch's
            costs += term.detach() * len(outputs[0])
    return section.weight * float(total(costs)) / count


def _view(
    plan: TrainPlan,
    target: Shown,
    members: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    seed: int,
    batch: int,
    device: torch.device,
) -> Inputs:
    """Return this rank's share of a batch, changed at random."""
    draws = Draws(generator=torch.Generator().manual_seed(seed), batch=batch, share=share_of(batch))
    return target.augmented(target.read(members, device, draws), plan.experiment.train.augment, plan.spec, draws)
