from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.metric.relations import Reference, as_pairs, as_quadruplets, as_triplets, pairs, triplets


def listed(tuples):
    return list(zip(*(part.tolist() for part in tuples), strict=True))


def quadruplets(*given):
    """As a sorted list of anchor, positive, negative and other."""
    found = as_quadruplets(*given)
    other, unlike = (part[found.other] for part in found.others)
    anchor, positive, negative = (part[found.triplet] for part in found.triplets)
    assert torch.equal(negative, unlike)
    return sorted(listed((anchor, positive, negative, other)))


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.integers(0, 4), min_size=0, max_size=9), seed=st.integers(0, 99))
def test_triplets_and_pairs_are_those_of_a_loop(groups, seed):
    count = len(groups)
    forbidden = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)) < 0.3
    labels = torch.tensor(groups, dtype=torch.int64)
    assert listed(triplets(labels, forbidden)) == [
        (a, p, n)
        for a, p, n in itertools.product(range(count), repeat=3)
        if a != p and groups[a] == groups[p] and groups[a] != groups[n] and not forbidden[a, n]
    ]
    for barred in (None, forbidden):
        positive, negative = listed(pairs(labels, barred)[:2]), listed(pairs(labels, barred)[2:])
        assert positive == [(a, p) for a, p in itertools.product(range(count), repeat=2) if a != p and groups[a] == groups[p]]
        assert negative == [
            (a, n)
            for a, n in itertools.product(range(count), repeat=2)
            if groups[a] != groups[n] and not (barred is not None and barred[a, n])
        ]


@settings(max_examples=50, deadline=None)
@given(
    groups=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    others=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    seed=st.integers(0, 99),
)
def test_triplets_against_a_reference_set_are_those_of_a_loop(groups, others, seed):
    shape = (len(groups), len(others))
    generator = torch.Generator().manual_seed(seed)
    forbidden, itself = (torch.rand(shape, generator=generator) < 0.3 for _ in range(2))
    reference = Reference(embeddings=torch.zeros(len(others), 2), groups=torch.tensor(others), itself=itself)
    assert listed(triplets(torch.tensor(groups), forbidden, reference)) == [
        (a, p, n)
        for a, p, n in itertools.product(range(len(groups)), range(len(others)), range(len(others)))
        if groups[a] == others[p] and groups[a] != others[n] and not forbidden[a, n] and not itself[a, p] and not itself[a, n]
    ]


@settings(max_examples=30, deadline=None)
@given(groups=st.lists(st.integers(0, 4), min_size=0, max_size=8))
def test_quadruplets_of_a_batch_are_those_of_a_loop(groups):
    wanted = [
        (a, p, n, o)
        for a, p, n, o in itertools.product(range(len(groups)), repeat=4)
        if a != p and groups[a] == groups[p] and len({groups[a], groups[n], groups[o]}) == 3
    ]
    labels = torch.tensor(groups, dtype=torch.int64)
    assert quadruplets(pairs(labels), labels) == wanted
    if 1 not in map(groups.count, groups):  # triplets do not tell who is unlike an item that is no anchor
        assert quadruplets(triplets(labels), labels) == wanted


def test_the_fourth_item_is_one_that_the_tuples_call_unlike_the_negative_either_way():
    groups = torch.tensor([0, 0, 1, 2, 3])
    one = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 2, 4, 3]), torch.tensor([2, 3, 2, 4]))
    assert quadruplets(one, groups) == [(0, 1, 2, 3), (0, 1, 2, 4)]


def test_against_a_reference_set_the_fourth_item_is_another_anchor_of_the_negative():
    groups = torch.tensor([0, 1, 2, 0])
    reference = Reference(embeddings=torch.zeros(5, 2), groups=torch.tensor([0, 3, 1, 3, 3]), itself=torch.zeros(4, 5, dtype=torch.bool))
    some = (torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 1, 2, 3, 2]), torch.tensor([1, 1, 1, 1, 3]))
    assert quadruplets(some, groups, reference) == [(0, 0, 1, 1), (0, 0, 1, 2)]


def test_pairs_in_any_order_make_the_same_triplets():
    some = (torch.tensor([3, 1]), torch.tensor([2, 0]), torch.tensor([1, 3, 1, 0]), torch.tensor([3, 0, 2, 2]))
    assert sorted(listed(as_triplets(some))) == [(1, 0, 2), (1, 0, 3), (3, 2, 0)]


def test_a_pair_of_several_triplets_counts_once():
    found = as_pairs((torch.tensor([0, 0, 0]), torch.tensor([1, 1, 2]), torch.tensor([5, 6, 5])))
    assert listed(found[:2]) == [(0, 1), (0, 2)]
    assert listed(found[2:]) == [(0, 5), (0, 6)]
