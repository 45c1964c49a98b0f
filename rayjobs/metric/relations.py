"""Index tuples, the one form in which miners and losses meet, and which of them geography allows.

Triplets are three index tensors (anchor, positive, negative), pairs are four (anchor, positive, anchor, negative), as in
pytorch-metric-learning. Two items of one group are positives of each other, two of different groups negatives, unless `forbidden`.
"""

from __future__ import annotations

import torch

Tuples = tuple[torch.Tensor, ...]
"""Three or four int64 tensors of indices into the batch; the first two of four, and the last two, are of one length."""


def relations(groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two (n, n) bool matrices: which items are positives, and which are negatives, of each row's item.

    Args:
        groups: (n,) int64; items of one group are alike.
        forbidden: (n, n) bool, True where two items must not be called unlike, though their groups differ; None for nowhere.
    """
    same = groups[:, None] == groups[None, :]
    positive = same.clone().fill_diagonal_(fill_value=False)
    return positive, ~same if forbidden is None else ~same & ~forbidden


def pairs(groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> Tuples:
    """Return all positive and all negative pairs of a batch, in order of anchor and partner; see `relations`."""
    positive, negative = relations(groups, forbidden)
    return (*torch.where(positive), *torch.where(negative))


def triplets(groups: torch.Tensor, forbidden: torch.Tensor | None = None) -> Tuples:
    """Return all triplets of a batch, in order of anchor, positive, negative; see `relations`."""
    return as_triplets(pairs(groups, forbidden))


def allowed(tuples: Tuples, forbidden: torch.Tensor) -> Tuples:
    """Drop what calls two items unlike that must not be.

    Args:
        tuples: triplets or pairs.
        forbidden: (n, n) bool.

    Returns:
        Of triplets, those whose negative is not forbidden to the anchor; of pairs, all positive ones and the negative ones not forbidden.
    """
    *_, anchor, negative = (*tuples[:2], tuples[0], tuples[2]) if len(tuples) == _TRIPLET else tuples
    keep = ~forbidden[anchor, negative]
    if len(tuples) == _TRIPLET:
        return tuple(part[keep] for part in tuples)
    return (*tuples[:2], anchor[keep], negative[keep])


_TRIPLET = 3


def as_triplets(tuples: Tuples) -> Tuples:
    """Return triplets as they are, and pairs as every triplet that a positive and a negative pair of one anchor make.

    Memory grows with the number of triplets alone.
    """
    if len(tuples) == _TRIPLET:
        return tuples
    anchor, positive, other, negative = tuples
    order = torch.argsort(other, stable=True)
    other, negative = other[order], negative[order]
    first = torch.searchsorted(other, anchor, right=False)
    count = torch.searchsorted(other, anchor, right=True) - first
    rows = torch.repeat_interleave(torch.arange(len(anchor), device=anchor.device), count)
    within = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    return anchor[rows], positive[rows], negative[first[rows] + within]


def as_pairs(tuples: Tuples) -> Tuples:
    """Return pairs as they are, and triplets as the pairs in them, each once: a pair is not worth more for being in several triplets."""
    if len(tuples) != _TRIPLET:
        return tuples
    anchor, positive, negative = tuples
    return (*_unique(anchor, positive), *_unique(anchor, negative))


def _unique(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.unique(torch.stack([left, right]), dim=1)
    return both[0], both[1]
