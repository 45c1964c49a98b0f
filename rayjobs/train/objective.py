"""What a batch is asked to become: loss, miner and memory, as the experiment combines them; the same on all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayjobs.errors import ConfigError
from rayjobs.metric.losses import Loss, MagnetLoss, build_loss
from rayjobs.metric.memory import CrossBatchMemory
from rayjobs.metric.miners import Miner, build_miner
from rayjobs.metric.section import MagnetLossSection, require_tuples, why_no_tuples
from rayjobs.train.ground import forbidden_pairs

if TYPE_CHECKING:
    from rayjobs.experiment import Experiment
    from rayjobs.train.ground import Ground

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of the epoch's plan, on the device."""

    items: IntArray
    """(n,) index of each tile among the training tiles."""
    groups: torch.Tensor
    """(n,) int64; tiles of equal numbers are alike, in this batch and in any other."""
    clusters: torch.Tensor | None
    """(n,) int64 cluster of each tile, where the loss lives on clusters of the training set."""
    seed: int
    """Of what a miner draws by chance."""


def needs_clusters(experiment: Experiment) -> bool:
    """Tell whether the loss lives on clusters of the whole training set, which plan its batches."""
    return isinstance(experiment.loss, MagnetLossSection) and experiment.loss.form == "published"


def check_objective(experiment: Experiment, ground: Ground) -> None:
    """Refuse combinations that make no sense, before anything is started.

    Raises:
        ConfigError: naming the keys.
    """
    settings = experiment.train
    if experiment.memory.size:
        require_tuples(experiment.loss, "memory.size")
    spatial = isinstance(experiment.loss, MagnetLossSection) and experiment.loss.form == "spatial"
    known = {"labels", "geography"} if spatial else {"labels"}
    if why_no_tuples(experiment.loss) and settings.supervision not in known:
        wanted = " or ".join(sorted(known, reverse=True))
        raise ConfigError(f"loss.kind {experiment.loss.kind} lives on classes; set train.supervision: {wanted}, or choose another loss")
    if needs_clusters(experiment) and settings.batch_size % experiment.clustering.per_batch:
        raise ConfigError(
            f"train.batch_size {settings.batch_size} must be a multiple of clustering.per_batch {experiment.clustering.per_batch}; "
            "change one of the two"
        )
    if settings.supervision == "labels" and ground.classes <= 1:
        raise ConfigError(f"the training tiles have {ground.classes} classes, which cannot be told apart; see rasters.label_map")
    if settings.supervision == "proportions" and not ground.fractions.any():
        raise ConfigError("train.supervision is proportions, and of no training tile are they known; set rasters.label_map")


class Objective:
    """Maps a batch of embeddings to one number, and remembers past batches if asked to."""

    def __init__(self, experiment: Experiment, ground: Ground, *, dim: int, device: torch.device) -> None:
        """Make loss, miner and memory."""
        classes = ground.classes if experiment.train.supervision == "labels" else None
        self._experiment, self._ground = experiment, ground
        self.loss: Loss = build_loss(experiment.loss, dim=dim, classes=classes, seed=experiment.train.seed).to(device)
        self._miner: Miner = build_miner(experiment.miner)
        memory = experiment.memory
        self._memory = CrossBatchMemory(size=memory.size, dim=dim, warm_up=memory.warm_up).to(device) if memory.size else None
        self.recent = np.full(len(ground.tile_ids), np.nan)
        """(tiles,) latest loss of each tile, NaN where unknown: clusters of great loss are drawn more often."""

    def __call__(self, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of a whole batch of embeddings (n, dim)."""
        if isinstance(self.loss, MagnetLoss) and batch.clusters is not None:
            return self._by_clusters(self.loss, embeddings, batch)
        if not self.loss.takes_tuples:
            loss: torch.Tensor = self.loss(embeddings, batch.groups)
            return loss
        within = self._by_tuples(embeddings, batch)
        return within if self._memory is None else within + self._against(self._memory, embeddings, batch)

    def _by_clusters(self, loss: MagnetLoss, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        costs = loss.per_item(embeddings, batch.groups, batch.clusters)
        self.recent[batch.items] = costs.detach().cpu().numpy()
        return costs.mean()

    def _by_tuples(self, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        forbidden = forbidden_pairs(self._experiment, self._ground, batch.items, batch.items)
        tuples = self._miner(embeddings.detach(), batch.groups, torch.from_numpy(forbidden).to(embeddings.device), seed=batch.seed)
        loss: torch.Tensor = self.loss(embeddings, batch.groups, tuples)
        return loss

    def _against(self, memory: CrossBatchMemory, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the weighted loss against past batches; 0 while the memory is cold."""
        items = torch.from_numpy(batch.items).to(embeddings.device)
        memory.update(embeddings.detach(), batch.groups, items)
        reference = memory.reference(items)
        if reference is None:
            return embeddings.sum() * 0.0
        held = memory.items[: memory.held].cpu().numpy()
        forbidden = torch.from_numpy(forbidden_pairs(self._experiment, self._ground, batch.items, held)).to(embeddings.device)
        tuples = self._miner(embeddings.detach(), batch.groups, forbidden, reference=reference, seed=batch.seed)
        loss: torch.Tensor = self.loss(embeddings, batch.groups, tuples, reference=reference)
        return self._experiment.memory.weight * loss

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep: tensors alone."""
        memory = {} if self._memory is None else self._memory.state_dict()
        return {"loss": self.loss.state_dict(), "memory": memory, "recent": torch.from_numpy(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.loss.load_state_dict(state["loss"])
        if self._memory is not None:
            self._memory.load_state_dict(state["memory"])
        self.recent = state["recent"].numpy()
