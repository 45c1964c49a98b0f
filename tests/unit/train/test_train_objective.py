from __future__ import annotations

import dataclasses

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
    assert all(parameter.grad is not None for parameter in objective.loss.parameters())


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


@pytest.mark.parametrize(
    ("loss", "more", "words"),
    [
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
