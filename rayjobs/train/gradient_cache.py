"""Batches of which a worker's share does not fit its memory (Gao et al., Scaling deep contrastive learning batch size, 2021).

A loss that compares all tiles of a batch cannot be had part by part, but its gradient can: embed without a graph, find the gradient of
the embeddings, then embed each part again with a graph and pass its gradient on. One more forward pass buys memory that does not grow
with the batch. Batch statistics are those of a part.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.parallel import DistributedDataParallel

from rayjobs.train.distributed import world_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayjobs.train.shown import Inputs

    Embed = Callable[..., torch.Tensor]
    """From what is shown of tiles, such as pixels and their validity, to embeddings (rows, dim) float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some tiles of this rank's share of a batch."""

    inputs: Inputs
    """What is shown of them, (rows, ...) each."""
    random: list[torch.Tensor]
    """State of the random numbers, as of dropped units, with which it was embedded."""


def parts_of(batch: int, micro_batch: int | None) -> int:
    """Return into how many parts each rank cuts its share of a batch: as many on all, though some have a tile more than others."""
    largest = -(-batch // world_size())
    return -(-largest // (micro_batch or largest))


def in_parts(inputs: Inputs, count: int) -> list[Inputs]:
    """Cut a share of a batch into `count` parts; the same count on all ranks, which else would wait for each other."""
    return list(zip(*(tensor.tensor_split(count) for tensor in inputs), strict=True))


@torch.no_grad()
def embed_without_graph(module: torch.nn.Module, embed: Embed, cut: list[Inputs]) -> tuple[torch.Tensor, list[Part]]:
    """Embed all parts, and leave the module as it was.

    Returns:
        embeddings (rows, dim), a leaf that takes a gradient, and what `pass_on` wants.
    """
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    rows, parts = [], []
    for inputs in cut:
        parts.append(Part(inputs=inputs, random=_random_state(inputs[0].device)))
        rows.append(embed(*inputs))
    for name, buffer in module.named_buffers():  # running statistics take in each tile once
        buffer.copy_(kept[name])
    return torch.cat(rows).requires_grad_(), parts


def pass_on(parallel: torch.nn.Module, embed: Embed, parts: list[Part], gradient: torch.Tensor) -> None:
    """Add to the parameters' gradients what that of the embeddings (rows, dim) makes of them; ranks agree after the last part."""
    start = 0
    for number, part in enumerate(parts):
        waiting = number < len(parts) - 1 and isinstance(parallel, DistributedDataParallel)
        count = len(part.inputs[0])
        _set_random_state(part.random, part.inputs[0].device)
        with parallel.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator]  # DDP's own
            embed(*part.inputs).backward(gradient[start : start + count])  # type: ignore[no-untyped-call]  # torch's
        start += count


def _random_state(device: torch.device) -> list[torch.Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def _set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
