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

if TYPE_CHECKING:
    from collections.abc import Callable

    Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """From pixels and their validity to embeddings (rows, dim) float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some tiles of this rank's share of a batch."""

    pixels: torch.Tensor
    """(rows, bands, height, width)."""
    valid: torch.Tensor
    """(rows, height, width) bool, True means valid."""
    random: list[torch.Tensor]
    """State of the random numbers, as of dropped units, with which it was embedded."""


def in_parts(pixels: torch.Tensor, valid: torch.Tensor, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut a share of a batch into `count` parts; the same count on all ranks, which else would wait for each other."""
    return list(zip(pixels.tensor_split(count), valid.tensor_split(count), strict=True))


@torch.no_grad()
def embed_without_graph(
    module: torch.nn.Module, embed: Embed, cut: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, list[Part]]:
    """Embed all parts, and leave the module as it was.

    Returns:
        embeddings (rows, dim), a leaf that takes a gradient, and what `pass_on` wants.
    """
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    rows, parts = [], []
    for pixels, valid in cut:
        parts.append(Part(pixels=pixels, valid=valid, random=_random_state(pixels.device)))
        rows.append(embed(pixels, valid))
    for name, buffer in module.named_buffers():  # running statistics take in each tile once
        buffer.copy_(kept[name])
    return torch.cat(rows).requires_grad_(), parts


def pass_on(parallel: torch.nn.Module, embed: Embed, parts: list[Part], gradient: torch.Tensor) -> None:
    """Add to the parameters' gradients what that of the embeddings (rows, dim) makes of them; ranks agree after the last part."""
    start = 0
    for number, part in enumerate(parts):
        waiting = number < len(parts) - 1 and isinstance(parallel, DistributedDataParallel)
        _set_random_state(part.random, part.pixels.device)
        with parallel.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator]  # DDP's own
            embed(part.pixels, part.valid).backward(gradient[start : start + len(part.pixels)])  # type: ignore[no-untyped-call]  # torch's
        start += len(part.pixels)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def _set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)
