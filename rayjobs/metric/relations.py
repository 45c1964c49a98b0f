"""Index tuples, the one form in which miners and losses meet, and which of them geography allows.

Triplets are three index tensors (anchor, positive, negative), pairs are four (anchor, positive, anchor, negative), as in
pytorch-metric-learning. Two items of one group are positives of each other, two of different groups negatives, unless `forbidden`.
Anchors are items of the batch; positives and negatives are items of the batch too, or of a `Reference` where one is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tuples = tuple[torch.Tensor, ...]
"""Three or four int64 tensors of indices; the first two of four, and the last two, are of one length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the anchors of a batch are compared with instead of the batch itself: what a memory holds, for one."""

    embeddings: torch.Tensor
    """(m, dim) of the batch's dtype; without gradient, as a rule."""
    groups: torch.Tensor
    """(m,) int64, numbered as the batch's."""
    itself: torch.Tensor
    """(n, m) bool, True where a row is the anchor's own item, which is neither positive nor negative of it."""


def relations(
    groups: torch.Tensor, forbidden: torch.Tensor | None = None, reference: Reference | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two (n, m) bool matrices: which items are positives, and which are negatives, of each row's item.

    Args:
        groups: (n,) int64; items of one group are alike.
        forbidden: (n, m) bool, True where two items must not be called unlike, though their groups differ; None for nowhere.
        reference: the m items; None for the batch itself, so that m = n.
    """
    if reference is None:
        same = groups[:, None] == groups[None, :]
        positive, negative = same.clone().fill_diagonal_(fill_value=False), ~same
    else:
        same = groups[:, None] == reference.groups[None, :]
        positive, negative = same & ~reference.itself, ~same & ~reference.itself
    return positive, negative if forbidden is None else negative & ~forbidden


def pairs(groups: torch.Tensor, forbidden: torch.Tensor | None = None, reference: Reference | None = None) -> Tuples:
    """Return all positive and all negative pairs, in order of anchor and partner; see `relations`."""
    positive, negative = relations(groups, forbidden, reference)
    return (*torch.where(positive), *torch.where(negative))


def triplets(groups: torch.Tensor, forbidden: torch.Tensor | None = None, reference: Reference | None = None) -> Tuples:
    """Return all triplets, in order of anchor, positive, negative; see `relations`."""
    return as_triplets(pairs(groups, forbidden, reference))


_TRIPLET = 3


def as_triplets(tuples: Tuples) -> Tuples:
    """Return triplets as they are, and pairs as every triplet that a positive and a negative pair of one anchor make.

    Memory grows with the number of triplets alone.
    """
    if len(tuples) == _TRIPLET:
        return tuples
    anchor, positive, other, negative = tuples
    left, right = _joined(anchor, other)
    return anchor[left], positive[left], negative[right]


def as_pairs(tuples: Tuples) -> Tuples:
    """Return pairs as they are, and triplets as the pairs in them, each once: a pair is not worth more for being in several triplets."""
    if len(tuples) != _TRIPLET:
        return tuples
    anchor, positive, negative = tuples
    return (*_unique(anchor, positive), *_unique(anchor, negative))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadruplets:
    """Triplets, each with the items of a third group that are unlike its negative; see `as_quadruplets`."""

    triplets: Tuples
    """Anchor, positive, negative."""
    others: Tuples
    """Two tensors: an item of the batch, and what is unlike it."""
    triplet: torch.Tensor
    """(quadruplets,) position in `triplets`."""
    other: torch.Tensor
    """(quadruplets,) position in `others`."""


def as_quadruplets(tuples: Tuples, groups: torch.Tensor, reference: Reference | None = None) -> Quadruplets:
    """Join every triplet with every item of neither of its groups that is unlike its negative.

    The fourth item is one of the batch, also where there is a reference set: an anchor to which the tuples call the same item unlike, or,
    within a batch, an item that they call unlike the negative. Memory grows with the number of quadruplets.

    Args:
        tuples: triplets or pairs.
        groups: (n,) int64.
        reference: what the positives and negatives are items of; None for the batch.
    """
    chosen = as_triplets(tuples)
    other, unlike = as_pairs(tuples)[2:]
    if reference is None:
        other, unlike = _unique(torch.cat([other, unlike]), torch.cat([unlike, other]))
    left, right = _joined(chosen[2], unlike)
    # index_select, here and by whoever uses this, is several times faster than indexing, and there may be millions.
    third = groups[chosen[0]].index_select(0, left) != groups[other].index_select(0, right)
    return Quadruplets(triplets=chosen, others=(other, unlike), triplet=left[third], other=right[third])


def _joined(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the two lists hold the same number, as positions in the one and in the other, in order of the first."""
    order = torch.argsort(right, stable=True)
    ordered = right[order]
    first = torch.searchsorted(ordered, left, right=False)
    count = torch.searchsorted(ordered, left, right=True) - first
    rows = torch.repeat_interleave(torch.arange(len(left), device=left.device), count)
    within = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    return rows, order[first[rows] + within]


def _unique(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    width = right.max() + 1 if len(right) else 1  # as one number: torch sorts columns of two far more slowly
    both = torch.unique(left * width + right)
    return both // width, both % width
