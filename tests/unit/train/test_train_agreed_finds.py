"""What rank 0 finds for all: the clusters and batches of magnet loss, its failures, and failures that are told to the driver."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayjobs.cluster.mailbox import Mailbox
from rayjobs.errors import TrainingError
from rayjobs.train import loop
from rayjobs.train import state as states
from rayjobs.train.distributed import found_by_rank_zero
from rayjobs.train.state import TrainPlan

TILES, STEPS = 40, 3


def planned(rank: int) -> list[list[int]]:
    """Plan batches of clusters on a rank whose embeddings and past losses differ from the others'."""
    rng = np.random.default_rng(rank)
    loop.embed_all = lambda *_: torch.from_numpy(rng.standard_normal((TILES, 4)).astype(np.float32))
    clustering = SimpleNamespace(every=1, per_class=2, per_batch=4)
    experiment = SimpleNamespace(clustering=clustering, train=SimpleNamespace(batch_size=16, seed=0))
    labels = np.arange(TILES) % 4
    on = SimpleNamespace(
        plan=SimpleNamespace(experiment=experiment),
        shown=SimpleNamespace(network_of=lambda module: module),
        device=None,
        ground=SimpleNamespace(labels=labels),
        objective=SimpleNamespace(recent=rng.random(TILES)),
    )
    state = SimpleNamespace(clusters=None, epoch=0, module=None)
    batches = loop._batches_of_clusters(on, state, np.random.default_rng(0), STEPS)
    return [state.clusters.of_item.tolist(), batches.members.tolist(), batches.clusters.tolist()]


def failed(rank: int) -> str:
    def find() -> None:
        raise TrainingError(f"rank {rank} fails")

    try:
        found_by_rank_zero(find)
    except TrainingError as error:
        return str(error)
    return ""


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    with open(f"{folder}/rank{rank}.json", "w", encoding="utf-8") as file:  # noqa: PTH123  as the ranks of the other tests do
        json.dump([planned(rank), failed(rank)], file)
    dist.destroy_process_group()


def test_every_rank_takes_the_clusters_batches_and_failures_of_rank_0(tmp_path):
    mp.spawn(one_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert first == second
    assert first[1] == "rank 0 fails"


@pytest.mark.parametrize(("world", "together"), [(1, True), (2, False)])
def test_a_failure_is_told_and_whether_all_ranks_met_it(monkeypatch, world, together):
    kept = Mailbox.__ray_metadata__.modified_class()
    calls = SimpleNamespace(fail=SimpleNamespace(remote=kept.fail), failed=SimpleNamespace(remote=kept.failed))
    monkeypatch.setattr(states.ray, "get", lambda value, **_: value)
    monkeypatch.setattr(states, "world_size", lambda: world)
    monkeypatch.setattr(states, "_ANSWER_S", 0.0)
    plan = TrainPlan(experiment=None, source=None, spec=None, mailbox=calls, lease="")
    error = TrainingError("x")
    assert plan.tell_failure(error) is together
    assert kept.take() == [{"kind": "failed", "error": error}]
    assert plan.failures() == {0}
