"""What every loss is: a module from embeddings to one number, by pairs and triplets or by what it has learned of the classes.

The formulas are pytorch-metric-learning's where it has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from rayjobs.errors import ConfigError, TrainingError
from rayjobs.metric.relations import Reference, Tuples


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What some anchors add to the loss of their batch: a loss is a sum of means, whose sums and counts both add up over anchors."""

    sums: torch.Tensor
    """(means,) with gradient."""
    counts: torch.Tensor
    """(means,) of how many things, of the same dtype; without gradient."""

    def over(self, counts: torch.Tensor) -> torch.Tensor:
        """Return these anchors' share of the loss, given the counts (means,) of the whole batch; 0 of a mean over nothing."""
        return (self.sums / counts.clamp_min(1)).sum()


class Loss(nn.Module):
    """A number to be made small. Its parameters, if it has any, are to be optimised and kept with the encoder's."""

    takes_tuples: ClassVar[bool]
    """Whether it lives on pairs and triplets, so that a miner chooses them and a reference set may be their other side."""

    def pair_bytes(self, dim: int) -> int:
        """Return about how much memory comparing an anchor with another takes, with its gradient, for embeddings of `dim` numbers."""
        del dim
        return 100  # distances on the ground and between embeddings, what is alike, unlike and forbidden

    def forward(
        self, embeddings: torch.Tensor, groups: torch.Tensor, tuples: Tuples | None = None, *, reference: Reference | None = None
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            embeddings: (n, dim) of any length.
            groups: (n,) int64; what the tuples were made of.
            tuples: triplets or pairs; see `rayjobs.metric.relations`. Losses that take none do not look at them.
            reference: what positives and negatives in the tuples are indices of; None for the batch.

        Returns:
            A number of the embeddings' dtype, without dimensions.
        """
        raise NotImplementedError


class TupleLoss(Loss):
    """A formula of pairs or triplets, of embeddings brought to length 1, whose value is a sum over anchors: see `part`.

    The library takes a batch of a single pair for an empty one, and weighs a pair by the triplets that it is in; here a single pair counts,
    and each pair counts once. A batch without a valid tuple costs 0, with the graph kept, so that every rank still has gradients to share.
    """

    takes_tuples = True

    def __init__(self, formula: nn.Module, form: Callable[[Tuples], Tuples], *, of: Literal["all", "positive"]) -> None:
        """Take a formula and how it is applied.

        Args:
            formula: a loss of the library, or one that has its `compute_loss`.
            form: brings tuples into the form that it is defined on.
            of: what each mean is over: all of its losses, or those above 0.
        """
        super().__init__()
        self.formula = formula
        self._form = form
        self._of = of

    def forward(
        self, embeddings: torch.Tensor, groups: torch.Tensor, tuples: Tuples | None = None, *, reference: Reference | None = None
    ) -> torch.Tensor:
        """See `Loss`.

        Raises:
            TrainingError: there are no tuples.
        """
        if tuples is None:
            raise TrainingError("a loss on pairs or triplets was called without them; give it what a miner chose")
        part = self.part(embeddings, groups, tuples, reference=reference)
        return part.over(part.counts)

    def part(self, embeddings: torch.Tensor, groups: torch.Tensor, tuples: Tuples, *, reference: Reference | None = None) -> Part:
        """Return what anchors add to the loss of a batch that may have others, as of another rank; arguments as of `forward`."""
        others = (embeddings, groups) if reference is None else (reference.embeddings, reference.groups)
        losses_of: Callable[..., dict[str, Any]] = self.formula.compute_loss  # type: ignore[assignment]  # modules tell no types
        record = losses_of(embeddings, groups, self._form(tuples), *others)
        # The library says 0 where there is nothing to lose.
        losses = [mean["losses"] if torch.is_tensor(mean["losses"]) else embeddings.sum(1) * 0.0 for mean in record.values()]
        counts = [torch.as_tensor(len(mean)) if self._of == "all" else (mean > 0).sum() for mean in losses]
        return Part(sums=torch.stack([mean.sum() for mean in losses]), counts=torch.stack(counts).to(embeddings))


class EveryPair:
    """Goes before one of the library's pair losses: a batch of one pair is a batch too."""

    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss_method: Callable[[torch.Tensor, Tuples], Any]

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,  # noqa: ARG002  the library's signature
        indices_tuple: Tuples,
        ref_emb: torch.Tensor,
        ref_labels: torch.Tensor,  # noqa: ARG002  the library's signature
    ) -> Any:
        """Return the library's record of a batch's losses."""
        return self.loss_method(self.distance(embeddings, ref_emb), indices_tuple)


class ClassLoss(Loss):
    """A formula of the library with a learned vector for each class. It takes no tuples and no reference set; groups are class numbers."""

    takes_tuples = False

    def __init__(self, formula: nn.Module, *, classes: int) -> None:
        """Take the library's loss and the number of classes, which are numbered from 0."""
        super().__init__()
        self.formula = formula
        self.classes = classes

    def forward(
        self,
        embeddings: torch.Tensor,
        groups: torch.Tensor,
        tuples: Tuples | None = None,  # noqa: ARG002  called like the others
        *,
        reference: Reference | None = None,
    ) -> torch.Tensor:
        """See `Loss`.

        Raises:
            ConfigError: there is a reference set.
            TrainingError: a group is no class.
        """
        refuse_reference(reference)
        if groups.min() < 0 or groups.max() >= self.classes:
            raise TrainingError(
                f"groups {int(groups.min())} to {int(groups.max())} are no numbers of {self.classes} classes; a loss with learned class "
                "weights needs train.supervision: labels"
            )
        loss: torch.Tensor = self.formula(embeddings, groups)
        return loss


def refuse_reference(reference: Reference | None) -> None:
    """Check that there is no reference set.

    Raises:
        ConfigError: there is one.
    """
    if reference is not None:
        raise ConfigError("a loss with class weights or clusters takes no reference set; switch the memory off, or choose another loss")


def mean_of_positive(losses: torch.Tensor) -> torch.Tensor:
    """Return the mean over the losses above 0, and 0, with the graph kept, where there are none."""
    positive = losses > 0
    return (losses * positive).sum() / positive.sum().clamp_min(1)
