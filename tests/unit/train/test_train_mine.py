"""Embedding the training tiles on many ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayjobs.train import mine
from rayjobs.train.cache import ChipCache


class Normed(torch.nn.Module):
    """Embeds by batch norm alone."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(2)

    def forward(self, pixels, _valid):
        return self.norm(pixels.float()).mean(dim=(2, 3))


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_with_nothing_to_embed_learns_nothing_from_it(monkeypatch, rank):
    monkeypatch.setattr(mine, "rank", lambda: rank)
    monkeypatch.setattr(mine, "world_size", lambda: 6)
    pixels = np.random.default_rng(0).integers(0, 255, (9, 2, 4, 4)).astype(np.uint8)
    module = Normed().train()
    found = mine.embed_all(module, ChipCache(pixels=pixels, valid=np.ones((9, 4, 4), bool)), torch.device("cpu"))
    assert found.shape == (9, 2)
    assert bool(found.any()) == (rank == 0)
    assert module.training
    assert module.norm.running_mean.tolist() == [0, 0], "statistics are of training steps alone"
