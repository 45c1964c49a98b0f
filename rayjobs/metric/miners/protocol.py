"""What every miner is: from embeddings to index tuples, with no negative that geography forbids and no item compared with itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from rayjobs.metric.distances import DISTANCES
from rayjobs.metric.relations import Reference, Tuples, relations
from rayjobs.metric.section import Distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A batch of n items beside the m that they are compared with: what a miner chooses from."""

    distances: torch.Tensor
    """(n, m); smaller is nearer."""
    positive: torch.Tensor
    """(n, m) bool, True where a row's item may take the other for a positive."""
    negative: torch.Tensor
    """(n, m) bool, True where it may take it for a negative."""
    dim: int
    """Of the embeddings."""
    rows: torch.Tensor
    """(n,) int64 position of each item in its whole batch, of which these may be a part."""
    seed: int
    """Of what is drawn by chance."""


class Miner(ABC):
    """Chooses tuples. Stateless: the same batch and seed give an anchor the same tuples, whichever others are asked for with it."""

    distance: Distance = "euclidean"
    """Which distances it looks at."""

    @abstractmethod
    def choose(self, compared: Compared) -> Tuples:
        """Return triplets or pairs of what may be taken."""

    @torch.no_grad()
    def __call__(
        self,
        embeddings: torch.Tensor,
        groups: torch.Tensor,
        forbidden: torch.Tensor | None = None,
        *,
        reference: Reference | None = None,
        rows: torch.Tensor | None = None,
        seed: int = 0,
    ) -> Tuples:
        """Return triplets or pairs; see `rayjobs.metric.relations`.

        Args:
            embeddings: (n, dim) of any length; no gradient is kept.
            groups: (n,) int64; items of one group are alike.
            forbidden: (n, m) bool, True where two items must not be called unlike; such a pair neither is mined nor hides another. None for
                nowhere.
            reference: the m items among which positives and negatives are sought; None for the batch itself.
            rows: (n,) int64 positions of these anchors in their batch, where they are a part of it; None for all.
            seed: of what is drawn by chance; give each step its own.
        """
        positive, negative = relations(groups, forbidden, reference)
        others = embeddings if reference is None else reference.embeddings
        distances = DISTANCES[self.distance]()(embeddings, others)
        rows = torch.arange(len(embeddings), device=embeddings.device) if rows is None else rows
        dim = embeddings.shape[1]
        return self.choose(Compared(distances=distances, positive=positive, negative=negative, dim=dim, rows=rows, seed=seed))


def farthest_positives(compared: Compared) -> torch.Tensor:
    """Return (n,) each row's farthest positive; any item where it has none."""
    return compared.distances.masked_fill(~compared.positive, -torch.inf).argmax(1)


def nearest_negatives(compared: Compared) -> torch.Tensor:
    """Return (n,) each row's nearest negative; any item where it has none."""
    return compared.distances.masked_fill(~compared.negative, torch.inf).argmin(1)
