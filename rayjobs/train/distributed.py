"""What the ranks of a training group exchange. Each function is the identity in a group of one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Concatenate the ranks' rows, with gradient.

    Every rank computes the same loss of the same rows, so the gradient of the summed losses with respect to its own rows is
    `world_size` times the slice it already has; DDP's mean over ranks then gives the gradient of one process on the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        ctx.rows = local.shape[0]
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        start = rank() * ctx.rows
        return gradients[0][start : start + ctx.rows] * world_size()


def gather(local: torch.Tensor) -> torch.Tensor:
    """Return all ranks' rows (world x rows, dim), in the order of ranks, with exact gradient; equal rows on every rank."""
    if world_size() == 1:
        return local
    gathered: torch.Tensor = _Gather.apply(local)
    return gathered


def share_rows(rows: torch.Tensor) -> torch.Tensor:
    """Fill in the rows that other ranks computed; each rank leaves zeros where it computed nothing."""
    if world_size() > 1:
        dist.all_reduce(rows)
    return rows


def agree_on_buffers(module: torch.nn.Module) -> None:
    """Give every rank the running statistics of rank 0, which alone would differ between ranks."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def agree_on_weights(module: torch.nn.Module) -> None:
    """Give every rank the weights of rank 0, where each has computed them by itself: machines differ in last bits and signs."""
    if world_size() > 1:
        for parameter in module.parameters():
            dist.broadcast(parameter.data, 0)


def agree_on_gradients(module: torch.nn.Module) -> None:
    """Average the gradients of what every rank learns from the same batch, outside DDP: their last bits may differ on GPUs."""
    if world_size() > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


def agreed(yes: bool, device: torch.device) -> bool:  # noqa: FBT001  a question has one answer
    """Tell whether all ranks say yes; `device` is where the group's tensors live."""
    answer = torch.tensor(int(yes), device=device)
    if world_size() > 1:
        dist.all_reduce(answer, dist.ReduceOp.MIN)
    return bool(answer)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()
