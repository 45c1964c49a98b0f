"""Optimisers against their formulas written out, and rates over a run."""

from __future__ import annotations

import math

import pytest
import torch

from rayjobs.config import build
from rayjobs.errors import ConfigError
from rayjobs.train.optimizers import MOMENTS, OPTIMIZERS, optimizer_of, set_rates, take_up
from rayjobs.train.section import TrainSection

CPU = torch.device("cpu")


def settings(**given) -> TrainSection:
    return build(TrainSection, {"learning_rate": 0.5, "weight_decay": 0.01, "backbone_rate": 0.1, **given})


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()


KINDS = {
    "adamw": {"kind": "adamw"},
    "sgd": {"kind": "sgd", "momentum": 0.8, "nesterov": True},
    "lars": {"kind": "lars", "momentum": 0.8, "trust": 0.02},
    "larc": {"kind": "lars", "momentum": 0.0, "trust": 50.0, "clip": True},
}


def stepped(section: TrainSection, steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, list[dict[str, torch.Tensor]]]:
    """Take steps by made-up gradients; return them, too."""
    module, drawn = network(), torch.Generator().manual_seed(1)
    optimizer = optimizer_of(section, module, torch.nn.ModuleList(), CPU)
    gradients = []
    for _ in range(steps):
        gradients.append({name: torch.randn(part.shape, dtype=part.dtype, generator=drawn) for name, part in module.named_parameters()})
        for name, part in module.named_parameters():
            part.grad = gradients[-1][name]
        optimizer.step()
    return module, optimizer, gradients


def by_hand(optimizer: dict, weights: torch.Tensor, gradients: list[torch.Tensor], *, decays: bool) -> torch.Tensor:
    """SGD with momentum, with the layer's own rate for LARS (You et al., 2017)."""
    decay, rate, buffer = 0.01 if decays else 0.0, 0.5, None
    for gradient in gradients:
        wanted = gradient + decay * weights
        if optimizer["kind"] == "lars" and decays:
            ratio = optimizer["trust"] * weights.norm() / (gradient.norm() + decay * weights.norm() + 1e-8)
            wanted = wanted * (min(ratio / rate, 1.0) if optimizer.get("clip") else ratio)
        buffer = wanted if buffer is None else optimizer["momentum"] * buffer + wanted
        weights = weights - rate * (wanted + optimizer["momentum"] * buffer if optimizer.get("nesterov") else buffer)
    return weights


@pytest.mark.parametrize("kind", ["sgd", "lars", "larc"])
def test_steps_are_those_of_the_formula_and_norms_and_biases_are_left_out(kind):
    module, _, gradients = stepped(settings(optimizer=KINDS[kind]), 3)
    begun = dict(network().named_parameters())
    for name, found in module.named_parameters():
        expected = by_hand(KINDS[kind], begun[name].detach(), [each[name] for each in gradients], decays=name == "0.weight")
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_keeps_what_the_table_says(kind):
    section = settings(optimizer=KINDS[kind])
    _, optimizer, _ = stepped(section, 1)
    kept = {key for of_one in optimizer.state_dict()["state"].values() for key in of_one}
    assert section.optimizer.kind in OPTIMIZERS
    assert kept == (set() if kind == "larc" else set(MOMENTS[section.optimizer.kind]))


def test_moments_are_taken_up_and_rates_are_this_runs():
    _, optimizer, _ = stepped(settings(), 2)
    other = optimizer_of(settings(learning_rate=0.25, weight_decay=0.02), network(), torch.nn.ModuleList(), CPU)
    take_up(other, optimizer.state_dict())
    torch.testing.assert_close(other.state_dict()["state"], optimizer.state_dict()["state"])
    assert {group["initial_lr"] for group in other.param_groups} == {0.25}
    assert {group["weight_decay"] for group in other.param_groups} == {0.0, 0.02}


def test_what_is_learned_beside_the_encoder_decays_but_for_norms_and_biases():
    optimizer = optimizer_of(settings(), torch.nn.Sequential(), network(), CPU)
    assert {tuple(part.shape): group["weight_decay"] for group in optimizer.param_groups for part in group["params"]} == {
        (4, 3): 0.01,
        (4,): 0.0,
    }


def rates(count: int, **given) -> list[float]:
    optimizer = optimizer_of(settings(epochs=count, **given), network(), torch.nn.ModuleList(), CPU)
    found = []
    for done in range(2 * count):
        set_rates(optimizer, settings(epochs=count, **given), done, 2)
        found.append(optimizer.param_groups[0]["lr"] / 0.5)
    return found


def test_rates_rise_from_a_share_and_fall_as_a_cosine_to_another():
    found = rates(5, warmup_epochs=2, warmup_from=0.2, schedule={"kind": "cosine", "final": 0.1})
    fall = [0.1 + 0.9 * (1 + math.cos(math.pi * number / 6)) / 2 for number in range(6)]
    assert found == pytest.approx([0.4, 0.6, 0.8, 1.0, *fall])


def test_rates_fall_at_once_after_some_epochs():
    assert rates(4, warmup_epochs=0, schedule={"kind": "step", "epochs": [1, 2.5], "factor": 0.1}) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight_decay": 0, "optimizer": {"kind": "lars"}}, "weight_decay is 0"),
        ({"optimizer": {"kind": "sgd", "momentum": 0, "nesterov": True}}, "looks ahead by the momentum"),
        ({"optimizer": {"kind": "adam"}}, "adamw"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        settings(**given)
