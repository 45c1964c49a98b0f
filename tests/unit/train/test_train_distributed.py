"""Two and three ranks, each with its share of a batch, against one process with the whole: the same loss and the same gradient."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from rayjobs.config import build
from rayjobs.experiment import Experiment
from rayjobs.metric.losses import LOSSES, Loss
from rayjobs.metric.miners import MINERS
from rayjobs.train.distributed import (
    agree_on_buffers,
    agree_on_gradients,
    agree_on_weights,
    gather,
    share_of,
    share_rows,
    total,
    world_size,
)
from rayjobs.train.gradient_cache import embed_without_graph, in_parts, pass_on
from rayjobs.train.ground import Ground
from rayjobs.train.objective import Batch, Objective, needs_clusters

TILES, ROWS, DIM, CLASSES = 40, 23, 6, 4
"""A batch of 23 divides neither by 2 nor by 3."""

FORMS = {
    "triplet": [{"form": "ratio"}, {"form": "margin", "distance": "squared"}],
    "quadruplet": [{"form": "ratio"}, {"form": "margin"}],
    "magnet": [{"form": "spatial", "batch_clusters": 5}, {"form": "published"}],
}
MEMORY = {"memory": {"size": 64, "warm_up": 0, "weight": 0.5}}
IN_PARTS = {
    "chunked": {"loss_memory_mib": 1},
    "micro-batch": {"micro_batch": 3},
    "chunked-micro-batch": {"loss_memory_mib": 1, "micro_batch": 3},
}
"""By name, settings that embed or compare a batch in parts: shares of 7, 8, 11 and 12 tiles, of which parts of 3 leave a ragged one."""
FEW_PAIRS = 2**20 // 100
"""Bytes of a pair, so that `loss_memory_mib: 1` holds 100 of them."""


def cases() -> dict[str, dict]:
    """Every loss of the table in each of its forms, every miner, the memory, and anchors taken some at a time."""
    every = {"kind": "none"}
    found = {
        f"{kind}-{number}": {"loss": {"kind": kind, **form}, "miner": every}
        for kind in LOSSES
        for number, form in enumerate(FORMS.get(kind, [{}]))
    }
    found |= {f"miner-{kind}": {"loss": {"kind": "multi_similarity"}, "miner": {"kind": kind}} for kind in MINERS}
    remembering = {f"memory-{kind}": {"loss": {"kind": kind}, "miner": every, **MEMORY} for kind in ("ntxent", "triplet", "quadruplet")}
    in_parts = {
        f"{name}-{kind}": {"loss": {"kind": kind}, "miner": every, "train": {"supervision": "labels", "batch_size": 24, **keys}}
        for name, keys in IN_PARTS.items()
        for kind in ("triplet", "supcon", "softmax")
    }
    coded = {"loss": {"kind": "triplet"}, "miner": every, "model": {"projection": "hash"}, "hashing": {"push": 0.1}}
    beside = {
        "hashing": coded,
        "interclass": coded | {"interclass": {"weight": 0.5}},
        "projector": {"loss": {"kind": "ntxent"}, "miner": every, "projector": {"dim": 3}},
        "projector-normed": {"loss": {"kind": "ntxent"}, "miner": every, "projector": {"dim": 3, "batch_norm": "hidden"}},
        "simsiam-normed": {"loss": {"kind": "simsiam"}, "miner": every, "projector": {"dim": 3, "layers": 3, "batch_norm": "all"}},
        "projector-hashing": coded | {"loss": {"kind": "ntxent"}, "projector": {"dim": 3}, **MEMORY},
    }
    return found | remembering | in_parts | beside


CASES = cases()
ON_TUPLES = {kind for kind, loss in LOSSES.items() if loss.takes_tuples}


def experiment(case: dict) -> Experiment:
    sources = [{"kind": "files", "uris": ["x.tif"]}]
    raw = {"name": "x", "rasters": {"sources": sources}, "train": {"supervision": "labels", "batch_size": 24}}
    return build(Experiment, raw | case)


def ground() -> Ground:
    """Tiles three sizes apart: none forbids another."""
    tiles = np.arange(TILES)
    return Ground(
        tile_ids=[str(number) for number in tiles],
        positions=3.0 * np.stack([tiles % 8, tiles // 8, 0 * tiles], axis=1),
        sizes=np.ones(TILES),
        reaches=np.ones(TILES),
        labels=tiles % CLASSES,
        fractions=np.eye(CLASSES, dtype=np.float32)[tiles % CLASSES],
        **extra(),
    )


def extra() -> dict[str, np.ndarray]:
    """Return what else is known of the tiles, whatever it is: one and the same of each."""
    known = {"tile_ids", "positions", "sizes", "reaches", "labels", "fractions"}
    return {field.name: np.arange(TILES) for field in dataclasses.fields(Ground) if field.name not in known}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, DIM)).double()


def learned(case: dict, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Learn from two batches; return the loss and every gradient of the second."""
    settings = experiment(case)
    with mock.patch.object(Loss, "pair_bytes", return_value=FEW_PAIRS if settings.train.loss_memory_mib == 1 else 100):
        return _learned(settings, model)


def _learned(settings: Experiment, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    objective = Objective(settings, ground(), dim=DIM, device=torch.device("cpu"))
    objective.learned.double()
    objective.looks = np.arange(TILES) // 3 % 5
    for step in range(2):
        items = np.random.default_rng(step).permutation(TILES)[:ROWS]
        clusters = torch.from_numpy(items % 8) if needs_clusters(settings) else None
        images = torch.randn(TILES, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)[items]
        model.zero_grad()
        objective.learned.zero_grad()
        local, parts = embedded(model, images[share_of(ROWS)], settings.train.micro_batch)
        batch = Batch(items=items, groups=torch.from_numpy(items % CLASSES), clusters=clusters, seed=step)
        loss = objective(gather(local, ROWS), batch)
        loss.backward()
        if parts:
            pass_on(model, embed_by(model), parts, local.grad)
        agree_on_gradients(objective.learned)
    parameters = [*model.parameters(), *objective.learned.parameters()]
    return {"loss": total(loss), "gradient": torch.cat([parameter.grad.flatten() for parameter in parameters])}


def embed_by(model: torch.nn.Module):
    return lambda images, _: torch.nn.functional.normalize(model(images))


def embedded(model: torch.nn.Module, images: torch.Tensor, micro_batch: int | None):
    """Embed a share as a step does."""
    if micro_batch is None:
        return embed_by(model)(images, None), []
    most = -(-ROWS // world_size())
    return embed_without_graph(model, embed_by(model), in_parts((images, torch.ones(len(images))), -(-most // micro_batch)))


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {name: learned(case, DistributedDataParallel(network())) for name, case in CASES.items()}
    torch.save({"learned": found, **agreements(rank, world)}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def agreements(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Bring numbers that differ by rank together."""
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank + 1.0)
    agree_on_buffers(norm)
    whitened = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(whitened.weight, 1.0 - 2 * rank)  # a direction of another sign
    agree_on_weights(whitened)
    rows = torch.zeros(world, 2)
    rows[rank] = rank + 1.0
    return {"buffer": norm.running_mean, "weight": whitened.weight.detach(), "rows": share_rows(rows)}


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """Return what each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_ranks_learn_what_one_process_does(ranks, name):
    """The relative difference of gradients stays below 1e-10; with a memory, which keeps float32, below its rounding."""
    whole = {key: value for key, value in CASES[name].items() if key != "train"}  # one process needs no parts
    alone = learned(whole, network())
    assert alone["gradient"].norm() > 1e-6
    bound = 1e-6 if "memory" in CASES[name] else 1e-10
    for found in ranks:
        assert found["learned"][name]["loss"].item() == pytest.approx(alone["loss"].item(), rel=bound)
        apart = (found["learned"][name]["gradient"] - alone["gradient"]).norm()
        assert apart < bound * alone["gradient"].norm()


@pytest.mark.parametrize(
    "name",
    [name for name, case in CASES.items() if "train" not in case and case["loss"]["kind"] in ON_TUPLES],
)
def test_anchors_taken_some_at_a_time_cost_the_same(name):
    whole = learned(CASES[name], network())
    small = learned(CASES[name] | {"train": {"supervision": "labels", "batch_size": 24, "loss_memory_mib": 1}}, network())
    assert small["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-12)
    torch.testing.assert_close(small["gradient"], whole["gradient"], rtol=1e-10, atol=1e-12)


def test_what_differs_by_rank_is_made_the_same(ranks):
    for found in ranks:
        torch.testing.assert_close(found["buffer"], torch.ones(2))
        torch.testing.assert_close(found["weight"], torch.ones(1, 2))
        torch.testing.assert_close(found["rows"], torch.arange(1.0, len(ranks) + 1)[:, None].expand(-1, 2))
