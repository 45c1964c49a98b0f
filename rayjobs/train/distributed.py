"""What the ranks of a training group exchange. Each function is the identity in a group of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.nn import functional

from rayjobs.errors import RayjobsError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share_of(count: int) -> slice:
    """Return this rank's consecutive share of `count` rows; shares differ by one at most."""
    least, more = divmod(count, world_size())
    start = rank() * least + min(rank(), more)
    return slice(start, start + least + (rank() < more))


class _Gather(torch.autograd.Function):
    """Concatenate the ranks' shares of rows, with gradient.

    The ranks' losses add up to the loss of the batch, so the gradient of a row is the sum of what every rank's loss says of it. It is given
    `world_size` times, since DDP then takes the mean over ranks: that makes the gradient of one process on the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, count: int) -> torch.Tensor:
        ctx.share = share_of(count)
        most = -(-count // world_size())
        padded = functional.pad(local, (0, 0, 0, most - len(local)))  # a collective wants equal shapes
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(parts, padded)
        full = count % world_size() or world_size()
        return torch.cat([part if number < full else part[: most - 1] for number, part in enumerate(parts)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole[ctx.share] * world_size(), None


def gather(local: torch.Tensor, count: int) -> torch.Tensor:
    """Return all ranks' rows (count, dim), in the order of ranks, with exact gradient.

    Args:
        local: this rank's rows, as many as `share_of(count)`.
        count: of all ranks together.
    """
    if world_size() == 1:
        return local
    gathered: torch.Tensor = _Gather.apply(local, count)
    return gathered


def total(numbers: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks, the same on all, without gradient."""
    summed = numbers.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def share_rows(rows: torch.Tensor) -> torch.Tensor:
    """Fill in the rows that other ranks computed; each rank leaves zeros where it computed nothing."""
    if world_size() > 1:
        dist.all_reduce(rows)
    return rows


def from_rank_zero(value: T) -> T:
    """Return what rank 0 has, on every rank, of any size."""
    shared = [value]
    if world_size() > 1:
        dist.broadcast_object_list(shared, 0)
    return shared[0]


def found_by_rank_zero(find: Callable[[], T]) -> T:
    """Have rank 0 alone find something, and every rank take it; where it fails with an error of ours, every rank raises it."""
    found: T | RayjobsError | None = None
    if rank() == 0:
        try:
            found = find()
        except RayjobsError as error:
            found = error
    shared = from_rank_zero(found)
    if isinstance(shared, RayjobsError):
        raise shared
    return cast("T", shared)


def gathered(value: T) -> list[T]:
    """Return what each rank has, in the order of ranks, on all."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found


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
    """Sum over ranks the gradients of what is learned outside DDP, as the ranks' losses add up to that of the batch."""
    if world_size() > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)


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
