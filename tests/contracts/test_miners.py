"""What every miner promises."""

from __future__ import annotations

import math

import pydantic
import pytest
import torch

from rayjobs.metric.miners import MINERS, build_miner
from rayjobs.metric.section import HardMiner, MinerSection, MultiSimilarityMiner, NoMiner, SemiHardMiner

SECTIONS = [
    NoMiner(kind="none"),
    SemiHardMiner(margin=0.4),
    HardMiner(kind="hard"),
    MultiSimilarityMiner(kind="multi_similarity", epsilon=0.2),
]
every_miner = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)
seeds = pytest.mark.parametrize("seed", range(6))


def batch(seed, count=14, dim=4):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(count, dim, dtype=torch.float64, generator=generator))
    forbidden = torch.rand(count, count, generator=generator) < 0.4
    return embeddings, torch.randint(0, 4, (count,), generator=generator), forbidden | forbidden.T


def sets(tuples):
    """Positive pairs, negative pairs, and triplets where the miner gives them."""
    lists = [part.tolist() for part in tuples]
    if len(lists) == 3:
        a, p, n = lists
        return set(zip(a, p, strict=True)), set(zip(a, n, strict=True)), set(zip(a, p, n, strict=True))
    return set(zip(lists[0], lists[1], strict=True)), set(zip(lists[2], lists[3], strict=True)), None


def naive(kind, embeddings, groups, forbidden):
    """Positive pairs, negative pairs and triplets that a miner should give, one comparison at a time."""
    points, items = embeddings.tolist(), range(len(groups))
    groups = groups.tolist()
    alike = {a: [b for b in items if b != a and groups[a] == groups[b]] for a in items}
    unlike = {a: [b for b in items if groups[a] != groups[b] and not forbidden[a, b]] for a in items}

    def apart(a, b):
        return math.dist(points[a], points[b])

    def similar(a, b):
        return sum(x * y for x, y in zip(points[a], points[b], strict=True))

    if kind == "none":
        return {(a, p) for a in items for p in alike[a]}, {(a, n) for a in items for n in unlike[a]}, None
    if kind == "multi_similarity":
        both = [a for a in items if alike[a] and unlike[a]]
        positive = {(a, p) for a in both for p in alike[a] if similar(a, p) - 0.2 < max(similar(a, n) for n in unlike[a])}
        return positive, {(a, n) for a in both for n in unlike[a] if similar(a, n) + 0.2 > min(similar(a, p) for p in alike[a])}, None
    if kind == "hard":
        found = {
            (a, max(alike[a], key=lambda p: apart(a, p)), min(unlike[a], key=lambda n: apart(a, n)))
            for a in items
            if alike[a] and unlike[a]
        }
    else:
        found = {(a, p, n) for a in items for p in alike[a] for n in unlike[a] if 0 < apart(a, n) - apart(a, p) <= 0.4}
    return {(a, p) for a, p, _ in found}, {(a, n) for a, _, n in found}, found


def test_the_contract_covers_every_miner():
    assert {section.kind for section in SECTIONS} == set(MINERS)


@every_miner
@seeds
def test_positives_are_alike_negatives_are_not_and_nobody_meets_itself(section, seed):
    embeddings, groups, forbidden = batch(seed)
    positive, negative, _ = sets(build_miner(section)(embeddings, groups, forbidden))
    assert positive
    assert negative
    assert all(a != p and groups[a] == groups[p] for a, p in positive)
    assert all(groups[a] != groups[n] and not forbidden[a, n] for a, n in negative)


@every_miner
@seeds
@pytest.mark.parametrize("geography", [True, False])
def test_a_miner_equals_a_naive_loop(section, seed, geography):
    embeddings, groups, forbidden = batch(seed)
    found = build_miner(section)(embeddings, groups, forbidden if geography else None)
    wanted = naive(section.kind, embeddings, groups, forbidden if geography else torch.zeros_like(forbidden))
    assert sets(found) == wanted


@every_miner
def test_where_all_is_forbidden_nothing_is_unlike(section):
    embeddings, groups, _ = batch(0)
    _, negative, triplets = sets(build_miner(section)(embeddings, groups, groups[:, None] != groups[None, :]))
    assert not negative
    assert not triplets


@every_miner
@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["no negative", "no positive", "one item"])
def test_a_batch_without_triplets_has_none(section, groups):
    embeddings = torch.nn.functional.normalize(torch.randn(len(groups), 4, generator=torch.Generator().manual_seed(0)))
    found = build_miner(section)(embeddings, torch.tensor(groups), torch.zeros(len(groups), len(groups), dtype=torch.bool))
    positive, negative, triplets = sets(found)
    assert not triplets
    assert not (positive and negative)


@every_miner
@seeds
def test_the_same_batch_gives_the_same_tuples(section, seed):
    embeddings, groups, forbidden = batch(seed)
    once, again = (build_miner(section)(embeddings, groups, forbidden) for _ in range(2))
    torch.manual_seed(seed + 1)
    assert all(torch.equal(left, right) for left, right in zip(once, again, strict=True))


@every_miner
def test_indices_are_int64_and_carry_no_gradient(section):
    embeddings, groups, forbidden = batch(1)
    found = build_miner(section)(embeddings.requires_grad_(), groups, forbidden)
    assert all(part.dtype == torch.int64 and not part.requires_grad for part in found)


@pytest.mark.parametrize("kind", MINERS)
def test_every_miner_is_chosen_by_its_kind(kind):
    section = pydantic.TypeAdapter(MinerSection).validate_python({"kind": kind})
    assert type(build_miner(section)) is MINERS[kind]
