"""What every miner is: from a batch's embeddings to index tuples, with no negative that geography forbids."""

from __future__ import annotations

from typing import Protocol

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, LpDistance

from rayjobs.metric.relations import Tuples


class Miner(Protocol):
    """Chooses tuples of a batch. Stateless: the same batch gives the same tuples."""

    def __call__(self, embeddings: torch.Tensor, groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> Tuples:
        """Return triplets or pairs; see `rayjobs.metric.relations`.

        Args:
            embeddings: (n, dim); no gradient is kept.
            groups: (n,) int64; items of one group are alike.
            forbidden: (n, n) bool, True where two items must not be called unlike; such a pair neither is mined nor hides another. None for
                nowhere.
        """
        ...


def blind_to(forbidden: torch.Tensor | None, groups: torch.Tensor, distance: type[BaseDistance]) -> BaseDistance:
    """Return one of the library's distances under which forbidden negatives lie farther off than anything else."""
    if forbidden is None:
        return distance()
    hidden = forbidden & (groups[:, None] != groups[None, :])
    return _BLIND[distance](hidden)


class _BlindEuclidean(LpDistance):  # type: ignore[misc]  # the library has no types
    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def compute_mat(self, query_emb: torch.Tensor, ref_emb: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = super().compute_mat(query_emb, ref_emb)
        return found.masked_fill(self._hidden, torch.inf)


class _BlindCosine(CosineSimilarity):  # type: ignore[misc]  # the library has no types
    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def compute_mat(self, query_emb: torch.Tensor, ref_emb: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = super().compute_mat(query_emb, ref_emb)
        return found.masked_fill(self._hidden, -torch.inf)


_BLIND = {LpDistance: _BlindEuclidean, CosineSimilarity: _BlindCosine}
