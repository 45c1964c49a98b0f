"""Optimisers by name, what each keeps of a parameter, and how the rates of a run rise and fall."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import Lars  # type: ignore[attr-defined]  # timm marks no exports

from rayjobs.models.backbones import decay_groups
from rayjobs.models.encoder import parameter_groups
from rayjobs.train.section import StepSection

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayjobs.train.section import AdamWSection, LARSSection, SGDSection, TrainSection

Groups = list[dict[str, Any]]

MOMENTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",), "lars": ("momentum_buffer",)}
"""What each kind keeps of a parameter; all but `step`, a number, have the parameter's shape."""


def _adamw(groups: Groups, section: AdamWSection, device: torch.device) -> torch.optim.Optimizer:  # noqa: ARG001  called like the others
    return torch.optim.AdamW(groups, fused=device.type == "cuda")


def _sgd(groups: Groups, section: SGDSection, device: torch.device) -> torch.optim.Optimizer:  # noqa: ARG001  likewise
    return torch.optim.SGD(groups, momentum=section.momentum, nesterov=section.nesterov)


def _lars(groups: Groups, section: LARSSection, device: torch.device) -> torch.optim.Optimizer:  # noqa: ARG001  likewise
    return Lars(  # it scales the rates of groups that decay alone: norms and biases do not
        groups, momentum=section.momentum, nesterov=section.nesterov, trust_coeff=section.trust, trust_clip=section.clip
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": _adamw, "sgd": _sgd, "lars": _lars}


def optimizer_of(settings: TrainSection, encoder: torch.nn.Module, learned: torch.nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser of a run.

    Args:
        settings: rates, decay and which optimiser.
        encoder: of which the backbone has a rate of its own.
        learned: beside the encoder, with the rate of the rest.
        device: where both are.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = parameter_groups(encoder, backbone_rate=rate * settings.backbone_rate, head_rate=rate, weight_decay=decay)
    groups += [group | {"lr": rate, "initial_lr": rate} for group in decay_groups(learned, decay)]
    return OPTIMIZERS[settings.optimizer.kind]([group for group in groups if group["params"]], settings.optimizer, device)


def take_up(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take up the moments that a checkpoint kept; rates and decay stay those of this run, which may have changed them."""
    optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def set_rates(optimizer: torch.optim.Optimizer, settings: TrainSection, done: int, steps: int) -> None:
    """Scale each group's own rate for the next step.

    Args:
        optimizer: whose groups have `initial_lr`.
        settings: warm-up and schedule.
        done: steps of the run that are done.
        steps: of an epoch.
    """
    share = _risen(settings, done, steps) * _fallen(settings, done, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share


def _risen(settings: TrainSection, done: int, steps: int) -> float:
    return settings.warmup_from + (1 - settings.warmup_from) * min(1.0, (done + 1) / max(1.0, settings.warmup_epochs * steps))


def _fallen(settings: TrainSection, done: int, steps: int) -> float:
    schedule = settings.schedule
    if isinstance(schedule, StepSection):
        return schedule.factor ** sum(done >= epoch * steps for epoch in schedule.epochs)
    warmup, total = settings.warmup_epochs * steps, settings.epochs * steps
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * max(0.0, done - warmup) / max(1.0, total - warmup)))
