"""Distance-weighted sampling (Wu et al., Sampling matters in deep embedding learning, 2017)."""

from __future__ import annotations

import numpy as np
import torch

from rayjobs.metric.miners.protocol import Compared, Miner
from rayjobs.metric.relations import Tuples

_GOLDEN = 0.6180339887498949


class DistanceWeightedMiner(Miner):
    """One triplet per positive pair, its negative drawn from those nearer than `farthest`, with weight min(1 / q(cutoff), 1 / q(d)).

    q(d) = d^(dim - 2) (1 - d^2 / 4)^((dim - 3) / 2) is, up to a factor, how often the Euclidean distance d comes between random points of
    the sphere. Anchors without such a negative have no triplet.
    """

    def __init__(self, *, cutoff: float = 0.5, farthest: float = 1.4) -> None:
        """Take the distance below which weights no longer grow, and that at which they end."""
        self.cutoff, self.farthest = cutoff, farthest

    def choose(self, compared: Compared) -> Tuples:
        """Return triplets; see `Miner`."""
        weights = self._log_weights(compared).softmax(1).nan_to_num(0)  # a row without any candidate is no number
        upto = weights.cumsum(1)
        anchor, positive = torch.where(compared.positive & (upto[:, -1:] > 0))
        negative = _where_reached(upto, anchor, _drawn(compared, anchor) * upto[anchor, -1])
        return anchor, positive, negative

    def _log_weights(self, compared: Compared) -> torch.Tensor:
        """Return (n, m) float64, -inf where an item is no candidate."""
        distances, dim = compared.distances.double(), compared.dim
        clipped = distances.clamp(min=self.cutoff, max=self.farthest)
        rarity = (2 - dim) * clipped.log() + (3 - dim) / 2 * (1 - clipped.square() / 4).clamp_min(1e-12).log()
        return rarity.masked_fill(~compared.negative | (distances >= self.farthest), -torch.inf)


def _drawn(compared: Compared, anchor: torch.Tensor) -> torch.Tensor:
    """Draw a number from (0, 1], so that no item of weight 0 is met, for each positive pair of anchors in ascending order.

    An anchor begins at a number that depends on its row in the batch and on the seed alone, and goes on by the golden ratio: each draw by
    itself is uniform, those of one anchor spread evenly, and neither another anchor nor a rank's device changes them.
    """
    rows = compared.rows.cpu().numpy()
    first = np.random.default_rng(compared.seed).random(int(rows.max(initial=-1)) + 1)[rows]
    begun = torch.from_numpy(first).to(anchor.device)
    return 1 - (begun[anchor] + _nth(anchor) * _GOLDEN).frac()


def _nth(rows: torch.Tensor) -> torch.Tensor:
    """Return for each of some ascending rows the how-manieth of its kind it is, from 0."""
    return torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)


def _where_reached(upto: torch.Tensor, rows: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return where each of some rows, ascending, first reaches its level; rows of one anchor are looked up together."""
    place = _nth(rows)
    width = int(place.max()) + 1 if len(place) else 0
    wanted = upto.new_zeros(len(upto), width)
    wanted[rows, place] = levels
    return torch.searchsorted(upto, wanted)[rows, place]
