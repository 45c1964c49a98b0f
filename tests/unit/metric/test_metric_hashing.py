"""Terms beside the loss against the known numbers of the earlier system and loops over their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from rayjobs.metric.adaptation import consensus, entropy
from rayjobs.metric.hashing import balance, hashing_terms, push
from rayjobs.metric.projector import projector, spread
from rayjobs.metric.section import HashingSection

H = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.6, 0.6, 0.6, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize(("scaling", "expected"), [("published", -6.75e-5), ("mirs", -1.6875e-5)])
def test_the_push_gives_the_known_numbers(scaling, expected):
    found = hashing_terms(H, HashingSection(push=0.001, balance=0.0, scaling=scaling))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_balance_gives_the_known_number():
    assert hashing_terms(H, HashingSection(push=0.0, balance=1.0)).item() == pytest.approx(0.005, rel=1e-9)


def test_the_terms_are_those_of_a_naive_loop():
    h = torch.rand(7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = h.tolist()
    assert push(h).item() == pytest.approx(sum((x - 0.5) ** 2 for row in rows for x in row) / (7 * 16), rel=1e-12)
    assert balance(h).item() == pytest.approx(sum((sum(row) / 16 - 0.5) ** 2 for row in rows) / 7, rel=1e-12)
    assert hashing_terms(h, HashingSection()).item() == pytest.approx((balance(h) - 0.001 * push(h)).item(), rel=1e-12)


def test_the_terms_drive_numbers_apart_and_half_of_them_on():
    logits = torch.full((3, 8), 0.2, dtype=torch.float64) + 0.1 * torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        hashing_terms(logits.sigmoid(), HashingSection(push=1.0, balance=10.0)).backward()
        optimizer.step()
    h = logits.detach().sigmoid()
    assert (h - 0.5).abs().min() > 0.45
    assert ((h > 0.5).sum(dim=1) == 4).all()


@pytest.mark.parametrize(("count", "expected"), [(32, 3.3548), (128, 4.7411)])
def test_the_entropy_of_a_code_of_which_half_is_on_gives_the_known_numbers(count, expected):
    half_on = torch.cat([torch.ones(1, count // 2), torch.zeros(1, count // 2)], dim=1)
    assert entropy(half_on).item() == pytest.approx(expected, abs=5e-5)
    assert entropy(torch.zeros(2, count)).item() == pytest.approx(math.log(count), rel=1e-6)


def test_the_consensus_is_that_of_a_naive_loop():
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def probability(row, k):
        return math.exp(row[k]) / sum(map(math.exp, row))

    costs = [
        min(-(math.log(probability(one, k)) + math.log(probability(two, k))) / 2 for k in range(4))
        for one, two in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert consensus(first, second).item() == pytest.approx(sum(costs) / 5, rel=1e-12)


def test_a_projector_is_two_linear_layers_without_biases_and_begins_with_its_seed():
    made, twin, other = projector(6, 3, seed=1), projector(6, 3, seed=1), projector(6, 3, seed=2)
    assert [tuple(parameter.shape) for parameter in made.parameters()] == [(6, 6), (3, 6)]
    rows = torch.randn(4, 6)
    assert torch.equal(made(rows), twin(rows))
    assert not torch.equal(made(rows), other(rows))
    first, second = made.parameters()
    torch.testing.assert_close(made(rows), (rows @ first.T).clamp(min=0) @ second.T)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "Linear ReLU Linear"),
        ({"batch_norm": "hidden"}, "Linear BatchNorm1d ReLU Linear"),
        ({"layers": 3, "batch_norm": "all"}, "Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU Linear BatchNorm1d"),
        ({"layers": 1, "batch_norm": "hidden"}, "Linear"),
    ],
)
def test_projectors_have_the_layers_of_simclr_and_simsiam(given, expected):
    made = projector(6, 3, seed=0, hidden=5, **given)
    assert " ".join(type(layer).__name__ for layer in made) == expected
    assert made(torch.randn(4, 6)).shape == (4, 3)
    norms = [layer for layer in made if isinstance(layer, torch.nn.BatchNorm1d)]
    assert all(norm.running_mean is None for norm in norms)
    assert [norm.affine for norm in norms] == [True] * (len(norms) - 1) + [given.get("batch_norm") != "all"] * bool(norms)


def test_the_spread_is_1_where_embeddings_point_everywhere_and_0_where_all_are_one():
    everywhere = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert spread(everywhere).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(5, 16) * torch.arange(1, 6)[:, None]).item() == pytest.approx(0, abs=1e-6)
