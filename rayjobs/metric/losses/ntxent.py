"""NT-Xent loss (Chen et al., SimCLR, 2020), the in-batch softmax."""

from __future__ import annotations

from pytorch_metric_learning import losses

from rayjobs.metric.losses.protocol import EveryPair, Loss
from rayjobs.metric.relations import as_pairs


class _NTXent(EveryPair, losses.NTXentLoss):  # type: ignore[misc]  # the library has no types
    pass


class NTXentLoss(Loss):
    """Mean over positive pairs of -log(exp(s+ / T) / (exp(s+ / T) + sum exp(s- / T))), summed over its negatives; s is the cosine."""

    def __init__(self, *, temperature: float = 0.1) -> None:
        """Take the temperature T."""
        super().__init__(_NTXent(temperature=temperature), as_pairs)
