"""What every miner promises, within a batch and against a reference set."""

from __future__ import annotations

import math

import pydantic
import pytest
import torch
from pytorch_metric_learning import miners as library

from rayjobs.metric import section as sections
from rayjobs.metric.miners import MINERS, DistanceWeightedMiner, SemiHardMiner, build_miner
from rayjobs.metric.relations import Reference
from rayjobs.metric.section import MinerSection

SECTIONS = [
    sections.NoMiner(kind="none"),
    sections.HardNegativeMiner(kind="hard_negative"),
    sections.HardPositiveMiner(kind="hard_positive"),
    sections.HardMiner(kind="hard"),
    sections.SemiHardMiner(margin=0.4),
    sections.SemiHardMiner(margin=0.4, distance="squared"),
    sections.SemiHardMiner(margin=0.2, distance="cosine"),
    sections.SemiHardMiner(margin=0.4, negatives="nearest"),
    sections.MultiSimilarityMiner(kind="multi_similarity", epsilon=0.2),
    sections.DistanceWeightedMiner(kind="distance_weighted", farthest=1.6),
]
every_miner = pytest.mark.parametrize(
    "section", SECTIONS, ids=lambda s: "-".join([s.kind, *(getattr(s, k) for k in ("distance", "negatives") if hasattr(s, k))])
)
seeds = pytest.mark.parametrize("seed", range(4))
against = pytest.mark.parametrize("against", ["batch", "reference"])


def batch(seed, against="batch", count=14, dim=4):
    """Embeddings and groups of a batch, what it is compared with, and which pairs are forbidden."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(count, dim, dtype=torch.float64, generator=generator))
    groups = torch.randint(0, 4, (count,), generator=generator)
    forbidden = torch.rand(count, count, generator=generator) < 0.4
    if against == "batch":
        return embeddings, groups, forbidden | forbidden.T, None
    others = torch.nn.functional.normalize(torch.randn(count + 5, dim, dtype=torch.float64, generator=generator))
    labels = torch.randint(0, 4, (count + 5,), generator=generator)
    itself = torch.rand(count, count + 5, generator=generator) < 0.15
    forbidden = torch.rand(count, count + 5, generator=generator) < 0.4
    return embeddings, groups, forbidden, Reference(embeddings=others, groups=labels, itself=itself)


def mined(section, embeddings, groups, forbidden, reference, **given):
    return build_miner(section)(embeddings, groups, forbidden, reference=reference, **given)


def sets(tuples):
    """Positive pairs, negative pairs, and triplets where the miner gives them."""
    lists = [part.tolist() for part in tuples]
    if len(lists) == 3:
        a, p, n = lists
        return set(zip(a, p, strict=True)), set(zip(a, n, strict=True)), set(zip(a, p, n, strict=True))
    return set(zip(lists[0], lists[1], strict=True)), set(zip(lists[2], lists[3], strict=True)), None


class World:
    """A batch as lists: which items each may take for positives and negatives, and how near they are."""

    def __init__(self, embeddings, groups, forbidden, reference):
        others, labels = (embeddings, groups) if reference is None else (reference.embeddings, reference.groups)
        self.points, self.others = embeddings.tolist(), others.tolist()
        own, labels = groups.tolist(), labels.tolist()
        self.anchors = range(len(own))

        def itself(a, b):
            return a == b if reference is None else bool(reference.itself[a, b])

        admitted = {a: [b for b in range(len(labels)) if not itself(a, b)] for a in self.anchors}
        self.alike = {a: [b for b in admitted[a] if own[a] == labels[b]] for a in self.anchors}
        barred = set(map(tuple, forbidden.nonzero().tolist())) if forbidden is not None else set()
        self.unlike = {a: [b for b in admitted[a] if own[a] != labels[b] and (a, b) not in barred] for a in self.anchors}
        self.both = [a for a in self.anchors if self.alike[a] and self.unlike[a]]

    def apart(self, a, b, kind="euclidean"):
        left, right = self.points[a], self.others[b]
        far = math.dist(left, right)
        return {"euclidean": far, "squared": far**2, "cosine": 1 - sum(x * y for x, y in zip(left, right, strict=True))}[kind]

    def farthest(self, a):
        return max(self.alike[a], key=lambda p: self.apart(a, p))

    def nearest(self, a):
        return min(self.unlike[a], key=lambda n: self.apart(a, n))

    def similar(self, a, b):
        return 1 - self.apart(a, b, "cosine")


def naive_semi_hard(world, section):
    found = set()
    for a in world.both:
        for p in world.alike[a]:
            near = world.apart(a, p, section.distance)
            beyond = [n for n in world.unlike[a] if 0 < world.apart(a, n, section.distance) - near <= section.margin]
            if section.negatives == "nearest" and beyond:
                beyond = [min(beyond, key=lambda n: world.apart(a, n))]
            found |= {(a, p, n) for n in beyond}
    return found


def naive_pairs(kind, world):
    if kind == "none":
        return {(a, p) for a in world.anchors for p in world.alike[a]}, {(a, n) for a in world.anchors for n in world.unlike[a]}
    best = {a: max(world.similar(a, n) for n in world.unlike[a]) for a in world.both}
    worst = {a: min(world.similar(a, p) for p in world.alike[a]) for a in world.both}
    positive = {(a, p) for a in world.both for p in world.alike[a] if world.similar(a, p) - 0.2 < best[a]}
    return positive, {(a, n) for a in world.both for n in world.unlike[a] if world.similar(a, n) + 0.2 > worst[a]}


TRIPLETS = {
    "hard": lambda world, _: {(a, world.farthest(a), world.nearest(a)) for a in world.both},
    "hard_negative": lambda world, _: {(a, p, world.nearest(a)) for a in world.both for p in world.alike[a]},
    "hard_positive": lambda world, _: {(a, world.farthest(a), n) for a in world.both for n in world.unlike[a]},
    "semi_hard": naive_semi_hard,
}


def test_the_contract_covers_every_miner():
    assert {section.kind for section in SECTIONS} == set(MINERS) == set(TRIPLETS) | {"none", "multi_similarity", "distance_weighted"}


@every_miner
@against
@seeds
def test_positives_are_alike_negatives_are_not_and_nobody_meets_itself(section, against, seed):
    embeddings, groups, forbidden, reference = batch(seed, against)
    positive, negative, _ = sets(mined(section, embeddings, groups, forbidden, reference, seed=seed))
    labels = groups if reference is None else reference.groups
    itself = torch.eye(len(groups), dtype=torch.bool) if reference is None else reference.itself
    assert positive
    assert negative
    assert all(groups[a] == labels[p] and not itself[a, p] for a, p in positive)
    assert all(groups[a] != labels[n] and not itself[a, n] and not forbidden[a, n] for a, n in negative)


@pytest.mark.parametrize("section", [section for section in SECTIONS if section.kind != "distance_weighted"], ids=lambda s: s.kind)
@against
@seeds
@pytest.mark.parametrize("geography", [True, False])
def test_a_miner_equals_a_naive_loop(section, against, seed, geography):
    embeddings, groups, forbidden, reference = batch(seed, against)
    forbidden = forbidden if geography else None
    positive, negative, triplets = sets(mined(section, embeddings, groups, forbidden, reference))
    world = World(embeddings, groups, forbidden, reference)
    if section.kind in TRIPLETS:
        assert triplets == TRIPLETS[section.kind](world, section)
    else:
        assert (positive, negative) == naive_pairs(section.kind, world)


@every_miner
def test_where_all_is_forbidden_nothing_is_unlike(section):
    embeddings, groups, _, _ = batch(0)
    _, negative, triplets = sets(build_miner(section)(embeddings, groups, groups[:, None] != groups[None, :]))
    assert not negative
    assert not triplets


@every_miner
def test_where_the_reference_set_is_the_item_itself_nothing_is_found(section):
    embeddings, groups, _, _ = batch(0)
    reference = Reference(embeddings=embeddings[:1], groups=groups[:1], itself=torch.ones(1, 1, dtype=torch.bool))
    assert not any(map(len, build_miner(section)(embeddings[:1], groups[:1], reference=reference)))


@every_miner
@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["no negative", "no positive", "one item"])
def test_a_batch_without_triplets_has_none(section, groups):
    embeddings = torch.nn.functional.normalize(torch.randn(len(groups), 4, generator=torch.Generator().manual_seed(0)))
    found = build_miner(section)(embeddings, torch.tensor(groups), torch.zeros(len(groups), len(groups), dtype=torch.bool))
    positive, negative, triplets = sets(found)
    assert not triplets
    assert not (positive and negative)


@every_miner
@against
@seeds
def test_the_same_batch_and_seed_give_the_same_tuples(section, against, seed):
    given = batch(seed, against)
    once = mined(section, *given, seed=seed)
    torch.manual_seed(seed + 1)
    again = mined(section, *given, seed=seed)
    assert all(torch.equal(left, right) for left, right in zip(once, again, strict=True))


@every_miner
def test_mining_leaves_the_generator_of_the_process_alone(section):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mined(section, *batch(1), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@every_miner
@against
def test_indices_are_int64_and_carry_no_gradient(section, against):
    embeddings, groups, forbidden, reference = batch(1, against)
    found = mined(section, embeddings.requires_grad_(), groups, forbidden, reference)
    assert all(part.dtype == torch.int64 and not part.requires_grad for part in found)


@every_miner
@pytest.mark.parametrize("geography", [True, False])
def test_the_batch_as_its_own_reference_set_gives_the_same_tuples(section, geography):
    embeddings, groups, forbidden, _ = batch(2)
    forbidden = forbidden if geography else None
    itself = Reference(embeddings=embeddings, groups=groups, itself=torch.eye(len(groups), dtype=torch.bool))
    assert sets(mined(section, embeddings, groups, forbidden, itself)) == sets(mined(section, embeddings, groups, forbidden, None))


@pytest.mark.parametrize("kind", MINERS)
def test_every_miner_is_chosen_by_its_kind(kind):
    section = pydantic.TypeAdapter(MinerSection).validate_python({"kind": kind})
    assert type(build_miner(section)) is MINERS[kind]


# --- where the library has the same


@seeds
@pytest.mark.parametrize(
    ("section", "theirs"),
    [
        (sections.HardMiner(kind="hard"), library.BatchHardMiner()),
        (sections.SemiHardMiner(margin=0.4), library.TripletMarginMiner(0.4, type_of_triplets="semihard")),
        (sections.MultiSimilarityMiner(kind="multi_similarity", epsilon=0.2), library.MultiSimilarityMiner(0.2)),
        (sections.HardNegativeMiner(kind="hard_negative"), library.BatchEasyHardMiner(pos_strategy="all", neg_strategy="hard")),
        (sections.HardPositiveMiner(kind="hard_positive"), library.BatchEasyHardMiner(pos_strategy="hard", neg_strategy="all")),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_without_geography_a_miner_equals_the_librarys(section, theirs, seed):
    embeddings, groups, _, _ = batch(seed)
    positive, negative, _ = sets(build_miner(section)(embeddings, groups))
    assert (positive, negative) == sets(theirs(embeddings, groups))[:2]


# --- distance-weighted


def test_a_positive_pair_has_one_negative_and_nothing_beyond_the_farthest():
    embeddings, groups, forbidden, _ = batch(0, count=40)
    anchor, positive, negative = DistanceWeightedMiner(farthest=1.2)(embeddings, groups, forbidden)
    assert len(set(zip(anchor.tolist(), positive.tolist(), strict=True))) == len(anchor)
    distances = torch.cdist(embeddings, embeddings)
    assert (distances[anchor, negative] < 1.2).all()
    within = (groups[:, None] != groups) & ~forbidden & (distances < 1.2)
    pairs = (groups[:, None] == groups).fill_diagonal_(fill_value=False)
    assert len(anchor) == int(pairs[within.any(1)].sum())


def test_negatives_come_as_often_as_their_distances_are_rare():
    """Against the weights min(1/q(cutoff), 1/q(d)) of the paper, by a chi-square-like bound on 40,000 draws."""
    dim, count, cutoff, farthest = 5, 30, 0.6, 1.5
    generator = torch.Generator().manual_seed(4)
    others = torch.nn.functional.normalize(torch.randn(count, dim, dtype=torch.float64, generator=generator))
    anchor, draws = others[:1], 40_000
    reference = Reference(
        embeddings=torch.cat([others, anchor.expand(draws, dim)]),
        groups=torch.cat([torch.ones(count, dtype=torch.int64), torch.zeros(draws, dtype=torch.int64)]),
        itself=torch.zeros(1, count + draws, dtype=torch.bool),
    )
    _, _, negative = DistanceWeightedMiner(cutoff=cutoff, farthest=farthest)(anchor, torch.tensor([0]), reference=reference, seed=7)
    weights = []
    for other in others.tolist():
        far = math.dist(anchor[0].tolist(), other)
        clipped = max(far, cutoff)
        weights.append(0.0 if far >= farthest else 1 / (clipped ** (dim - 2) * (1 - clipped**2 / 4) ** ((dim - 3) / 2)))
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    share = torch.bincount(negative, minlength=count).double() / draws
    assert len(negative) == draws
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt()).all()
    assert not share[expected == 0].any()


def test_another_seed_draws_other_negatives():
    given = batch(0, count=40)
    once, again = (DistanceWeightedMiner()(*given[:3], seed=seed) for seed in (1, 2))
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[2], again[2])


def test_a_cutoff_beyond_the_farthest_is_refused():
    with pytest.raises(pydantic.ValidationError, match="raise it"):
        sections.DistanceWeightedMiner(kind="distance_weighted", cutoff=1.5, farthest=1.4)


def test_the_nearest_semi_hard_negatives_leave_room_for_a_large_memory():
    generator = torch.Generator().manual_seed(0)
    rows, groups = torch.randn(1024, 8, generator=generator), torch.randint(0, 8, (1024,), generator=generator)
    itself = torch.eye(32, 1024, dtype=torch.bool)
    memory = Reference(embeddings=rows, groups=groups, itself=itself)
    anchor, positive, negative = SemiHardMiner(negatives="nearest", margin=2.0)(rows[:32], groups[:32], reference=memory)
    unit = torch.nn.functional.normalize(rows)
    distances, same = torch.cdist(unit[:32], unit), groups[:32, None] == groups
    farthest = distances.masked_fill(same, 0).amax(1, keepdim=True)
    assert len(anchor) == int((same & ~itself & (distances < farthest)).sum())
    between = (distances[anchor] > distances[anchor, positive, None]) & (distances[anchor] < distances[anchor, negative, None])
    assert not (between & ~same[anchor]).any()
