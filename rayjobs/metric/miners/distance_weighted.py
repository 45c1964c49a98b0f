"""Distance-weighted sampling (Wu et al., Sampling matters in deep embedding learning, 2017)."""

from __future__ import annotations

import torch

from rayjobs.metric.miners.protocol import Compared, Miner
from rayjobs.metric.relations import Tuples


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
        generator = torch.Generator().manual_seed(compared.seed)
        # Drawn on the CPU, so that ranks agree whatever their devices; from (0, 1], so that no item of weight 0 is met.
        drawn = (1 - torch.rand(len(anchor), dtype=upto.dtype, generator=generator)).to(upto.device)
        negative = _where_reached(upto, anchor, drawn * upto[anchor, -1])
        return anchor, positive, negative

    def _log_weights(self, compared: Compared) -> torch.Tensor:
        """Return (n, m) float64, -inf where an item is no candidate."""
        distances, dim = compared.distances.double(), compared.dim
        clipped = distances.clamp(min=self.cutoff, max=self.farthest)
        rarity = (2 - dim) * clipped.log() + (3 - dim) / 2 * (1 - clipped.square() / 4).clamp_min(1e-12).log()
        return rarity.masked_fill(~compared.negative | (distances >= self.farthest), -torch.inf)


def _where_reached(upto: torch.Tensor, rows: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return where each of some rows, ascending, first reaches its level; rows of one anchor are looked up together."""
    place = torch.arange(len(rows), device=rows.device)
    place = place - torch.searchsorted(rows, rows)  # the how-manieth of its anchor
    width = int(place.max()) + 1 if len(place) else 0
    wanted = upto.new_zeros(len(upto), width)
    wanted[rows, place] = levels
    return torch.searchsorted(upto, wanted)[rows, place]
