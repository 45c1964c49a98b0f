"""A training run of eight tiles in this process, as a worker has it: no Ray, no cluster, a real workspace."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from rayjobs.config import build
from rayjobs.experiment import Experiment
from rayjobs.models.spec import ModelSpec
from rayjobs.train.ground import Ground
from rayjobs.train.objective import Objective
from rayjobs.train.shown import ChipCache
from rayjobs.train.state import TrainPlan, taken_up
from rayjobs.train.step import Bench

COUNT, SIDE, EPOCHS = 8, 8, 3
CPU = torch.device("cpu")
IDS = [f"{number:02}" for number in range(COUNT)]


def opened(uri: str, token: str, *, keep_checkpoints: int = 2, model: dict | None = None, **sections: dict) -> SimpleNamespace:
    """Return a run in the workspace at `uri` as it begins or goes on, under the lease named `token`, and what it tells.

    Args:
        uri: of the workspace.
        token: of the lease.
        keep_checkpoints: as `train.keep_checkpoints`.
        model: fields of the encoder's spec that differ, of which `projection` goes into the experiment too.
        sections: of the experiment, in place of those below.
    """
    raw = {
        "name": "x",
        "workspace": {"uri": uri},
        "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
        "tiles": {"min_neg_dist": 0},
        "loss": {"kind": "triplet"},
        "memory": {"size": 16, "warm_up": 2},
        "train": {
            "batch_size": 4,
            "precision": "fp32",
            "ema": 0.5,
            "epochs": EPOCHS,
            "keep_checkpoints": keep_checkpoints,
            "augment": {"brightness": 0.1},
            **sections.pop("train", {}),
        },
        "model": {name: value for name, value in (model or {}).items() if name == "projection"},
    }
    experiment = build(Experiment, raw | sections)
    spec = ModelSpec(**{
        "backbone": "resnet10t", "dim": 4, "bands": ("a",), "dtype": "uint8", "mean": (100.0,), "std": (40.0,),
        "tile_size": SIDE, "input_size": 32, "resolution_m": None, **(model or {}),
    })  # fmt: skip
    ground = Ground(
        tile_ids=IDS,
        positions=np.stack([np.arange(COUNT) * 5.0, np.zeros(COUNT), np.zeros(COUNT)], axis=1),
        sizes=np.ones(COUNT),
        reaches=np.ones(COUNT),
        labels=np.full(COUNT, -1) if experiment.train.supervision != "labels" else np.arange(COUNT) % 2,
        fractions=np.empty((COUNT, 0), np.float32),
        places=np.arange(COUNT),
        scenes=np.zeros(COUNT, np.int64),
        class_names=("even", "odd") if experiment.train.supervision == "labels" else (),
        dates=np.zeros(COUNT, np.int64),
    )
    pixels = np.random.default_rng(0).integers(0, 255, (COUNT, 1, SIDE, SIDE)).astype(np.uint8)
    told = SimpleNamespace(messages=[])
    told.post = SimpleNamespace(remote=told.messages.append)
    plan = TrainPlan(experiment=experiment, source=SimpleNamespace(version="set"), spec=spec, mailbox=told, lease=token)
    objective = Objective(experiment, ground, dim=spec.dim, device=CPU)
    shown = ChipCache(pixels=pixels, valid=np.ones((COUNT, SIDE, SIDE), bool))
    on = Bench(plan=plan, ground=ground, shown=shown, device=CPU, objective=objective)
    state = taken_up(plan, objective, CPU, IDS)
    workspace = experiment.open_workspace()
    return SimpleNamespace(on=on, plan=plan, state=state, objective=objective, workspace=workspace, told=told.messages)
