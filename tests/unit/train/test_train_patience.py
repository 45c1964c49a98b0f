"""The loss on held-out tiles is that of their batches, leaves no trace in training, and ends it when it has stopped falling."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rayjobs.config import build
from rayjobs.storage import Lease, open_store
from rayjobs.train import patience
from rayjobs.train.patience import HeldOut
from rayjobs.train.section import TrainSection
from rayjobs.train.shown import ChipCache
from rayjobs.train.state import State, save
from tests.small_run import COUNT, CPU, EPOCHS, opened

VIEWS = {
    "train": {"supervision": "views", "augment": {"brightness": 0.5}, "ema": 0, "patience": 1},
    "loss": {"kind": "ntxent"}, "miner": {"kind": "none"}, "projector": {"dim": 3, "batch_norm": "hidden"},
}  # fmt: skip
CLASSES = {"train": {"supervision": "labels", "ema": 0}, "loss": {"kind": "cross_entropy", "dropout": 0.5}, "memory": {}}


@pytest.fixture
def make(tmp_path):
    """Make a run, and its held-out tiles: the training tiles upside down."""
    uri = f"file:{tmp_path}"
    with Lease(open_store(uri), "runs/x/lease") as lease:

        def made(monkeypatch, sections, ground=lambda found: found):
            run = opened(uri, lease.token, **{name: dict(given) for name, given in sections.items()})
            shown = ChipCache(pixels=run.on.shown.pixels[:, :, ::-1].copy(), valid=run.on.shown.valid)
            of_held_out = ground(run.on.ground)
            monkeypatch.setattr(patience, "ground_of", lambda *_: of_held_out)
            run.held_out = HeldOut.of(run.plan, None, shown, run.objective, run.on.ground)
            return run

        yield made


@pytest.mark.parametrize("sections", [VIEWS, CLASSES], ids=["views", "classes"])
def test_the_loss_is_the_same_each_time_and_leaves_no_trace(make, monkeypatch, sections):
    run = make(monkeypatch, sections)
    run.state.module.train()
    before = {name: value.clone() for name, value in run.state.module.state_dict().items()}
    first, again = (run.held_out.loss(run.plan, run.state, CPU) for _ in range(2))
    assert first == again > 0
    assert run.state.module.training
    assert run.objective.learned.training
    assert all(torch.equal(value, before[name]) for name, value in run.state.module.state_dict().items())
    assert math.isnan(float(run.objective.spread))


def test_the_loss_of_classes_is_that_of_a_plain_loop_over_tiles_as_they_are(make, monkeypatch):
    run = make(monkeypatch, CLASSES)
    module, head = run.state.module.eval(), run.objective.loss.formula
    costs = []
    for members in run.held_out.batches.members:
        pixels = torch.from_numpy(run.held_out.shown.pixels[members])
        with torch.no_grad():
            scores = module(pixels) @ head.weight.T + head.bias
        costs.append(torch.nn.functional.cross_entropy(scores, torch.from_numpy(members % 2)).item())
    assert run.held_out.loss(run.plan, run.state, CPU) == pytest.approx(np.mean(costs), rel=1e-5)


def test_classes_have_the_numbers_that_they_have_in_training(make, monkeypatch):
    def turned(ground):
        return dataclasses.replace(ground, labels=np.array([0, 1, 2, 0, 1, 2, -1, 0]), class_names=("new", "old", "other"))

    def named(ground):
        return dataclasses.replace(ground, class_names=("old", "other"))

    run = SimpleNamespace(ground=named(make(monkeypatch, CLASSES).on.ground))
    found = patience._numbered_as(turned(run.ground), run.ground)
    assert found.labels.tolist() == [-1, 0, 1, -1, 0, 1, -1, -1]
    assert found.class_names == ("old", "other")


def test_a_run_is_over_when_the_loss_has_not_fallen_for_so_many_checkpoints():
    state = State(module=torch.nn.Identity(), parallel=torch.nn.Identity(), optimizer=None)
    settings = build(TrainSection, {"epochs": 20, "patience": 2})
    over = []
    for loss in (3.0, 2.0, 2.5, 1.9, 1.9, 2.0):
        state.measured(loss)
        over.append(state.is_over(settings))
    assert over == [False] * 5 + [True]
    assert not state.is_over(build(TrainSection, {"epochs": 20}))
    state.epoch = 20
    assert state.is_over(build(TrainSection, {"epochs": 20}))


def test_how_long_the_loss_has_stalled_is_kept_and_the_last_checkpoint_says_that_the_run_is_over(make, monkeypatch):
    run = make(monkeypatch, VIEWS)
    for epoch, loss in enumerate((0.5, 0.75), 1):
        run.state.epoch = epoch
        run.state.measured(loss)
        assert save(run.plan, run.state, run.objective)
    assert [run.workspace.checkpoints.at(f"epoch-000{epoch}").manifest["over"] for epoch in (1, 2)] == [False, True]
    again = make(monkeypatch, VIEWS).state
    assert (again.epoch, again.least, again.stalled) == (2, 0.5, 1)
    assert again.epoch < EPOCHS < COUNT
