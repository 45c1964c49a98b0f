"""What is measured after an epoch: of the encoder as it would be used, without a trace in the training, and kept with the checkpoint."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rayjobs.storage import Lease, open_store
from rayjobs.train.loop import _validated
from rayjobs.train.shown import ChipCache
from rayjobs.train.state import save
from rayjobs.train.validation import Validation
from tests.small_run import opened

HELD_OUT = 5


@pytest.fixture
def run(tmp_path):
    uri = f"file:{tmp_path}"
    with Lease(open_store(uri), "runs/x/lease") as lease:
        made = opened(uri, lease.token)
        seen = []

        def measure(vectors):
            seen.append(vectors)
            return {"norm": float(np.linalg.norm(vectors))}

        pixels = np.random.default_rng(1).integers(0, 255, (HELD_OUT, 1, 8, 8)).astype(np.uint8)
        plan = dataclasses.replace(made.plan, validation=Validation(tiles=None, measure=measure))
        shown = ChipCache(pixels=pixels, valid=np.ones((HELD_OUT, 8, 8), bool))
        made.plan, made.on, made.seen = plan, dataclasses.replace(made.on, plan=plan, validated=shown), seen
        yield made


def test_the_averaged_encoder_is_measured_and_nothing_of_it_changes(run):
    run.state.average.module.projection.bias.data.add_(0.5)
    run.state.module.train()
    before = {name: value.clone() for name, value in run.state.module.state_dict().items()}
    figures = _validated(run.on, run.state)
    learned = run.state.learned.eval()
    with torch.inference_mode():
        expected = learned(torch.from_numpy(run.on.validated.pixels), torch.from_numpy(run.on.validated.valid)).numpy()
    np.testing.assert_allclose(run.seen[0], expected, atol=1e-6)
    assert figures == {"val/norm": pytest.approx(np.sqrt(HELD_OUT))}
    assert run.state.module.training
    assert all(torch.equal(value, before[name]) for name, value in run.state.module.state_dict().items())


def test_the_checkpoint_of_an_epoch_tells_what_was_measured(run):
    run.state.epoch, run.state.validated = 1, {"val/norm": 0.25}
    assert save(run.plan, run.state, run.objective)
    assert run.workspace.checkpoints.current().manifest["validation"] == {"val/norm": 0.25}


def test_a_training_that_nobody_watches_measures_nothing(run):
    alone = dataclasses.replace(run.on, plan=dataclasses.replace(run.plan, validation=None))
    assert _validated(alone, run.state) == {}
    assert run.seen == []
