"""SimSiam: one version of a tile is predicted from another, and no negative is asked (Chen & He, Simple Siamese learning, 2021)."""

from __future__ import annotations

import torch
from torch.nn import functional

from rayjobs.metric.losses.protocol import Loss, refuse_reference
from rayjobs.metric.projector import perceptron
from rayjobs.metric.relations import Reference, Tuples

_LEAST_HIDDEN, _NARROWER = 16, 4


class SimSiamLoss(Loss):
    """Mean over ordered pairs of alike items of -cos(h(z_i), z_j), where z_j gets no gradient and h is a learned predictor.

    With two versions of each item that is 1/2 D(h(z_1), z_2) + 1/2 D(h(z_2), z_1) of the paper. The predictor is linear, batch norm, ReLU,
    linear; its batch norm sees the whole batch. Groups say what is alike; no tuples are taken.
    """

    takes_tuples = False

    def __init__(self, *, dim: int, hidden: int | None = None, seed: int = 0) -> None:
        """Take the numbers to be predicted, the width of the predictor's hidden layer and the seed of its first weights."""
        super().__init__()
        self.predictor = perceptron([dim, hidden or max(_LEAST_HIDDEN, dim // _NARROWER), dim], seed=seed, batch_norm="hidden")

    def forward(
        self,
        embeddings: torch.Tensor,
        groups: torch.Tensor,
        tuples: Tuples | None = None,  # noqa: ARG002  called like the others
        *,
        reference: Reference | None = None,
    ) -> torch.Tensor:
        """See `Loss`. A batch in which nothing is alike costs 0."""
        refuse_reference(reference)
        if len(embeddings) == 1:  # a batch norm has nothing to compare it with
            return embeddings.sum() * 0.0
        given = embeddings.to(next(self.parameters()).dtype)
        predicted = functional.normalize(self.predictor(given), dim=1).to(embeddings.dtype)
        alike = (groups[:, None] == groups).fill_diagonal_(fill_value=False)
        agreement = predicted @ functional.normalize(embeddings.detach(), dim=1).T
        return -(agreement * alike).sum() / alike.sum().clamp_min(1)
