"""A batch taken in parts against the same batch at once."""

from __future__ import annotations

import math

import pytest
import torch

from rayjobs.train.gradient_cache import embed_without_graph, in_parts, parts_of, pass_on

ROWS = 7


class Network(torch.nn.Module):
    """Knows batch statistics and chance, as networks do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.BatchNorm1d(5).double()
        self.dropped = torch.nn.Dropout(0.5)
        self.linear = torch.nn.Linear(5, 3).double()

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropped(self.norm(pixels * valid)))


def share() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 5, generator=generator, dtype=torch.float64), torch.rand(ROWS, 5, generator=generator) < 0.9


def loss_of(embeddings: torch.Tensor) -> torch.Tensor:
    """Compare all with all."""
    return torch.cdist(embeddings, embeddings).square().sum() + (embeddings @ embeddings.T).logsumexp(1).sum()


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_and_running_statistics_are_those_of_embedding_all_parts_with_a_graph(count):
    cached, whole = Network(), Network()
    cut = in_parts(share(), count)
    assert sum(len(pixels) for pixels, _ in cut) == ROWS

    torch.manual_seed(5)
    expected = loss_of(torch.cat([whole(*part) for part in cut]))
    expected.backward()

    torch.manual_seed(5)
    local, parts = embed_without_graph(cached, cached, cut)
    loss = loss_of(local)
    loss.backward()
    pass_on(cached, cached, parts, local.grad)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for mine, theirs in zip(cached.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(cached.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("batch", "ranks", "micro", "parts"), [(10, 4, 2, 2), (128, 3, 42, 2), (64, 1, None, 1), (64, 2, 8, 4)])
def test_every_rank_cuts_as_many_parts(batch, ranks, micro, parts, monkeypatch):
    monkeypatch.setattr("rayjobs.train.gradient_cache.world_size", lambda: ranks)
    assert parts_of(batch, micro) == parts
    assert micro is None or math.ceil(math.ceil(batch / ranks) / parts) <= micro
