"""What every loss promises."""

from __future__ import annotations

import math

import pydantic
import pytest
import torch

from rayjobs.metric.losses import LOSSES, build_loss
from rayjobs.metric.relations import pairs, triplets
from rayjobs.metric.section import ContrastiveLossSection, LossSection, MultiSimilarityLossSection, NTXentLossSection, TripletLossSection

SECTIONS = [
    TripletLossSection(margin=0.3),
    NTXentLossSection(kind="ntxent", temperature=0.2),
    ContrastiveLossSection(kind="contrastive", pos_margin=0.1, neg_margin=1.1),
    MultiSimilarityLossSection(kind="multi_similarity", alpha=2.0, beta=20.0, base=0.4),
]
every_loss = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)
every_form = pytest.mark.parametrize("form", [triplets, pairs])


def batch(seed=0, count=12, dim=6):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    return embeddings, torch.randint(0, 4, (count,), generator=generator)


def naive_triplet(unit, groups, section):
    items = range(len(unit))
    found = [(a, p, n) for a in items for p in items for n in items if a != p and groups[a] == groups[p] and groups[a] != groups[n]]
    losses = [math.dist(unit[a], unit[p]) - math.dist(unit[a], unit[n]) + section.margin for a, p, n in found]
    return mean([loss for loss in losses if loss > 0])


def naive_ntxent(unit, groups, section):
    losses = []
    for a in range(len(unit)):
        negatives = [math.exp(dot(unit[a], unit[n]) / section.temperature) for n in range(len(unit)) if groups[a] != groups[n]]
        for p in range(len(unit)):
            if a != p and groups[a] == groups[p]:
                positive = math.exp(dot(unit[a], unit[p]) / section.temperature)
                losses.append(-math.log(positive / (positive + sum(negatives))))
    return mean(losses)


def naive_contrastive(unit, groups, section):
    pulls, pushes = [], []
    for a in range(len(unit)):
        for b in range(len(unit)):
            if a != b and groups[a] == groups[b]:
                pulls.append(max(0.0, math.dist(unit[a], unit[b]) - section.pos_margin))
            elif groups[a] != groups[b]:
                pushes.append(max(0.0, section.neg_margin - math.dist(unit[a], unit[b])))
    return mean([loss for loss in pulls if loss > 0]) + mean([loss for loss in pushes if loss > 0])


def naive_multi_similarity(unit, groups, section):
    losses = []
    for a in range(len(unit)):
        others = [b for b in range(len(unit)) if b != a]
        pull = sum(math.exp(-section.alpha * (dot(unit[a], unit[p]) - section.base)) for p in others if groups[a] == groups[p])
        push = sum(math.exp(section.beta * (dot(unit[a], unit[n]) - section.base)) for n in others if groups[a] != groups[n])
        losses.append(math.log(1 + pull) / section.alpha + math.log(1 + push) / section.beta)
    return mean(losses)


NAIVE = {"triplet": naive_triplet, "ntxent": naive_ntxent, "contrastive": naive_contrastive, "multi_similarity": naive_multi_similarity}


def dot(left, right):
    return sum(x * y for x, y in zip(left, right, strict=True))


def mean(values):
    return sum(values) / len(values) if values else 0.0


def test_the_contract_covers_every_loss():
    assert {section.kind for section in SECTIONS} == set(LOSSES) == set(NAIVE)


@every_loss
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_equals_a_naive_loop(section, seed):
    embeddings, groups = batch(seed)
    unit = [[x / math.sqrt(dot(row, row)) for x in row] for row in embeddings.tolist()]
    found = build_loss(section)(embeddings, groups, pairs(groups))
    assert found.item() == pytest.approx(NAIVE[section.kind](unit, groups.tolist(), section), rel=1e-10)


@every_loss
def test_triplets_and_pairs_of_a_whole_batch_mean_the_same(section):
    embeddings, groups = batch(8)
    loss = build_loss(section)
    assert loss(embeddings, groups, triplets(groups)).item() == pytest.approx(loss(embeddings, groups, pairs(groups)).item(), rel=1e-12)


@every_loss
@every_form
@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["no negative", "no positive", "one item"])
def test_a_batch_without_a_valid_tuple_is_finite_and_differentiable(section, form, groups):
    embeddings = torch.randn(len(groups), 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor(groups)
    loss = build_loss(section)(embeddings, labels, form(labels))
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


@every_loss
@every_form
def test_empty_tuples_cost_nothing_and_keep_the_graph(section, form):
    embeddings = torch.randn(3, 5, requires_grad=True)
    groups = torch.tensor([0, 1, 2])
    empty = tuple(part[:0] for part in form(torch.tensor([0, 0, 1])))
    loss = build_loss(section)(embeddings, groups, empty)
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


@every_loss
@every_form
def test_the_order_of_the_batch_does_not_matter(section, form):
    embeddings, groups = batch(3)
    shuffled = torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))
    loss = build_loss(section)
    there = loss(embeddings[shuffled], groups[shuffled], form(groups[shuffled]))
    assert there.item() == pytest.approx(loss(embeddings, groups, form(groups)).item(), rel=1e-12)


@every_loss
@every_form
def test_the_order_of_the_tuples_does_not_matter(section, form):
    embeddings, groups = batch(4)
    found = form(groups)
    turned = tuple(part.flip(0) for part in found)
    loss = build_loss(section)
    assert loss(embeddings, groups, turned).item() == pytest.approx(loss(embeddings, groups, found).item(), rel=1e-12)


@every_loss
def test_a_single_triplet_counts(section):
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)
    one = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    assert build_loss(section)(embeddings, torch.tensor([0, 0, 1]), one).item() > 0.01


@every_loss
def test_equal_embeddings_have_finite_gradients(section):
    embeddings = torch.ones(4, 5, requires_grad=True)
    groups = torch.tensor([0, 0, 1, 1])
    build_loss(section)(embeddings, groups, pairs(groups)).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


@every_loss
def test_gradients_are_those_of_the_values(section):
    embeddings, groups = batch(5, count=7, dim=4)
    loss = build_loss(section)
    assert torch.autograd.gradcheck(lambda x: loss(x, groups, pairs(groups)), embeddings.requires_grad_(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 0.966802), (0.5, 0.870714)])
def test_ntxent_gives_the_known_numbers(temperature, expected):
    embeddings = torch.tensor([[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]], dtype=torch.float64)
    groups = torch.tensor([0, 1, 0, 1])
    loss = build_loss(NTXentLossSection(kind="ntxent", temperature=temperature))
    assert loss(embeddings, groups, pairs(groups)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_is_chosen_by_its_kind(kind):
    section = pydantic.TypeAdapter(LossSection).validate_python({"kind": kind})
    assert type(build_loss(section)) is LOSSES[kind]
