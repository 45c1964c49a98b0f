"""Cross-batch memory: embeddings of past batches as further positives and negatives (Wang et al., XBM, 2020). Knows no loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

_NOBODY = -1


class Remembered(NamedTuple):
    """Embeddings of past batches."""

    embeddings: torch.Tensor
    """(n, dim) without gradient."""
    groups: torch.Tensor
    """(n,) int64."""
    items: torch.Tensor
    """(n,) int64 index of each in the training set: an item is never compared with itself, however often it is held."""


class CrossBatchMemory(nn.Module):
    """A ring of the embeddings seen last, without gradient. What it holds is in its `state_dict`, and follows it to its device.

    Every rank updates it with the same gathered batch, so that it is the same on all. Updating it before it is asked makes the batch
    itself part of the reference set, each item but for itself, as published.
    """

    embeddings: torch.Tensor
    """(size, dim), the first `held` of them meant."""
    groups: torch.Tensor
    """(size,) int64."""
    items: torch.Tensor
    """(size,) int64 index of each item in the training set."""
    written: torch.Tensor
    """int64, without dimensions: embeddings ever taken in."""
    updates: torch.Tensor
    """int64, without dimensions: batches ever taken in."""

    def __init__(self, *, size: int, dim: int, warm_up: int = 0, dtype: torch.dtype = torch.float32) -> None:
        """Begin empty.

        Args:
            size: embeddings kept.
            dim: of each.
            warm_up: batches taken in before the memory answers.
            dtype: of the embeddings.
        """
        super().__init__()
        self.size, self.warm_up = size, warm_up
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("groups", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("items", torch.full((size,), _NOBODY))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def held(self) -> int:
        """Embeddings that it holds."""
        return min(int(self.written), self.size)

    @property
    def ready(self) -> bool:
        """Whether it is warm."""
        return int(self.updates) > self.warm_up

    @torch.no_grad()
    def update(self, embeddings: torch.Tensor, groups: torch.Tensor, items: torch.Tensor) -> None:
        """Take in a batch in place of the oldest; of a batch larger than the memory, the last `size`.

        Args:
            embeddings: (n, dim) of the whole batch of all ranks.
            groups: (n,) int64, numbered alike in all batches: two groups that are not alike never share a number.
            items: (n,) int64 index of each item in the training set.
        """
        embeddings, groups, items = (part.detach()[-self.size :] for part in (embeddings, groups, items))
        places = (self.written + torch.arange(len(items), device=self.written.device)) % self.size
        # New tensors each time: a reference set given out, perhaps part of a graph, stays as it was.
        self.embeddings = self.embeddings.index_copy(0, places, embeddings.to(self.embeddings.dtype))
        self.groups = self.groups.index_copy(0, places, groups)
        self.items = self.items.index_copy(0, places, items)
        self.written = self.written + len(items)
        self.updates = self.updates + 1

    def remembered(self) -> Remembered | None:
        """Return what it holds, in no order that means anything; None until it is warm."""
        held = self.held
        if not self.ready or not held:
            return None
        return Remembered(self.embeddings[:held], self.groups[:held], self.items[:held])
