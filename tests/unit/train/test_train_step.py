"""One step of training against the same step in plain PyTorch, and what an epoch does with its batches."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners

from rayjobs.config import build
from rayjobs.errors import TrainingError
from rayjobs.experiment import Experiment
from rayjobs.models.spec import ModelSpec
from rayjobs.train import step as steps_of
from rayjobs.train.batches import EpochPlan
from rayjobs.train.cache import ChipCache
from rayjobs.train.ground import Ground
from rayjobs.train.objective import Batch, Objective
from rayjobs.train.state import TrainPlan, initial
from rayjobs.train.step import Bench, learn, train_epoch

COUNT, SIDE = 16, 32
CPU = torch.device("cpu")


def experiment(**train) -> Experiment:
    raw = {
        "name": "x",
        "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
        "tiles": {"min_neg_dist": 0},
        "loss": {"kind": "triplet", "margin": 0.2},
        "miner": {"kind": "semi_hard", "margin": 0.2},
        "train": {"batch_size": COUNT, "precision": "fp32", "weight_decay": 0.0, "warmup_epochs": 0, **train},
    }
    return build(Experiment, raw)


@pytest.fixture
def bench() -> Bench:
    side = np.ones(COUNT)
    places = np.stack([np.arange(COUNT) * 5.0, np.zeros(COUNT), np.zeros(COUNT)], axis=1)
    ground = Ground(
        tile_ids=[f"{number:02}" for number in range(COUNT)],
        positions=places,
        sizes=side,
        reaches=side,
        places=np.arange(COUNT),
        scenes=np.zeros(COUNT, np.int64),
        dates=np.zeros(COUNT, np.int64),
        labels=np.full(COUNT, -1),
        fractions=np.empty((COUNT, 0), np.float32),
    )
    spec = ModelSpec(
        backbone="resnet10t",
        dim=8,
        bands=("a", "b"),
        dtype="uint8",
        mean=(100.0, 90.0),
        std=(40.0, 30.0),
        tile_size=SIDE,
        input_size=SIDE,
        resolution_m=None,
    )
    told = SimpleNamespace(messages=[])
    told.post = SimpleNamespace(remote=told.messages.append)
    plan = TrainPlan(experiment=experiment(), source=None, spec=spec, mailbox=told, lease="")
    pixels = np.random.default_rng(0).integers(0, 255, (COUNT, 2, SIDE, SIDE)).astype(np.uint8)
    chips = ChipCache(pixels=pixels, valid=np.ones((COUNT, SIDE, SIDE), bool))
    return Bench(plan=plan, ground=ground, chips=chips, device=CPU, objective=Objective(plan.experiment, ground, dim=8, device=CPU))


GROUPS = torch.arange(COUNT // 2).repeat_interleave(2)


def batch() -> Batch:
    return Batch(items=np.arange(COUNT), groups=GROUPS, clusters=None, seed=0)


def test_a_step_is_that_of_a_plain_loop(bench):
    state = initial(bench.plan, bench.objective, CPU)
    state.parallel.train()
    plain = copy.deepcopy(state.module).train()
    pixels, valid = torch.from_numpy(bench.chips.pixels), torch.from_numpy(bench.chips.valid)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=bench.plan.experiment.train.learning_rate, weight_decay=0.0)
    for _ in range(2):
        images = (pixels.float() - torch.tensor([100.0, 90.0])[:, None, None]) / torch.tensor([40.0, 30.0])[:, None, None]
        embeddings = plain.projection(plain.backbone(images))
        chosen = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")(embeddings, GROUPS)
        expected = losses.TripletMarginLoss(margin=0.2)(embeddings, GROUPS, chosen)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert learn(bench, state, pixels, valid, batch()) == pytest.approx(float(expected.detach()), rel=1e-4)
        mine, theirs = (torch.cat([part.grad.flatten() for part in module.parameters()]) for module in (state.module, plain))
        assert (mine - theirs).norm() < 0.01 * theirs.norm()  # as a whole: AdamW makes much of the last bits of the smallest


def test_a_loss_that_is_not_finite_changes_no_weight(bench):
    state = initial(bench.plan, bench.objective, CPU)
    with torch.no_grad():
        state.module.projection.bias[0] = torch.inf
    before = copy.deepcopy(dict(state.module.named_parameters()))
    with pytest.raises(TrainingError, match="not finite"):
        learn(bench, state, torch.from_numpy(bench.chips.pixels), torch.from_numpy(bench.chips.valid), batch())
    for name, parameter in state.module.named_parameters():
        torch.testing.assert_close(parameter, before[name], equal_nan=True)


def test_an_epoch_takes_every_batch_and_tells_of_it(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(steps_of, "learn", lambda *given: seen.append((given[2], given[4])) or 1.5)
    members = np.stack([np.arange(COUNT), np.arange(COUNT)[::-1]])
    state = initial(bench.plan, bench.objective, CPU)
    found = train_epoch(bench, state, EpochPlan(members=members, groups=np.tile(GROUPS.numpy(), (2, 1))))
    assert found["train/loss"] == 1.5
    for (pixels, taken), rows in zip(seen, members, strict=True):
        np.testing.assert_array_equal(taken.items, rows)
        np.testing.assert_array_equal(pixels.sum(dim=(2, 3)), bench.chips.pixels[rows].sum(axis=(2, 3), dtype=np.int64))  # turned, at most
    assert [message["done"] for message in bench.plan.mailbox.messages][:1] == [1]
    rates = [group["lr"] / group["initial_lr"] for group in state.optimizer.param_groups]
    assert rates == pytest.approx([0.5 * (1 + np.cos(np.pi * 1 / 20))] * len(rates))  # 1 of 10 epochs x 2 steps is done


def test_a_batch_in_parts_costs_and_teaches_what_the_batch_at_once_does(bench):
    """With a network that has no batch statistics."""
    found = {}
    for micro_batch in (None, 3):
        spec = dataclasses.replace(bench.plan.spec, backbone="convnext_atto")
        plan = dataclasses.replace(bench.plan, spec=spec, experiment=experiment(micro_batch=micro_batch))
        on = dataclasses.replace(bench, plan=plan, objective=Objective(plan.experiment, bench.ground, dim=8, device=CPU))
        state = initial(plan, on.objective, CPU)
        state.parallel.train()
        value = learn(on, state, torch.from_numpy(on.chips.pixels), torch.from_numpy(on.chips.valid), batch())
        found[micro_batch] = value, torch.cat([part.grad.flatten() for part in state.module.parameters()])
    assert found[3][0] == pytest.approx(found[None][0], rel=1e-5)
    assert (found[3][1] - found[None][1]).norm() < 1e-4 * found[None][1].norm()
