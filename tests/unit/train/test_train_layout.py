"""What of a training state is refused before it is taken up: every part, missing or of another shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayjobs.errors import CheckpointError
from rayjobs.models.checkpoint import read_training_state, training_state_bytes
from rayjobs.train import state as states
from rayjobs.train.batches import EpochPlan
from rayjobs.train.layout import all_finite, check_counts, check_fits
from rayjobs.train.step import train_epoch
from tests.small_run import COUNT, opened

STEPS = 2
ONE = torch.ones(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run after a step, so that the optimizer has moments."""
    made = opened(f"file:{tmp_path_factory.mktemp('layout')}", "token")
    members = np.arange(4 * STEPS).reshape(STEPS, 4)
    made.state.batches = EpochPlan(members=members, groups=np.tile([0, 0, 1, 1], (STEPS, 1)))
    train_epoch(made.on, made.state, made.state.batches)
    return made


def checked(run, change=lambda _: None):
    saved = read_training_state(training_state_bytes(states._saved(run.state, run.objective)))
    change(saved)
    check_counts(saved)
    check_fits(saved, states._saved(run.state, run.objective), run.state.optimizer, tiles=COUNT)


def test_what_is_kept_can_be_taken_up(run):
    checked(run)
    checked(run, lambda saved: saved.pop("format"))  # the first ones did not number it


LAYOUTS = {
    "another format": lambda saved: saved.update(format=2),
    "no epoch": lambda saved: saved.pop("epoch"),
    "a step that is no number": lambda saved: saved.update(step="two"),
    "a generation below nothing": lambda saved: saved.update(generation=-1),
    "no optimizer": lambda saved: saved.pop("optimizer"),
    "no group": lambda saved: saved["optimizer"]["param_groups"].clear(),
    "a group without its own rate": lambda saved: saved["optimizer"]["param_groups"][0].pop("initial_lr"),
    "moments of another shape": lambda saved: saved["optimizer"]["state"].update({0: dict.fromkeys(("exp_avg", "exp_avg_sq"), ONE)}),
    "moments of no parameter": lambda saved: saved["optimizer"]["state"].update({10**9: {}}),
    "no memory": lambda saved: saved["objective"].pop("memory"),
    "a memory of another size": lambda saved: saved["objective"]["memory"].update(embeddings=ONE),
    "no average": lambda saved: saved.pop("average"),
    "weights that are not finite": lambda saved: saved.update(module={name: value * torch.nan for name, value in saved["module"].items()}),
    "clusters of other tiles": lambda saved: saved.update(
        clusters={"centres": ONE[:, None], "classes": ONE, "of_item": ONE, "variance": 1.0}
    ),
    "batches of a step beyond them": lambda saved: saved.update(step=STEPS + 1),
    "batches that point to no tile": lambda saved: saved["batches"]["members"].fill_(COUNT),
    "batches without groups": lambda saved: saved["batches"].pop("groups"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_is_refused(run, layout):
    with pytest.raises(CheckpointError, match=r"state\.pt.*take another checkpoint"):
        checked(run, LAYOUTS[layout])


def test_finite_numbers():
    assert all_finite({})
    assert all_finite({"a": ONE, "b": torch.tensor(3)})
    assert not all_finite({"a": ONE, "b": torch.tensor([1.0, torch.inf])})
