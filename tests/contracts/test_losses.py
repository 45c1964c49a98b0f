"""What every loss promises. The oracles are loops over the published formulas, in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pydantic
import pytest
import torch
from pytorch_metric_learning import losses as library

from rayjobs.errors import ConfigError, TrainingError
from rayjobs.metric.distances import DISTANCES
from rayjobs.metric.losses import LOSSES, ClassLoss, build_loss
from rayjobs.metric.miners import MINERS, build_miner
from rayjobs.metric.relations import Reference, as_pairs, as_triplets, pairs, triplets
from rayjobs.metric.section import (
    CircleLossSection,
    ContrastiveLossSection,
    CrossEntropyLossSection,
    LossSection,
    MagnetLossSection,
    MinerSection,
    MultiSimilarityLossSection,
    NTXentLossSection,
    ProxyAnchorLossSection,
    QuadrupletLossSection,
    SiameseLossSection,
    SimSiamLossSection,
    SoftmaxLossSection,
    SupConLossSection,
    TripletLossSection,
    require_tuples,
    why_no_tuples,
)

DIM, CLASSES = 6, 5

SECTIONS = [
    TripletLossSection(margin=0.3),
    TripletLossSection(margin=0.5, distance="squared"),
    TripletLossSection(margin=0.2, distance="cosine"),
    TripletLossSection(form="ratio"),
    QuadrupletLossSection(kind="quadruplet", margin=0.4),
    QuadrupletLossSection(kind="quadruplet", margin=0.5, second_margin=0.1, distance="squared"),
    QuadrupletLossSection(kind="quadruplet", form="ratio", margin=0.5),
    NTXentLossSection(kind="ntxent", temperature=0.2),
    SupConLossSection(kind="supcon", temperature=0.2),
    ContrastiveLossSection(kind="contrastive", pos_margin=0.1, neg_margin=1.1),
    ContrastiveLossSection(kind="contrastive", pos_margin=0.0, neg_margin=0.9, distance="cosine"),
    MultiSimilarityLossSection(kind="multi_similarity", alpha=2.0, beta=20.0, base=0.4),
    CircleLossSection(kind="circle", margin=0.4, gamma=8.0),
    SiameseLossSection(kind="siamese"),
    SiameseLossSection(kind="siamese", alpha=0.75, gamma=2.0),
    ProxyAnchorLossSection(kind="proxy_anchor", margin=0.1, alpha=8.0),
    SoftmaxLossSection(kind="softmax", temperature=0.1),
    CrossEntropyLossSection(kind="cross_entropy"),
    CrossEntropyLossSection(kind="cross_entropy", scale=4.0, weights={"b": 0.25, "c": 3.0}),
    SimSiamLossSection(kind="simsiam", hidden=32),
    MagnetLossSection(kind="magnet", alpha=1.0),
    MagnetLossSection(kind="magnet", form="spatial", alpha=0.5, batch_clusters=3),
]
ON_TUPLES = [section for section in SECTIONS if why_no_tuples(section) is None]
TUPLE_FREE = [section for section in SECTIONS if why_no_tuples(section) is not None]


def name(section):
    return "-".join([section.kind, *(str(getattr(section, key)) for key in ("form", "distance", "scale") if hasattr(section, key))])


every_loss = pytest.mark.parametrize("section", SECTIONS, ids=name)
every_loss_on_tuples = pytest.mark.parametrize("section", ON_TUPLES, ids=name)
every_loss_without = pytest.mark.parametrize("section", TUPLE_FREE, ids=name)
every_form = pytest.mark.parametrize("form", [triplets, pairs])


def made(section):
    return build_loss(section, dim=DIM, classes=CLASSES, names="abcde")


def batch(seed=0, count=14, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    return embeddings, torch.randint(0, 4, (count,), generator=generator)


def reference_of(seed, groups, count=17):
    """Other items, of which some are the batch's own."""
    generator = torch.Generator().manual_seed(100 + seed)
    embeddings = torch.randn(count, DIM, dtype=torch.float64, generator=generator)
    itself = torch.rand(len(groups), count, generator=generator) < 0.1
    return Reference(embeddings=embeddings, groups=torch.randint(0, 4, (count,), generator=generator), itself=itself)


# --- the naive loops


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A batch as lists."""

    anchors: list
    others: list
    groups: list
    other_groups: list
    positive: list
    negative: list
    triplets: list
    within: bool


def world(embeddings, groups, tuples, reference=None):
    others = embeddings if reference is None else reference.embeddings
    listed = [part.tolist() for part in as_pairs(tuples)]
    return World(
        anchors=[unit(row) for row in embeddings.tolist()],
        others=[unit(row) for row in others.tolist()],
        groups=groups.tolist(),
        other_groups=(groups if reference is None else reference.groups).tolist(),
        positive=list(zip(*listed[:2], strict=True)),
        negative=list(zip(*listed[2:], strict=True)),
        triplets=list(zip(*(part.tolist() for part in as_triplets(tuples)), strict=True)),
        within=reference is None,
    )


def dot(left, right):
    return sum(x * y for x, y in zip(left, right, strict=True))


def unit(row):
    return [x / math.sqrt(dot(row, row)) for x in row]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def mean_above_0(values):
    return mean(value for value in values if value > 0)


def apart(kind, left, right):
    return {"euclidean": math.dist(left, right), "squared": math.dist(left, right) ** 2, "cosine": 1 - dot(left, right)}[kind]


def naive_triplet(w, section):
    found = [
        (apart(section.distance, w.anchors[a], w.others[p]), apart(section.distance, w.anchors[a], w.others[n])) for a, p, n in w.triplets
    ]
    if section.form == "margin":
        return mean_above_0(near - far + section.margin for near, far in found)
    losses = []
    for near, far in found:
        plus, minus = (math.exp(d) / (math.exp(near) + math.exp(far)) for d in (near, far))
        losses.append((plus - (minus - 1)) ** 2)
    return mean(losses)


def naive_quadruplet(w, section):
    second = section.margin / 2 if section.second_margin is None else section.second_margin
    if section.form == "ratio":
        return naive_ratio_of_quadruplets(w, section, second)
    first, losses = [], []
    for a, p, n in w.triplets:
        first.append(
            apart(section.distance, w.anchors[a], w.others[p]) - apart(section.distance, w.anchors[a], w.others[n]) + section.margin
        )
    for (a, p), (o, n) in itertools.product(w.positive, w.negative):
        if w.groups[a] not in (w.groups[o], w.other_groups[n]):
            losses.append(apart(section.distance, w.anchors[a], w.others[p]) - apart(section.distance, w.anchors[o], w.others[n]) + second)
    return mean_above_0(first) + mean_above_0(losses)


def naive_ratio_of_quadruplets(w, section, second):
    unlike = set(w.negative) | ({(n, a) for a, n in w.negative} if w.within else set())
    losses = []
    for (a, p, n), o in itertools.product(w.triplets, range(len(w.anchors))):
        if (o, n) in unlike and w.groups[o] != w.groups[a]:
            pairs_of_it = ((a, p), (a, n), (o, n))
            lengths = [math.exp(apart(section.distance, w.anchors[left], w.others[right])) for left, right in pairs_of_it]
            plus, one, two = (length / sum(lengths) for length in lengths)
            losses.append((plus - (one - 1)) ** 2 + (plus - (two - second)) ** 2)
    return mean(losses)


def naive_ntxent(w, section):
    losses = []
    for a, p in w.positive:
        crowd = sum(math.exp(dot(w.anchors[a], w.others[n]) / section.temperature) for b, n in w.negative if b == a)
        positive = math.exp(dot(w.anchors[a], w.others[p]) / section.temperature)
        losses.append(-math.log(positive / (positive + crowd)))
    return mean(losses)


def naive_supcon(w, section):
    if not (w.positive and w.negative):
        return 0.0
    losses = []
    for a in range(len(w.anchors)):
        mine = [j for b, j in w.positive if b == a]
        everyone = mine + [j for b, j in w.negative if b == a]
        total = sum(math.exp(dot(w.anchors[a], w.others[j]) / section.temperature) for j in everyone)
        losses.append(mean(-math.log(math.exp(dot(w.anchors[a], w.others[p]) / section.temperature) / total) for p in mine))
    return mean_above_0(losses)


def naive_contrastive(w, section):
    pulls = [apart(section.distance, w.anchors[a], w.others[p]) - section.pos_margin for a, p in w.positive]
    pushes = [section.neg_margin - apart(section.distance, w.anchors[a], w.others[n]) for a, n in w.negative]
    return mean_above_0(pulls) + mean_above_0(pushes)


def naive_multi_similarity(w, section):
    losses = []
    for a in range(len(w.anchors)):
        pull = sum(math.exp(-section.alpha * (dot(w.anchors[a], w.others[p]) - section.base)) for b, p in w.positive if b == a)
        push = sum(math.exp(section.beta * (dot(w.anchors[a], w.others[n]) - section.base)) for b, n in w.negative if b == a)
        losses.append(math.log(1 + pull) / section.alpha + math.log(1 + push) / section.beta)
    return mean(losses)


def naive_circle(w, section, weights_at=None):
    """The weights may be those of another batch: no gradient flows through them."""
    then, m, gamma, losses = weights_at or w, section.margin, section.gamma, []
    for a in range(len(w.anchors)):
        pull = [
            math.exp(-gamma * max(0, 1 + m - dot(then.anchors[a], then.others[p])) * (dot(w.anchors[a], w.others[p]) - 1 + m))
            for b, p in w.positive
            if b == a
        ]
        push = [
            math.exp(gamma * max(0, dot(then.anchors[a], then.others[n]) + m) * (dot(w.anchors[a], w.others[n]) - m))
            for b, n in w.negative
            if b == a
        ]
        if pull and push:
            losses.append(math.log(1 + sum(pull) * sum(push)))
    return mean_above_0(losses)


def naive_siamese(w, section, weight=None, bias=None):
    weight = [-1.0] * len(w.anchors[0]) if weight is None else weight
    bias = torch.tensor(1.5 * math.sqrt(len(weight) / math.pi)).item() if bias is None else bias  # as float32 holds it

    def p(left, right):
        return 1 / (1 + math.exp(-bias - sum(v * abs(x - y) for v, x, y in zip(weight, left, right, strict=True))))

    alike = (p(w.anchors[a], w.others[q]) for a, q in w.positive)
    unlike = (p(w.anchors[a], w.others[n]) for a, n in w.negative)
    pulls = [-section.alpha * (1 - x) ** section.gamma * math.log(x) for x in alike]
    return mean(pulls) + mean(-(1 - section.alpha) * x**section.gamma * math.log(1 - x) for x in unlike)


def naive_proxy_anchor(rows, groups, section, loss):
    proxies = [unit(row) for row in loss.formula.proxies.tolist()]
    pulls, pushes = [], []
    for c, proxy in enumerate(proxies):
        scores = [(dot(unit(row), proxy), group == c) for row, group in zip(rows, groups, strict=True)]
        pull = [math.exp(-section.alpha * (score - section.margin)) for score, own in scores if own]
        pushes.append(math.log(1 + sum(math.exp(section.alpha * (score + section.margin)) for score, own in scores if not own)))
        pulls += [math.log(1 + sum(pull))] if pull else []
    return mean(pulls) + mean(pushes)


def naive_softmax(rows, groups, section, loss):
    weights = [unit(row) for row in loss.formula.W.T.tolist()]
    losses = []
    for row, group in zip(rows, groups, strict=True):
        scores = [math.exp(dot(unit(row), weight) / section.temperature) for weight in weights]
        losses.append(-math.log(scores[group] / sum(scores)))
    return mean(losses)


def naive_cross_entropy(rows, groups, section, loss):
    weights, biases = loss.formula.weight.tolist(), loss.formula.bias.tolist()
    total, counted = 0.0, 0.0
    for row, group in zip(rows, groups, strict=True):
        scores = [math.exp(section.scale * dot(row, weight) + bias) for weight, bias in zip(weights, biases, strict=True)]
        counts = (section.weights or {}).get("abcde"[group], 1.0)
        total, counted = total - counts * math.log(scores[group] / sum(scores)), counted + counts
    return total / counted


def naive_simsiam(rows, groups, _section, loss):
    first, norm, second = (loss.predictor[place] for place in (0, 1, 3))
    columns = list(zip(*([dot(row, weight) for weight in first.weight.tolist()] for row in rows), strict=True))
    centre = [mean(column) for column in columns]
    size = [math.sqrt(mean((value - at) ** 2 for value in column) + norm.eps) for column, at in zip(columns, centre, strict=True)]
    hidden = zip(*columns, strict=True)
    kept = [[max(0.0, (value - at) / by) for value, at, by in zip(row, centre, size, strict=True)] for row in hidden]
    predicted = [unit([dot(row, weight) for weight in second.weight.tolist()]) for row in kept]
    return mean(-dot(predicted[i], unit(rows[j])) for i, j in itertools.permutations(range(len(rows)), 2) if groups[i] == groups[j])


def cells_of(rows, groups, clusters):
    """Members and mean of each (group, cluster)."""
    members = {}
    for item, cell in enumerate(zip(groups, clusters, strict=True)):
        members.setdefault(cell, []).append(item)
    return members, {cell: [mean(rows[i][d] for i in items) for d in range(len(rows[0]))] for cell, items in members.items()}


def naive_magnet(rows, groups, section, _loss, clusters=None):
    clusters = groups if clusters is None else clusters
    if section.form == "spatial":
        return naive_spatial_magnet(rows, groups, section, clusters)
    _, means = cells_of(rows, groups, clusters)
    own = [math.dist(row, means[cell]) ** 2 for row, cell in zip(rows, zip(groups, clusters, strict=True), strict=True)]
    variance = sum(own) / (len(rows) - 1)
    losses = []
    for row, group, near in zip(rows, groups, own, strict=True):
        crowd = sum(math.exp(-(math.dist(row, centre) ** 2) / (2 * variance)) for (g, _), centre in means.items() if g != group)
        losses.append(max(0.0, -math.log(math.exp(-near / (2 * variance) - section.alpha) / crowd)) if crowd else 0.0)
    return mean(losses)


def naive_spatial_magnet(rows, groups, section, clusters):
    members, means = cells_of(rows, groups, clusters)
    dims = range(len(rows[0]))
    centre = [mean(row[d] for row in rows) for d in dims]
    variance = [sum((row[d] - centre[d]) ** 2 for row in rows) / (len(rows) - 1) for d in dims]
    losses = []
    for row, cell in zip(rows, zip(groups, clusters, strict=True), strict=True):
        q = {other: math.dist(row, means[other]) ** 2 / len(row) for other in means}
        impostors = sorted(q[other] for other in means if other[0] != cell[0] and len(members[other]) > 1)
        if len(members[cell]) < 2 or len(impostors) < 3:
            continue
        for d in dims:
            intra = math.exp(-q[cell] / (2 * variance[d]) - section.alpha)
            inter = sum(math.exp(-far / (2 * variance[d])) for far in impostors[:5])
            losses.append(max(0.0, -math.log((intra + 1e-8) / (inter + 1e-8))))
    return mean(losses)


ON_LISTS = {
    "triplet": naive_triplet,
    "quadruplet": naive_quadruplet,
    "ntxent": naive_ntxent,
    "supcon": naive_supcon,
    "contrastive": naive_contrastive,
    "multi_similarity": naive_multi_similarity,
    "circle": naive_circle,
    "siamese": naive_siamese,
}
ON_CLASSES = {
    "proxy_anchor": naive_proxy_anchor,
    "softmax": naive_softmax,
    "cross_entropy": naive_cross_entropy,
    "simsiam": naive_simsiam,
    "magnet": naive_magnet,
}


# --- the contract


def test_the_contract_covers_every_loss():
    assert {section.kind for section in SECTIONS} == set(LOSSES) == set(ON_LISTS) | set(ON_CLASSES)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_is_chosen_by_its_kind_and_says_what_it_lives_on(kind):
    section = pydantic.TypeAdapter(LossSection).validate_python({"kind": kind})
    assert type(made(section)) is LOSSES[kind]
    assert LOSSES[kind].takes_tuples == (kind in ON_LISTS) == (why_no_tuples(section) is None)


@every_loss_on_tuples
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_equals_a_naive_loop(section, seed):
    embeddings, groups = batch(seed)
    tuples = pairs(groups)
    found = made(section)(embeddings, groups, tuples)
    assert found.item() == pytest.approx(ON_LISTS[section.kind](world(embeddings, groups, tuples), section), rel=1e-10)
    assert found.item() > 0


@every_loss_on_tuples
@pytest.mark.parametrize("miner", [kind for kind in MINERS if kind != "none"])
def test_a_loss_on_mined_tuples_equals_a_naive_loop(section, miner):
    embeddings, groups = batch(10, count=16)
    forbidden = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.2
    tuples = build_miner(pydantic.TypeAdapter(MinerSection).validate_python({"kind": miner}))(embeddings, groups, forbidden | forbidden.T)
    found = made(section)(embeddings, groups, tuples)
    assert found.item() == pytest.approx(ON_LISTS[section.kind](world(embeddings, groups, tuples), section), rel=1e-9, abs=1e-12)


@every_loss_on_tuples
@every_form
@pytest.mark.parametrize("seed", range(2))
def test_a_loss_against_a_reference_set_equals_a_naive_loop(section, form, seed):
    embeddings, groups = batch(seed, count=9)
    reference = reference_of(seed, groups)
    tuples = form(groups, None, reference)
    found = made(section)(embeddings, groups, tuples, reference=reference)
    assert found.item() == pytest.approx(ON_LISTS[section.kind](world(embeddings, groups, tuples, reference), section), rel=1e-10)
    assert found.item() > 0


@every_loss_on_tuples
def test_the_batch_as_its_own_reference_set_costs_the_same(section):
    embeddings, groups = batch(2)
    itself = Reference(embeddings=embeddings, groups=groups, itself=torch.eye(len(groups), dtype=torch.bool))
    loss = made(section)
    there = loss(embeddings, groups, pairs(groups, None, itself), reference=itself)
    assert there.item() == pytest.approx(loss(embeddings, groups, pairs(groups)).item(), rel=1e-10)


@every_loss_without
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_without_tuples_equals_a_naive_loop(section, seed):
    embeddings, groups = batch(seed, count=40)
    loss = made(section).double()
    given = {}
    if section.kind == "magnet":
        given["clusters"] = torch.randint(0, 3, (len(groups),), generator=torch.Generator().manual_seed(seed))
    found = loss(embeddings, groups, pairs(groups), **given)
    lists = {key: value.tolist() for key, value in given.items()}
    assert found.item() == pytest.approx(ON_CLASSES[section.kind](embeddings.tolist(), groups.tolist(), section, loss, **lists), rel=1e-9)
    assert abs(found.item()) > 0.001
    assert loss(embeddings, groups, **given).item() == found.item()


@every_loss_on_tuples
def test_triplets_and_pairs_of_a_whole_batch_mean_the_same(section):
    embeddings, groups = batch(8)
    loss = made(section)
    assert loss(embeddings, groups, triplets(groups)).item() == pytest.approx(loss(embeddings, groups, pairs(groups)).item(), rel=1e-12)


@every_loss
@every_form
@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["no negative", "no positive", "one item"])
def test_a_batch_without_a_valid_tuple_is_finite_and_differentiable(section, form, groups):
    embeddings = torch.randn(len(groups), DIM, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor(groups)
    loss = made(section)(embeddings, labels, form(labels))
    loss.backward()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


@every_loss_on_tuples
@every_form
@pytest.mark.parametrize("against", [None, reference_of(0, torch.zeros(3))], ids=["batch", "reference"])
def test_empty_tuples_cost_nothing_and_keep_the_graph(section, form, against):
    embeddings = torch.randn(3, DIM, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 1, 2])
    empty = tuple(part[:0] for part in form(torch.tensor([0, 0, 1])))
    loss = made(section)(embeddings, groups, empty, reference=against)
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


@every_loss
@every_form
def test_the_order_of_the_batch_does_not_matter(section, form):
    embeddings, groups = batch(3, count=20)
    shuffled = torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))
    loss = made(section).double()
    there = loss(embeddings[shuffled], groups[shuffled], form(groups[shuffled]))
    assert there.item() == pytest.approx(loss(embeddings, groups, form(groups)).item(), rel=1e-12)
    assert there.item()


@every_loss_on_tuples
@every_form
def test_the_order_of_the_tuples_does_not_matter(section, form):
    embeddings, groups = batch(4)
    found = form(groups)
    turned = tuple(part.flip(0) for part in found)
    loss = made(section)
    assert loss(embeddings, groups, turned).item() == pytest.approx(loss(embeddings, groups, found).item(), rel=1e-12)


@every_loss_on_tuples
def test_a_single_triplet_counts(section):
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    one = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    if section.kind == "quadruplet" and section.form == "ratio":  # it is defined on quadruplets alone
        one = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 3]), torch.tensor([2, 2]))
    assert build_loss(section, dim=2, classes=CLASSES)(embeddings, torch.tensor([0, 0, 1, 2]), one).item() > 0.01


@every_loss
def test_equal_embeddings_have_finite_gradients(section):
    embeddings = torch.ones(8, DIM, requires_grad=True)
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    made(section)(embeddings, groups, pairs(groups)).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("section", [section for section in SECTIONS if section.kind not in {"circle", "simsiam"}], ids=name)
def test_gradients_are_those_of_the_values(section):
    embeddings, groups = batch(5, count=8, dim=3)
    loss = build_loss(section, dim=3, classes=CLASSES, names="abcde").double()
    inputs = (embeddings.requires_grad_(), *loss.parameters())
    given = {}
    if section.kind == "magnet":
        groups = torch.arange(8) // (4 if section.form == "published" else 2)
        given["clusters"] = torch.arange(8) // 2
    assert loss(embeddings, groups, pairs(groups), **given) > 0
    assert torch.autograd.gradcheck(lambda x, *_: loss(x, groups, pairs(groups), **given), inputs, eps=1e-6, atol=1e-6)
    assert len(inputs) == 1 + {"proxy_anchor": 1, "softmax": 1, "cross_entropy": 2, "siamese": 2}.get(section.kind, 0)


@pytest.mark.parametrize("section", [section for section in ON_TUPLES if section.kind != "circle"], ids=name)
def test_gradients_against_a_reference_set_are_those_of_the_values(section):
    embeddings, groups = batch(6, count=6)
    reference = reference_of(6, groups, count=7)
    tuples = pairs(groups, None, reference)
    loss = made(section)
    assert torch.autograd.gradcheck(lambda x: loss(x, groups, tuples, reference=reference), embeddings.requires_grad_(), atol=1e-6)


def test_gradients_of_circle_are_those_of_its_values_with_the_weights_held():
    section = CircleLossSection(kind="circle", margin=0.4, gamma=3.0)
    embeddings, groups = batch(5, count=7)
    tuples = pairs(groups)
    made(section)(embeddings.requires_grad_(), groups, tuples).backward()
    still = embeddings.detach()
    here, step = world(still, groups, tuples), 1e-6
    for row, column in itertools.product(range(7), range(DIM)):
        moved = torch.zeros_like(still)
        moved[row, column] = step
        up, down = (naive_circle(world(still + sign * moved, groups, tuples), section, weights_at=here) for sign in (1, -1))
        assert embeddings.grad[row, column].item() == pytest.approx((up - down) / (2 * step), abs=1e-6)


# --- known numbers, and what single losses promise


def test_what_simsiam_predicts_is_held_fixed():
    embeddings, groups = batch(5, count=8)
    loss = made(SimSiamLossSection(kind="simsiam")).double()
    loss(embeddings.requires_grad_(), groups).backward()
    still = torch.nn.functional.normalize(embeddings.detach(), dim=1)
    moving = embeddings.detach().clone().requires_grad_()
    agreement = torch.nn.functional.normalize(loss.predictor(moving), dim=1) @ still.T
    (-agreement[(groups[:, None] == groups) & ~torch.eye(8, dtype=torch.bool)].mean()).backward()
    torch.testing.assert_close(embeddings.grad, moving.grad)


def test_simsiam_of_two_views_is_the_published_sum():
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    loss = build_loss(SimSiamLossSection(kind="simsiam"), dim=4)
    first, second = loss.predictor(rows)[:3], loss.predictor(rows)[3:]
    cosine = torch.nn.functional.cosine_similarity
    published = -(cosine(first, rows[3:]).mean() + cosine(second, rows[:3]).mean()) / 2
    assert loss(rows, torch.tensor([0, 1, 2, 0, 1, 2])).item() == pytest.approx(published.item(), rel=1e-5)


def test_dropout_leaves_numbers_out_in_training_alone():
    loss = made(CrossEntropyLossSection(kind="cross_entropy", dropout=0.5))
    embeddings, groups = batch(0)
    torch.manual_seed(0)
    assert loss(embeddings, groups).item() != loss(embeddings, groups).item()
    loss.eval()
    assert loss(embeddings, groups).item() == loss(embeddings, groups).item()


def test_a_weight_of_no_class_is_refused_and_classes_that_do_not_count_cost_nothing():
    section = CrossEntropyLossSection(kind="cross_entropy", weights={"a": 0.0, "ship": 2.0})
    with pytest.raises(ConfigError, match=r"loss\.weights names ship, and the training tiles are of the classes a, b"):
        build_loss(section, dim=2, classes=2, names=["a", "b"])
    alone = build_loss(CrossEntropyLossSection(kind="cross_entropy", weights={"a": 0.0}), dim=2, classes=2, names=["a", "b"])
    assert alone(torch.eye(2), torch.tensor([0, 0])).item() == 0


def on_a_circle(*angles):
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=torch.float64)


def angle_of(distance):
    """Between two points of the unit circle at a Euclidean distance."""
    return 2 * math.asin(distance / 2)


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 0.966802), (0.5, 0.870714)])
def test_ntxent_gives_the_known_numbers(temperature, expected):
    embeddings = torch.tensor([[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]], dtype=torch.float64)
    groups = torch.tensor([0, 1, 0, 1])
    loss = build_loss(NTXentLossSection(kind="ntxent", temperature=temperature))
    assert loss(embeddings, groups, pairs(groups)).item() == pytest.approx(expected, abs=1e-6)


def test_the_ratio_of_a_triplet_gives_the_known_number():
    near, far = math.sqrt(0.3), math.sqrt(0.8)  # the earlier system's d is squared, its ratio on the roots
    embeddings = on_a_circle(0, -angle_of(near), angle_of(far))
    loss = build_loss(TripletLossSection(form="ratio"))
    one = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    assert loss(embeddings, torch.tensor([0, 0, 1]), one).item() == pytest.approx(0.686186, abs=1e-6)


def test_a_quadruplet_gives_the_known_number():
    embeddings = on_a_circle(0, -angle_of(0.2), angle_of(0.5), angle_of(0.5) + angle_of(0.4))
    loss = build_loss(QuadrupletLossSection(kind="quadruplet", margin=0.5))
    tuples = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 2]), torch.tensor([2, 3]))
    assert loss(embeddings, torch.tensor([0, 0, 1, 2]), tuples).item() == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, 0.0), (7.0, 2.0)])
def test_magnet_gives_the_known_numbers(alpha, expected):
    embeddings = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]], dtype=torch.float64)
    loss = build_loss(MagnetLossSection(kind="magnet", alpha=alpha))
    assert loss(embeddings, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(expected, abs=1e-12)


def test_magnet_says_what_each_item_costs():
    embeddings = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]], dtype=torch.float64)
    found = LOSSES["magnet"](alpha=7.0).per_item(embeddings, torch.tensor([0, 0, 1, 1]))
    assert found.tolist() == pytest.approx([0, 4, 4, 0], abs=1e-12)


def test_clusters_of_one_class_are_no_impostors_of_each_other():
    embeddings, groups, clusters = torch.randn(6, DIM), torch.zeros(6, dtype=torch.int64), torch.tensor([0, 0, 1, 1, 2, 2])
    assert LOSSES["magnet"]()(embeddings, groups, clusters=clusters).item() == 0


def test_spatial_magnet_of_embeddings_that_are_no_numbers_is_none():
    section = MagnetLossSection(kind="magnet", form="spatial")
    assert torch.isnan(build_loss(section)(torch.full((8, DIM), torch.nan), torch.arange(8) // 2))


def test_ntxent_equals_the_librarys():
    embeddings, groups = batch(1)
    found = build_loss(NTXentLossSection(kind="ntxent", temperature=0.3))(embeddings, groups, pairs(groups))
    assert found.item() == pytest.approx(library.NTXentLoss(temperature=0.3)(embeddings, groups).item(), rel=1e-12)


def test_siamese_pairs_are_weighed_by_what_is_learned():
    section = SiameseLossSection(kind="siamese", alpha=0.25, gamma=2.0)
    embeddings, groups = batch(5)
    loss = made(section)
    with torch.no_grad():
        loss.formula.weight.copy_(torch.tensor([2.0, -1.5, 0.0, 0.5, -3.0, 1.0]))
        loss.formula.bias.fill_(0.5)
    tuples = pairs(groups)
    expected = naive_siamese(world(embeddings, groups, tuples), section, loss.formula.weight.tolist(), 0.5)
    assert loss(embeddings, groups, tuples).item() == pytest.approx(expected, rel=1e-10)


def test_a_pair_that_is_told_for_sure_has_a_finite_gradient():
    loss = made(SiameseLossSection(kind="siamese", gamma=0.5))
    with torch.no_grad():
        loss.formula.bias.fill_(120.0)
    groups = torch.tensor([0, 0])
    embeddings = torch.eye(2, DIM, requires_grad=True)
    loss(embeddings, groups, pairs(groups)).backward()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize(("alike", "alpha", "expected"), [(True, 0.75, 0.0240756), (True, 0.25, 0.0080252), (False, 0.75, 0.147487)])
def test_focal_losses_are_those_of_the_published_system(alike, alpha, expected):
    loss = made(SiameseLossSection(kind="siamese", alpha=alpha, gamma=2.0))
    with torch.no_grad():
        loss.formula.weight.zero_()
        loss.formula.bias.fill_(math.log(0.7 / 0.3))  # p = 0.7 of every pair
    groups = torch.tensor([0, 0 if alike else 1])
    assert loss(torch.eye(2, DIM), groups, pairs(groups)).item() == pytest.approx(expected, rel=1e-5)


def test_distances_have_one_sign_and_known_values():
    embeddings = on_a_circle(0, math.pi / 3, math.pi)
    found = {kind: make()(3 * embeddings, 5 * embeddings)[0].tolist() for kind, make in DISTANCES.items()}
    assert found["euclidean"] == pytest.approx([0, 1, 2], abs=1e-7)
    assert found["squared"] == pytest.approx([0, 1, 4], abs=1e-12)
    assert found["cosine"] == pytest.approx([0, 0.5, 2], abs=1e-12)


# --- what losses without tuples say


@every_loss_without
def test_a_loss_without_tuples_takes_no_reference_set_and_says_so(section):
    embeddings, groups = batch(0)
    with pytest.raises(ConfigError, match="no reference set"):
        made(section)(embeddings, groups, reference=reference_of(0, groups))
    with pytest.raises(ConfigError, match=rf"loss\.kind {section.kind} .* no reference set, so memory\.size has nothing"):
        require_tuples(section, "memory.size")


@every_loss_on_tuples
def test_a_loss_on_tuples_wants_them(section):
    require_tuples(section, "memory.size")
    with pytest.raises(TrainingError, match="a miner"):
        made(section)(*batch(0))


learned = pytest.mark.parametrize("section", [section for section in SECTIONS if issubclass(LOSSES[section.kind], ClassLoss)], ids=name)


@learned
@pytest.mark.parametrize("given", [{}, {"dim": 4}, {"dim": 4, "classes": 0}])
def test_class_weights_need_classes(section, given):
    with pytest.raises(ConfigError, match=r"train\.supervision: labels"):
        build_loss(section, **given)


@learned
@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_a_group_that_is_no_class_is_refused(section, wrong):
    with pytest.raises(TrainingError, match=f"no numbers of {CLASSES} classes"):
        made(section)(torch.randn(2, DIM), torch.tensor([0, wrong]))


@learned
def test_class_weights_begin_with_their_seed_are_learned_and_kept(section):
    torch.manual_seed(5)
    loss, twin = made(section), made(section)
    assert all(torch.equal(left, right) for left, right in zip(loss.parameters(), twin.parameters(), strict=True))
    other = build_loss(section, dim=DIM, classes=CLASSES, names="abcde", seed=1)
    assert not any(torch.equal(left, right) for left, right in zip(loss.parameters(), other.parameters(), strict=True))
    embeddings, groups = batch(0)
    costs = []
    for _ in range(20):
        costs.append(loss(embeddings.float(), groups))
        steps = torch.autograd.grad(costs[-1], tuple(loss.parameters()))
        torch._foreach_add_([parameter.data for parameter in loss.parameters()], steps, alpha=-0.1)
    assert costs[-1] < 0.9 * costs[0]
    twin.load_state_dict(loss.state_dict())
    assert torch.equal(twin(embeddings.float(), groups), loss(embeddings.float(), groups))
