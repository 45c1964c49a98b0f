"""Runs whose encoder hashes: they learn, are mined by their codes, and go on after a checkpoint as if nothing had been."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from rayjobs.storage import Lease
from rayjobs.train.batches import EpochPlan, plan_epoch
from rayjobs.train.ground import supervise
from rayjobs.train.loop import find_looks
from rayjobs.train.mine import embed_all, mined_with
from rayjobs.train.objective import Batch
from rayjobs.train.state import save
from rayjobs.train.step import learn, train_epoch
from tests.small_run import COUNT, CPU, opened

BITS, STEPS = 8, 3
SECTIONS = {
    "train": {"supervision": "labels"},
    "hashing": {"push": 0.01},
    "interclass": {"weight": 0.5, "clusters": 3},
    "projector": {"dim": 5},
    "tiles": {"min_neg_dist": 0, "min_pos_dist": 0},
}


@pytest.fixture
def make(tmp_path):
    """Make a run as a worker does, on a plan whose lease is held."""
    uri = f"file:{tmp_path}/workspace"
    workspace = opened(uri, "").workspace
    with Lease(workspace.store, workspace.lease) as lease:
        yield lambda **sections: opened(uri, lease.token, model={"projection": "hash", "dim": BITS}, **{**SECTIONS, **sections})


def epoch(run) -> None:
    rng = np.random.default_rng(run.state.epoch)
    members = np.stack([rng.permutation(COUNT)[:4] for _ in range(STEPS)])
    train_epoch(run.on, run.state, EpochPlan(members=members, groups=run.on.ground.labels[members]))
    run.state.end_epoch()


def weights(run) -> torch.Tensor:
    parts = itertools.chain(run.state.module.state_dict().values(), run.objective.learned.parameters())
    return torch.cat([value.detach().double().flatten() for value in parts])


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_did_not_stop(make):
    straight = make()
    find_looks(straight.on, straight.state)
    assert len(np.unique(straight.objective.looks)) == 3
    epoch(straight)
    save(straight.plan, straight.state, straight.objective)
    epoch(straight)
    again = make()
    assert again.state.epoch == 1
    np.testing.assert_array_equal(again.objective.looks, straight.objective.looks)
    epoch(again)
    torch.testing.assert_close(weights(again), weights(straight), rtol=0, atol=0)


def test_what_is_mined_and_looked_at_are_codes(make):
    run = make(mining={"negatives": 2, "max_candidates": 8})
    epoch(run)
    vectors = embed_all(run.state.module, run.on.shown, CPU)
    torch.testing.assert_close(vectors.abs(), torch.full((COUNT, BITS), BITS**-0.5))
    supervision = supervise(run.plan.experiment, run.on.ground)
    mined, _ = mined_with(run.plan.experiment, run.on.ground, supervision, run.state.module, run.on.shown, CPU)
    hamming = [
        np.count_nonzero(vectors[tile] != vectors[found]) for tile, found in enumerate(mined.candidates[:, 0].tolist()) if found >= 0
    ]
    assert hamming
    np.testing.assert_allclose(mined.scores[mined.candidates[:, 0] >= 0, 0], 1 - 2 * np.array(hamming) / BITS, atol=1e-6)
    assert run.state.module.training


def test_a_batch_in_parts_costs_what_the_batch_at_once_does(make):
    """With a network that has no batch statistics."""
    found = {}
    for micro_batch in (None, 2):
        run = opened(
            make().plan.experiment.workspace.uri,
            "",
            model={"projection": "hash", "dim": BITS, "backbone": "convnext_atto"},
            **{**SECTIONS, "train": {"supervision": "labels", "micro_batch": micro_batch}},
        )
        run.state.parallel.train()
        members = np.arange(4)
        pixels, valid = torch.from_numpy(run.on.shown.pixels[members]), torch.from_numpy(run.on.shown.valid[members])
        batch = Batch(items=members, groups=torch.from_numpy(run.on.ground.labels[members]), clusters=None, seed=0)
        value = learn(run.on, run.state, (pixels, valid), batch)
        found[micro_batch] = value, torch.cat([part.grad.flatten() for part in run.state.module.parameters()])
    assert found[2][0] == pytest.approx(found[None][0], rel=1e-5)
    assert (found[2][1] - found[None][1]).norm() < 1e-4 * found[None][1].norm()


def test_training_brings_codes_of_a_class_together(make):
    """Tiles of one class are bright, of the other dark."""
    run = make(projector={}, interclass={}, loss={"kind": "triplet", "margin": 0.5}, miner={"kind": "none"}, memory={})
    rng = np.random.default_rng(1)
    run.on.shown.pixels[:] = (60 + 100 * run.on.ground.labels[:, None, None, None] + rng.integers(0, 40, run.on.shown.pixels.shape)).astype(
        np.uint8
    )
    for _ in range(8):
        epoch(run)
    codes = embed_all(run.state.module, run.on.shown, CPU)
    distance = (codes[:, None] != codes[None]).sum(2).numpy()
    alike = run.on.ground.labels[:, None] == run.on.ground.labels[None]
    assert distance[alike].mean() < 0.5 * distance[~alike].mean()


def test_views_alone_teach_the_hash_net_and_the_projector(make):
    """Neither labels nor ground are known of the tiles."""
    run = make(train={"supervision": "views", "augment": {"noise": 0.2}}, loss={"kind": "ntxent"}, miner={"kind": "none"}, interclass={})
    supervision = supervise(run.plan.experiment, run.on.ground)
    before = copy.deepcopy([*run.state.module.projection.parameters(), *run.objective.learned.parameters()])
    planned = plan_epoch(supervision, np.random.default_rng(0), steps=2, batch=8, group=2, mined=None, mined_share=0.5)
    train_epoch(run.on, run.state, planned)
    after = [*run.state.module.projection.parameters(), *run.objective.learned.parameters()]
    assert len(after) == 6 + 2
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert np.isfinite(run.state.losses).all()
