from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from rayjobs.config import build
from rayjobs.errors import ConfigError
from rayjobs.experiment import Experiment
from rayjobs.metric.losses import LOSSES
from rayjobs.train.ground import Ground, forbidden_pairs
from rayjobs.train.objective import Batch, Objective, check_objective, needs_clusters

COUNT, DIM, BATCH = 40, 6, 24
CPU = torch.device("cpu")


def ground(classes: int = 4) -> Ground:
    side = np.ones(COUNT)
    places = np.stack([np.arange(COUNT) % 8, np.arange(COUNT) // 8, np.zeros(COUNT)], axis=1)
    return Ground(
        tile_ids=[str(number) for number in range(COUNT)],
        positions=places,
        sizes=side,
        reaches=side,
        places=np.arange(COUNT),
        scenes=np.zeros(COUNT, np.int64),
        dates=np.zeros(COUNT, np.int64),
        labels=np.arange(COUNT) % classes,
        fractions=np.eye(classes, dtype=np.float32)[np.arange(COUNT) % classes],
    )


def experiment(loss: dict, **more) -> Experiment:
    raw = {
        "name": "x",
        "rasters": {"sources": [{"kind": "files", "uris": ["x.tif"]}]},
        "loss": loss,
        "train": {"supervision": "labels", "batch_size": BATCH},
    }
    return build(Experiment, raw | more)


def batch(step: int = 0) -> Batch:
    items = np.random.default_rng(step).permutation(COUNT)[:BATCH]
    return Batch(items=items, groups=torch.from_numpy(items % 4), clusters=torch.from_numpy(items % 8), seed=step)


def embeddings(step: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(step))).requires_grad_()


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_of_the_table_trains_on_labels(kind):
    settings = experiment({"kind": kind})
    check_objective(settings, ground())
    objective = Objective(settings, ground(), dim=DIM, device=CPU)
    given = embeddings()
    loss = objective(given, batch() if needs_clusters(settings) else dataclasses.replace(batch(), clusters=None))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(given.grad).all()
    assert given.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in objective.learned.parameters())


def test_the_memory_adds_the_loss_against_past_batches_with_its_weight():
    plain = Objective(experiment({"kind": "ntxent"}, miner={"kind": "none"}), ground(), dim=DIM, device=CPU)
    settings = experiment({"kind": "ntxent"}, miner={"kind": "none"}, memory={"size": 1000, "warm_up": 1, "weight": 0.5})
    remembering = Objective(settings, ground(), dim=DIM, device=CPU)
    assert remembering(embeddings(0), batch(0)).item() == plain(embeddings(0), batch(0)).item()
    extra = remembering(embeddings(1), batch(1)) - plain(embeddings(1), batch(1))
    vectors = torch.cat([embeddings(0), embeddings(1)]).detach().double().numpy()
    items = np.concatenate([batch(0).items, batch(1).items])
    assert extra.item() == pytest.approx(0.5 * against(vectors, items, settings), rel=1e-5)


def against(vectors: np.ndarray, items: np.ndarray, settings: Experiment) -> float:
    """NT-Xent of the last batch's tiles against all of `vectors`, one pair at a time; a tile is not compared with itself."""
    costs = []
    forbidden = forbidden_pairs(settings, ground(), items, items)
    for anchor in range(len(items) - BATCH, len(items)):
        similar = vectors[anchor] @ vectors.T / 0.1
        others = [number for number in range(len(items)) if items[number] != items[anchor]]
        negatives = [n for n in others if items[n] % 4 != items[anchor] % 4 and not forbidden[anchor, n]]
        for positive in (number for number in others if items[number] % 4 == items[anchor] % 4):
            logits = np.array([similar[positive], *similar[negatives]])
            costs.append(np.log(np.exp(logits - logits[0]).sum()))
    return float(np.mean(costs))


def test_what_a_checkpoint_keeps_brings_the_objective_back():
    settings = experiment({"kind": "triplet"}, memory={"size": 60, "warm_up": 0}, miner={"kind": "hard"})
    one, other = (Objective(settings, ground(), dim=DIM, device=CPU) for _ in range(2))
    one(embeddings(0), batch(0))
    other.load_state_dict(one.state_dict())
    assert other(embeddings(1), batch(1)).item() == one(embeddings(1), batch(1)).item()


def test_the_cost_of_each_tile_is_remembered_for_the_choice_of_clusters():
    objective = Objective(experiment({"kind": "magnet"}), ground(), dim=DIM, device=CPU)
    loss = objective(embeddings(), batch())
    known = ~np.isnan(objective.recent)
    assert set(np.flatnonzero(known)) == set(batch().items)
    assert objective.recent[known].mean() == pytest.approx(loss.item(), rel=1e-5)


CODED = {"model": {"projection": "hash"}, "miner": {"kind": "none"}}


def test_an_encoder_that_hashes_is_compared_by_its_activations_and_pays_for_its_bits():
    settings = experiment({"kind": "softmax"}, hashing={"push": 0.5, "balance": 2.0, "scaling": "mirs"}, **CODED)
    logits = 5 * embeddings().detach()
    h = logits.sigmoid()
    plain = Objective(experiment({"kind": "softmax"}), ground(), dim=DIM, device=CPU)
    push, balance = (h - 0.5).square().mean(), (h.mean(1) - 0.5).square().mean()
    expected = plain(h, batch()) + 2.0 * balance - 0.5 / DIM * push
    assert Objective(settings, ground(), dim=DIM, device=CPU)(logits, batch()).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_terms_of_codes_are_not_asked_of_other_encoders():
    loud, plain = experiment({"kind": "triplet"}, hashing={"push": 100.0}), experiment({"kind": "triplet"})
    costs = [Objective(settings, ground(), dim=DIM, device=CPU)(embeddings(), batch()).item() for settings in (loud, plain)]
    assert costs[0] == costs[1]


def test_triplets_across_classes_are_added_with_their_weight():
    settings = experiment({"kind": "triplet"}, interclass={"weight": 0.25, "margin": 0.4})
    with_them, without = (Objective(each, ground(), dim=DIM, device=CPU) for each in (settings, experiment({"kind": "triplet"})))
    with_them.looks = np.arange(COUNT) // 2 % 3
    extra = with_them(embeddings(), batch()) - without(embeddings(), batch())
    items, vectors = batch().items, embeddings().detach().double().numpy()
    costs = []
    for a, p, n in itertools.permutations(range(BATCH), 3):
        alike = [with_them.looks[items[i]] for i in (a, p, n)]
        classes = [items[i] % 4 for i in (a, p, n)]
        if alike[0] == alike[1] != alike[2] and classes[0] not in classes[1:]:
            near, far = (np.linalg.norm(vectors[a] - vectors[i]) for i in (p, n))
            costs += [near - far + 0.4] if 0 < far - near < 0.4 else []
    assert extra.item() == pytest.approx(0.25 * np.mean(costs), rel=1e-4)


def test_a_projector_stands_between_encoder_and_loss_and_is_learned_and_kept():
    settings = experiment({"kind": "ntxent"}, projector={"dim": 3}, memory={"size": 60, "warm_up": 0}, **CODED)
    one, other = (Objective(settings, ground(), dim=DIM, device=CPU) for _ in range(2))
    first, second = one.learned.parameters()
    assert [tuple(first.shape), tuple(second.shape)] == [(DIM, DIM), (3, DIM)]
    one(embeddings(), batch()).backward()
    assert first.grad.abs().sum() > 0
    with torch.no_grad():
        second *= 2
        second[0] += 1
    assert one.state_dict().keys() >= {"projector"}
    other.load_state_dict(one.state_dict())
    assert other(embeddings(1), batch(1)).item() == one(embeddings(1), batch(1)).item()


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 0.966802), (0.5, 0.870714)])
def test_two_views_of_two_tiles_cost_the_known_numbers(temperature, expected):
    settings = experiment({"kind": "ntxent", "temperature": temperature}, miner={"kind": "none"}, train={"supervision": "views"})
    objective = Objective(settings, ground(), dim=2, device=CPU)
    views = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
    tiles = np.array([8, 9, 8, 9])  # neighbours: their ground forbids nothing
    found = objective(views, Batch(items=tiles, groups=torch.from_numpy(tiles), clusters=None, seed=0))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_what_looks_alike_is_kept():
    settings = experiment({"kind": "triplet"}, interclass={"weight": 1.0})
    one, other = (Objective(settings, ground(), dim=DIM, device=CPU) for _ in range(2))
    one.looks = np.arange(COUNT) % 5
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(other.looks, one.looks)


@pytest.mark.parametrize(
    ("loss", "more", "words"),
    [
        ({"kind": "triplet"}, {"train": {"supervision": "geography"}, "interclass": {"weight": 0.5}}, "interclass.weight"),
        ({"kind": "cross_entropy"}, {"train": {"supervision": "geography"}}, "train.supervision: labels"),
        ({"kind": "softmax"}, {"train": {"supervision": "views"}}, "train.supervision: labels"),
        ({"kind": "ntxent"}, {"train": {"supervision": "views"}, "mining": {"positives": 1}}, "mining.positives"),
        ({"kind": "ntxent"}, {"train": {"supervision": "views"}, "mining": {"beyond_positives": True}}, "mining.beyond_positives"),
        ({"kind": "proxy_anchor"}, {"memory": {"size": 10}}, "memory.size"),
        ({"kind": "softmax"}, {"train": {"supervision": "geography"}}, "train.supervision: labels"),
        ({"kind": "magnet"}, {"train": {"supervision": "geography"}}, "train.supervision: labels"),
        ({"kind": "magnet"}, {"train": {"supervision": "labels", "batch_size": 32}}, "clustering.per_batch"),
        ({"kind": "proxy_anchor"}, {"train": {"supervision": "proportions"}}, "train.supervision: labels,"),
        ({"kind": "magnet", "form": "spatial"}, {"train": {"supervision": "proportions"}}, "labels or geography"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(loss, more, words):
    with pytest.raises(ConfigError, match=words):
        check_objective(experiment(loss, **more), ground())


def test_one_class_cannot_be_told_apart():
    with pytest.raises(ConfigError, match="1 classes"):
        check_objective(experiment({"kind": "triplet"}), ground(classes=1))


def test_the_earlier_systems_magnet_takes_places_for_classes():
    check_objective(experiment({"kind": "magnet", "form": "spatial"}, train={"supervision": "geography"}), ground())


def test_proportions_that_nobody_knows_are_refused():
    unknown = dataclasses.replace(ground(), fractions=np.zeros((COUNT, 0), np.float32))
    with pytest.raises(ConfigError, match=r"rasters\.label_map"):
        check_objective(experiment({"kind": "triplet"}, train={"supervision": "proportions"}), unknown)


def test_groups_that_share_too_much_are_no_negatives_of_each_other():
    """Tiles 0 and 4 show one class: whatever their groups are called, the loss does not part them."""
    settings = experiment({"kind": "triplet"}, train={"supervision": "proportions"}, miner={"kind": "none"}, mining={"every": 0})
    far_apart = dataclasses.replace(ground(), positions=10 * ground().positions)
    objective = Objective(settings, far_apart, dim=2, device=CPU)
    items = np.array([0, 4, 8, 12])
    at = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # the nearest negative would be at distance 0
    groups = torch.tensor([0, 1, 0, 1])
    assert objective(at, Batch(items=items, groups=groups, clusters=None, seed=0)).item() == 0
    unlike = objective(at, Batch(items=np.array([0, 1, 8, 9]), groups=groups, clusters=None, seed=0))
    assert unlike.item() > 0.5
