"""The running average of an encoder's weights, which often generalises better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of weights and of batch-norm statistics (Polyak & Juditsky, 1992), with a decay that grows at first.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), the rule of TensorFlow's ExponentialMovingAverage: a short run would
    else remember its random beginning. Integer buffers, such as the number of batches seen, are copied.
    """

    def __init__(self, module: torch.nn.Module, *, decay: float) -> None:
        """Begin with a copy of the module, on its device.

        Args:
            module: the encoder itself, not its DDP wrapping. Its first `update` replaces the copy.
            decay: of the average, from 0 to below 1.
        """
        self._decay = decay
        self._averaged = AveragedModel(module, multi_avg_fn=self._average, use_buffers=True)
        self._averaged.requires_grad_(requires_grad=False).eval()

    @property
    def module(self) -> torch.nn.Module:
        """The averaged encoder, in evaluation mode, without gradients."""
        averaged: torch.nn.Module = self._averaged.module
        return averaged

    @property
    def updates(self) -> int:
        """How many updates it has seen."""
        return int(self._averaged.n_averaged)

    def update(self, module: torch.nn.Module) -> None:
        """Take in the weights of the module after a step; the first update copies them."""
        self._averaged.update_parameters(module)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint must keep: tensors alone."""
        return dict(self._averaged.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a kept average, of the same architecture."""
        self._averaged.load_state_dict(state)

    @torch.no_grad()
    def _average(self, averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], _count: torch.Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            for mine, theirs in zip(averaged, current, strict=True):
                mine.copy_(theirs)
            return
        # our own count lies on the CPU: to read the one that torch hands over would wait for the device
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        update(list(averaged), list(current), self.updates)
