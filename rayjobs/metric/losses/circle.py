"""Circle loss (Sun et al., 2020) on cosine similarities."""

from __future__ import annotations

from pytorch_metric_learning import losses

from rayjobs.metric.losses.protocol import EveryPair, TupleLoss
from rayjobs.metric.relations import as_pairs


class _Circle(EveryPair, losses.CircleLoss):  # type: ignore[misc]  # the library has no types
    pass


class CircleLoss(TupleLoss):
    """Mean over anchors with positives and negatives, those not 0, of log(1 + sum exp(gamma w- (s- - m)) sum exp(-gamma w+ (s+ - 1 + m))).

    The weights w+ = max(0, 1 + m - s+) and w- = max(0, s- + m) say how far a similarity is from its optimum, and have no gradient.
    """

    def __init__(self, *, margin: float = 0.4, gamma: float = 80.0) -> None:
        """Take the relaxation m and the scale gamma."""
        super().__init__(_Circle(m=margin, gamma=gamma), as_pairs, of="positive")
