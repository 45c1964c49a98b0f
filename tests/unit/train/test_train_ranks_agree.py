"""Two and three ranks that mine, remember and learn: after every step each holds the same memory, mined tiles and weights."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from rayjobs.config import build
from rayjobs.experiment import Experiment
from rayjobs.models.encoder import build as build_encoder
from rayjobs.models.spec import ModelSpec
from rayjobs.train.batches import plan_epoch
from rayjobs.train.cache import ChipCache
from rayjobs.train.ground import Ground, supervise
from rayjobs.train.mine import mined_with
from rayjobs.train.objective import Objective
from rayjobs.train.state import State, TrainPlan, publish_mined
from rayjobs.train.step import Bench, train_epoch

TILES, SIDE, DIM, CLASSES = 150, 32, 8, 4
BATCH, STEPS, EPOCHS = 14, 2, 2
"""A batch of 14 does not divide by 3, nor the tiles' 19 blocks."""
CPU = torch.device("cpu")


def experiment(folder: str) -> Experiment:
    raw = {
        "name": "x",
        "workspace": {"uri": f"file://{folder}/workspace"},
        "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
        "loss": {"kind": "ntxent"},
        "miner": {"kind": "none"},
        "memory": {"size": 40, "warm_up": 1},
        "mining": {"positives": 2, "share": 0.5},
        "train": {"supervision": "labels", "batch_size": BATCH, "precision": "fp32", "epochs": EPOCHS, "learning_rate": 0.01},
    }
    return build(Experiment, raw)


def bench(folder: str) -> Bench:
    tiles = np.arange(TILES)
    ground = Ground(
        tile_ids=[f"{number:03}" for number in tiles],
        positions=np.stack([tiles * 5.0, 0.0 * tiles, 0.0 * tiles], axis=1),
        sizes=np.ones(TILES),
        reaches=np.ones(TILES),
        places=tiles,
        scenes=0 * tiles,
        dates=0 * tiles,
        labels=tiles % CLASSES,
        fractions=np.empty((TILES, 0), np.float32),
    )
    spec = ModelSpec(
        backbone="resnet10t",
        dim=DIM,
        bands=("a", "b"),
        dtype="uint8",
        mean=(128.0, 128.0),
        std=(74.0, 74.0),
        tile_size=SIDE,
        input_size=SIDE,
        resolution_m=None,
    )
    pixels = np.random.default_rng(0).integers(0, 255, (TILES, 2, SIDE, SIDE)).astype(np.uint8)
    chips = ChipCache(pixels=pixels, valid=np.ones((TILES, SIDE, SIDE), bool))
    plan = TrainPlan(experiment=experiment(folder), source=SimpleNamespace(version="made"), spec=spec, mailbox=None, lease="")
    return Bench(plan=plan, ground=ground, chips=chips, device=CPU, objective=Objective(plan.experiment, ground, dim=DIM, device=CPU))


def begun(on: Bench) -> State:
    module = build_encoder(on.plan.spec, 0)
    parallel = DistributedDataParallel(module) if dist.is_initialized() else module
    optimizer = torch.optim.SGD([{"params": list(module.parameters()), "lr": 0.01, "initial_lr": 0.01}])
    return State(module=module, parallel=parallel, optimizer=optimizer)


def trained(folder: str) -> list[dict[str, str]]:
    """Train, mining before each epoch; return what this rank held after each step."""
    on = bench(folder)
    state, supervision = begun(on), supervise(on.plan.experiment, on.ground)
    seen: list[dict[str, str]] = []
    for epoch in range(EPOCHS):
        mined, _ = mined_with(on.plan.experiment, on.ground, supervision, state.module, on.chips, CPU)
        publish_mined(on.plan, state, mined, on.ground.tile_ids)
        rng = np.random.default_rng(epoch)
        batches = plan_epoch(supervision, rng, steps=STEPS, batch=BATCH, group=2, mined=state.mined, mined_share=0.5, before=epoch * STEPS)
        train_epoch(on, state, batches, lambda: seen.append(held(on, state)))
        state.end_epoch()
    return seen


def held(on: Bench, state: State) -> dict[str, str]:
    assert state.mined is not None
    memory = on.objective.state_dict()["memory"]
    return {
        "memory": digest(*memory.values()),
        "remembered": str(int(memory["written"])),
        "mined": digest(torch.from_numpy(state.mined.negatives), torch.from_numpy(state.mined.positives)),
        "weights": digest(*state.module.parameters()),
        "loss": repr(state.losses[-1]),
    }


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    with open(f"{folder}/rank{rank}.json", "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(trained(folder), file)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_after_every_step_all_ranks_hold_the_same(world, tmp_path):
    mp.spawn(one_rank, args=(world, str(tmp_path)), nprocs=world)
    first, *others = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(world)]
    assert len(first) == EPOCHS * STEPS
    for other in others:
        assert other == first
    assert [step["remembered"] for step in first] == [str(BATCH * (step + 1)) for step in range(EPOCHS * STEPS)], "of all ranks"
    assert len({step["memory"] for step in first}) == EPOCHS * STEPS
    assert len({step["mined"] for step in first}) == EPOCHS, "each generation is mined with new weights"
