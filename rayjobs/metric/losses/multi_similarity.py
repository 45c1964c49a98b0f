"""Multi-similarity loss (Wang et al., 2019) on cosine similarities."""

from __future__ import annotations

from pytorch_metric_learning import losses

from rayjobs.metric.losses.protocol import EveryPair, TupleLoss
from rayjobs.metric.relations import as_pairs


class _MultiSimilarity(EveryPair, losses.MultiSimilarityLoss):  # type: ignore[misc]  # the library has no types
    pass


class MultiSimilarityLoss(TupleLoss):
    """Mean over anchors of log(1 + sum exp(-alpha (s+ - base))) / alpha + log(1 + sum exp(beta (s- - base))) / beta."""

    def __init__(self, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> None:
        """Take the sharpness over positives and negatives, and the similarity about which pairs are weighed."""
        super().__init__(_MultiSimilarity(alpha=alpha, beta=beta, base=base), as_pairs, of="all")
