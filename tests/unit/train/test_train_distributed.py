"""Two ranks, each with half a batch, against one process with the whole: the same loss and the same gradient."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from rayjobs.metric.losses import NTXentLoss
from rayjobs.metric.miners import build_miner
from rayjobs.metric.section import NoMiner
from rayjobs.train.distributed import agree_on_buffers, agree_on_weights, gather, share_rows

RANKS, ROWS = 2, 8


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images, torch.arange(ROWS) // 2


def loss_of(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    tuples = build_miner(NoMiner(kind="none"))(embeddings.detach(), labels, torch.zeros(ROWS, ROWS, dtype=torch.bool))
    return NTXentLoss(temperature=0.3)(torch.nn.functional.normalize(embeddings, dim=1), labels, tuples)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    model = DistributedDataParallel(network())
    images, labels = batch()
    share = ROWS // RANKS
    embeddings = gather(model(images[rank * share : (rank + 1) * share]))
    loss = loss_of(embeddings, labels)
    loss.backward()
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank + 1.0)
    agree_on_buffers(norm)
    whitened = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(whitened.weight, 1.0 - 2 * rank)  # a direction of another sign
    agree_on_weights(whitened)
    rows = torch.zeros(RANKS, 2)
    rows[rank] = rank + 1.0
    found = {
        "loss": loss.detach(),
        "gradients": [parameter.grad for parameter in model.module.parameters()],
        "buffer": norm.running_mean,
        "weight": whitened.weight.detach(),
        "rows": share_rows(rows),
    }
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_learn_what_one_does(tmp_path):
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=RANKS)
    model = network()
    images, labels = batch()
    loss = loss_of(gather(model(images)), labels)
    loss.backward()
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(found["loss"], loss.detach())
        for theirs, parameter in zip(found["gradients"], model.parameters(), strict=True):
            torch.testing.assert_close(theirs, parameter.grad)
        torch.testing.assert_close(found["buffer"], torch.ones(2))
        torch.testing.assert_close(found["weight"], torch.ones(1, 2))
        torch.testing.assert_close(found["rows"], torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
