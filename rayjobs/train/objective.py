"""What a batch is asked to become: loss, miner, memory and further terms, as the experiment combines them; the same on all ranks."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rayjobs.errors import ConfigError
from rayjobs.metric.hashing import hashing_terms
from rayjobs.metric.interclass import InterclassTriplets
from rayjobs.metric.losses import Loss, MagnetLoss, Part, TupleLoss, build_loss
from rayjobs.metric.memory import CrossBatchMemory
from rayjobs.metric.miners import Miner, build_miner
from rayjobs.metric.projector import projector, spread
from rayjobs.metric.relations import Reference, Tuples
from rayjobs.metric.section import MagnetLossSection, SimSiamLossSection, require_tuples, why_no_tuples
from rayjobs.train.distributed import share_of, total, world_size
from rayjobs.train.ground import forbidden_pairs

if TYPE_CHECKING:
    from rayjobs.experiment import Experiment
    from rayjobs.metric.section import ProjectorSection
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
    of_classes = why_no_tuples(experiment.loss) and not isinstance(experiment.loss, SimSiamLossSection)
    if of_classes and settings.supervision not in known:
        wanted = " or ".join(sorted(known, reverse=True))
        raise ConfigError(f"loss.kind {experiment.loss.kind} lives on classes; set train.supervision: {wanted}, or choose another loss")
    if needs_clusters(experiment) and settings.batch_size % experiment.clustering.per_batch:
        raise ConfigError(
            f"train.batch_size {settings.batch_size} must be a multiple of clustering.per_batch {experiment.clustering.per_batch}; "
            "change one of the two"
        )
    if experiment.interclass.weight and settings.supervision != "labels":
        raise ConfigError(
            "interclass.weight asks for triplets across classes, which labels alone tell; set train.supervision: labels, or the weight to 0"
        )
    of_positives = experiment.mining.positives or experiment.mining.beyond_positives or experiment.mining.skip_in_top
    if settings.supervision == "views" and of_positives:
        raise ConfigError(
            "mining.positives, mining.beyond_positives and mining.skip_in_top look at tiles that are alike, and with train.supervision: "
            "views none are; leave them at their defaults"
        )
    if experiment.adaptation.target and experiment.model.domain_whitening is None:
        raise ConfigError(
            "adaptation.target asks for statistics of another set, which an encoder keeps with model.domain_whitening alone; set that, "
            "such as model.domain_whitening: {group_size: 32}"
        )
    if settings.supervision == "labels" and ground.classes <= 1:
        raise ConfigError(
            f"the training tiles have {ground.classes} classes, which cannot be told apart; set rasters.label_map and sample again"
        )
    if settings.supervision == "proportions" and not ground.fractions.any():
        raise ConfigError("train.supervision is proportions, and of no training tile are they known; set rasters.label_map")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Others:
    """What the anchors of a batch are compared with."""

    items: IntArray
    """(m,) index of each tile among the training tiles."""
    embeddings: torch.Tensor
    """(m, dim)."""
    groups: torch.Tensor
    """(m,) int64."""
    within: bool
    """Whether they are the batch itself: then a row is the anchor's own by its place, else by its tile."""

    def reference(self, items: IntArray, rows: slice) -> Reference:
        """Return them as the other side of the anchors `rows` of the batch, which show the tiles `items`."""
        own = np.arange(rows.start, rows.stop)[:, None] == np.arange(len(self.items)) if self.within else items[:, None] == self.items
        return Reference(embeddings=self.embeddings, groups=self.groups, itself=torch.from_numpy(own).to(self.groups.device))


class Objective:
    """Maps a batch of embeddings to one number, and remembers past batches if asked to.

    An encoder that hashes gives the numbers z of a tile; what is compared, and what the terms of `hashing` are of, is h = sigmoid(z). With
    a projector, what it makes of the encoder's output is compared instead.

    Each rank takes its own anchors against the embeddings of all ranks, some at a time so that what lies between stays within
    `train.loss_memory_mib`. Losses that are no sum over anchors, all but `TupleLoss`, compare with class weights, with clusters or with
    pairs of pairs: each rank computes those, and the terms of `hashing`, of the whole batch, and takes its even share of them.
    """

    def __init__(self, experiment: Experiment, ground: Ground, *, dim: int, device: torch.device) -> None:
        """Make loss, miner, memory and what else the experiment asks for.

        Args:
            experiment: combines them.
            ground: of the training tiles.
            dim: numbers in the encoder's output.
            device: where the batches are.
        """
        classes = ground.classes if experiment.train.supervision == "labels" else None
        self._experiment, self._ground = experiment, ground
        self._hashes = experiment.model.projection == "hash"
        compared, seed = experiment.projector.dim or dim, experiment.train.seed
        self.loss: Loss = build_loss(experiment.loss, dim=compared, classes=classes, names=ground.class_names, seed=seed).to(device)
        self._projector = _projector_of(experiment.projector, dim, seed, device)
        self._miner: Miner = build_miner(experiment.miner)
        memory = experiment.memory
        self._memory = CrossBatchMemory(size=memory.size, dim=compared, warm_up=memory.warm_up).to(device) if memory.size else None
        self._interclass = InterclassTriplets(experiment.interclass) if experiment.interclass.weight else None
        self.spread = torch.tensor(math.nan)
        """How far the embeddings of the latest batch, as they were compared, differ; see `rayjobs.metric.projector.spread`."""
        self.looks = np.full(len(ground.tile_ids), -1)
        """(tiles,) int64 which tiles look alike, whatever their class, where the experiment asks; see `rayjobs.metric.interclass`."""
        self.recent = np.full(len(ground.tile_ids), np.nan)
        """(tiles,) latest loss of each tile, NaN where unknown: clusters of great loss are drawn more often."""

    @property
    def learned(self) -> nn.Module:
        """What is learned beside the encoder, and kept for training alone."""
        return nn.ModuleList([self.loss, *([] if self._projector is None else [self._projector])])

    def __call__(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return this rank's share of the loss of a whole batch: over the ranks, the shares add up to it.

        Args:
            outputs: (n, dim) what the encoder gives in training mode.
            batch: of the plan.
        """
        activations = outputs.sigmoid() if self._hashes else outputs
        compared = activations if self._projector is None else self._projector(outputs)
        self.spread = spread(compared.detach())
        loss = self._compared(compared, batch)
        if self._hashes:
            loss = loss + hashing_terms(activations, self._experiment.hashing) / world_size()
        if self._interclass is not None:
            loss = loss + self._experiment.interclass.weight * self._across_classes(self._interclass, activations, batch)
        return loss

    def _compared(self, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return this rank's share of what loss and memory say of embeddings (n, dim)."""
        if isinstance(self.loss, MagnetLoss) and batch.clusters is not None:
            return self._by_clusters(self.loss, embeddings, batch) / world_size()
        if not self.loss.takes_tuples:
            loss: torch.Tensor = self.loss(embeddings, batch.groups)
            return loss / world_size()
        within = self._against(_Others(items=batch.items, embeddings=embeddings, groups=batch.groups, within=True), embeddings, batch)
        past = self._past(embeddings, batch)
        return within if past is None else within + self._experiment.memory.weight * self._against(past, embeddings, batch)

    def _across_classes(self, triplets: InterclassTriplets, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return this rank's share of the loss of triplets across classes."""
        clusters, classes = (torch.from_numpy(known[batch.items]).to(embeddings.device) for known in (self.looks, self._ground.labels))
        others, rows = _Others(items=batch.items, embeddings=embeddings, groups=clusters, within=True), share_of(len(embeddings))
        reference = others.reference(batch.items[rows], rows)
        part = triplets.part(embeddings[rows], clusters[rows], classes[rows], others=classes, reference=reference)
        return part.over(total(part.counts))

    def _by_clusters(self, loss: MagnetLoss, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        costs = loss.per_item(embeddings, batch.groups, batch.clusters)
        self.recent[batch.items] = costs.detach().cpu().numpy()
        return costs.mean()

    def _past(self, embeddings: torch.Tensor, batch: Batch) -> _Others | None:
        """Return past batches, after taking this one into the memory; None while it is cold, or where there is none."""
        memory = self._memory
        if memory is None:
            return None
        memory.update(embeddings.detach(), batch.groups, torch.from_numpy(batch.items).to(embeddings.device))
        past = memory.remembered()
        if past is None:
            return None
        return _Others(items=past.items.cpu().numpy(), embeddings=past.embeddings.to(embeddings.dtype), groups=past.groups, within=False)

    def _against(self, others: _Others, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return this rank's share of the loss of a batch compared with others."""
        if not isinstance(self.loss, TupleLoss):
            return self._whole(others, embeddings, batch) / world_size()
        rows = share_of(len(embeddings))
        chunks = _chunks(rows, len(others.items) * self.loss.pair_bytes(embeddings.shape[1]), self._experiment.train.loss_memory_mib)
        if len(chunks) == 1:
            part = self._part(self.loss, others, embeddings, batch, rows)
            return part.over(total(part.counts))
        # what lies between is computed again on the way back: kept, it would take as much room as without chunks
        parts = [
            checkpoint(self._part, self.loss, others, embeddings, batch, chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        counts = total(torch.stack([part.counts for part in parts]).sum(0))
        return torch.stack([part.over(counts) for part in parts]).sum()

    def _part(self, loss: TupleLoss, others: _Others, embeddings: torch.Tensor, batch: Batch, rows: slice) -> Part:
        """Return what the anchors `rows` add to the loss."""
        reference = others.reference(batch.items[rows], rows)
        anchors, groups = embeddings[rows], batch.groups[rows]
        return loss.part(anchors, groups, self._tuples(others, anchors, groups, batch, rows, reference), reference=reference)

    def _tuples(
        self, others: _Others, anchors: torch.Tensor, groups: torch.Tensor, batch: Batch, rows: slice, reference: Reference | None
    ) -> Tuples:
        forbidden = forbidden_pairs(self._experiment, self._ground, batch.items[rows], others.items)
        return self._miner(
            anchors.detach(),
            groups,
            torch.from_numpy(forbidden).to(anchors.device),
            reference=reference,
            rows=torch.arange(rows.start, rows.stop, device=anchors.device),
            seed=batch.seed,
        )

    def _whole(self, others: _Others, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of the whole batch."""
        rows = slice(0, len(embeddings))
        reference = None if others.within else others.reference(batch.items, rows)
        tuples = self._tuples(others, embeddings, batch.groups, batch, rows, reference)
        loss: torch.Tensor = self.loss(embeddings, batch.groups, tuples, reference=reference)
        return loss

    def on(self, ground: Ground) -> Objective:
        """Return the same objective, with the same weights, for other tiles: without what it remembers of the training tiles."""
        other = copy.copy(self)
        other._ground, other._memory, other._interclass = ground, None, None  # noqa: SLF001  of its own kind
        return other

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep: tensors alone."""
        memory = {} if self._memory is None else self._memory.state_dict()
        kept = {"loss": self.loss.state_dict(), "memory": memory, "recent": torch.from_numpy(self.recent)}
        if self._projector is not None:
            kept["projector"] = self._projector.state_dict()
        if self._interclass is not None:
            kept["looks"] = torch.from_numpy(self.looks)
        return kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.loss.load_state_dict(state["loss"])
        if self._memory is not None:
            self._memory.load_state_dict(state["memory"])
        if self._projector is not None:
            self._projector.load_state_dict(state["projector"])
        if self._interclass is not None:
            self.looks = state["looks"].numpy()
        self.recent = state["recent"].numpy()


def _projector_of(section: ProjectorSection, inputs: int, seed: int, device: torch.device) -> nn.Module | None:
    if section.dim is None:
        return None
    made = projector(inputs, section.dim, seed=seed, layers=section.layers, hidden=section.hidden, batch_norm=section.batch_norm)
    return made.to(device)


def _chunks(rows: slice, row_bytes: int, mib: int) -> list[slice]:
    """Cut anchors, each of which takes so many bytes, into consecutive chunks that stay within a memory."""
    size = max(1, mib * 2**20 // max(1, row_bytes))
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)] or [rows]
