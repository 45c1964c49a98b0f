from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.metric.relations import allowed, as_pairs, as_triplets, pairs, triplets


def listed(tuples):
    return list(zip(*(part.tolist() for part in tuples), strict=True))


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.integers(0, 4), min_size=0, max_size=9), seed=st.integers(0, 99))
def test_triplets_and_pairs_are_those_of_a_loop(groups, seed):
    count = len(groups)
    forbidden = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)) < 0.3
    labels = torch.tensor(groups, dtype=torch.int64)
    wanted = [
        (a, p, n)
        for a, p, n in itertools.product(range(count), repeat=3)
        if a != p and groups[a] == groups[p] and groups[a] != groups[n] and not forbidden[a, n]
    ]
    assert listed(triplets(labels, forbidden)) == wanted
    assert listed(allowed(triplets(labels), forbidden)) == wanted
    positive, negative = listed(pairs(labels)[:2]), listed(pairs(labels)[2:])
    assert positive == [(a, p) for a, p in itertools.product(range(count), repeat=2) if a != p and groups[a] == groups[p]]
    assert negative == [(a, n) for a, n in itertools.product(range(count), repeat=2) if groups[a] != groups[n]]
    kept = allowed(pairs(labels), forbidden)
    assert listed(kept[:2]) == positive
    assert listed(kept[2:]) == [(a, n) for a, n in negative if not forbidden[a, n]]


def test_pairs_in_any_order_make_the_same_triplets():
    some = (torch.tensor([3, 1]), torch.tensor([2, 0]), torch.tensor([1, 3, 1, 0]), torch.tensor([3, 0, 2, 2]))
    assert sorted(listed(as_triplets(some))) == [(1, 0, 2), (1, 0, 3), (3, 2, 0)]


def test_a_pair_of_several_triplets_counts_once():
    found = as_pairs((torch.tensor([0, 0, 0]), torch.tensor([1, 1, 2]), torch.tensor([5, 6, 5])))
    assert listed(found[:2]) == [(0, 1), (0, 2)]
    assert listed(found[2:]) == [(0, 5), (0, 6)]
