"""What a training run carries from step to step, and how it is kept in the workspace and taken up again."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow.parquet as pq
import ray.train.torch
import torch

from rayjobs.errors import PublishConflictError, TrainingError
from rayjobs.models.average import WeightAverage
from rayjobs.models.checkpoint import fingerprint, from_files, read_training_state, to_files, training_state_bytes
from rayjobs.models.encoder import build, parameter_groups
from rayjobs.storage import Lease
from rayjobs.train.distributed import agreed, barrier, rank, world_size
from rayjobs.train.mine import Mined, from_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.metric.clusters import Clusters
    from rayjobs.models.encoder import Encoder
    from rayjobs.models.spec import ModelSpec
    from rayjobs.storage import Version
    from rayjobs.train.objective import Objective
    from rayjobs.train.section import TrainSection


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """What the driver decided."""

    experiment: Experiment
    source: Version
    """The set."""
    spec: ModelSpec
    mailbox: Any
    """Where rank 0 tells how far it is."""
    lease: str
    """Token of the driver's lease on the run: without it nothing is published."""

    def tell(self, kind: str, **message: Any) -> None:
        """Leave the driver a message, from rank 0."""
        if rank() == 0 and self.mailbox is not None:
            self.mailbox.post.remote({"kind": kind, **message})


@dataclass(slots=True)
class State:
    """What changes from step to step, and what a checkpoint keeps."""

    module: torch.nn.Module
    """The encoder itself, not its DDP wrapping."""
    parallel: torch.nn.Module
    """The encoder as DDP wraps it."""
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Epochs completed."""
    mined: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """Mined negatives in use."""
    generation: int | None = None
    """Mining generation in use."""
    average: WeightAverage | None = None
    """Running average of the encoder's weights, where one is kept: then it is what checkpoints hold."""
    clusters: Clusters | None = None
    """Clusters of the training tiles, where the loss lives on them; found again after a restart."""

    @property
    def learned(self) -> torch.nn.Module:
        """The encoder as it would be used: the average, where one is kept."""
        return self.module if self.average is None else self.average.module


def initial(plan: TrainPlan, objective: Objective, device: torch.device) -> State:
    """Return the state of a run that begins."""
    settings, model = plan.experiment.train, plan.experiment.model
    module = cast("Encoder", build(plan.spec, settings.seed, pretrained=model.pretrained, rgb=model.rgb)).to(device)
    module.freeze(model.freeze)
    parallel = ray.train.torch.prepare_model(module) if world_size() > 1 else module
    average = WeightAverage(module, decay=settings.ema) if settings.ema else None
    return State(module=module, parallel=parallel, optimizer=_optimizer(settings, module, objective, device), average=average)


def _optimizer(settings: TrainSection, module: torch.nn.Module, objective: Objective, device: torch.device) -> torch.optim.Optimizer:
    """Return AdamW over the encoder and what the loss learns."""
    rate = settings.learning_rate
    groups = parameter_groups(module, backbone_rate=rate * settings.backbone_rate, head_rate=rate, weight_decay=settings.weight_decay)
    of_loss = list(objective.loss.parameters())
    if of_loss:
        groups.append({"params": of_loss, "weight_decay": 0.0, "lr": rate, "initial_lr": rate})
    return torch.optim.AdamW(groups, fused=device.type == "cuda")


def restore(plan: TrainPlan, state: State, objective: Objective, tile_ids: Sequence[str]) -> State:
    """Take up the newest checkpoint, if the run has one."""
    workspace = plan.experiment.open_workspace()
    newest = workspace.checkpoints.current()
    if newest is None:
        return state
    saved = read_training_state(newest.read("state.pt"))
    loaded = from_files(model_json=newest.read("model.json"), tensors=newest.read("model.safetensors"))
    if state.average is None:
        state.module.load_state_dict(loaded.module.state_dict())
    else:
        state.module.load_state_dict(saved["module"])
        state.average.load_state_dict(saved["average"])
    objective.load_state_dict(saved["objective"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.epoch = int(saved["epoch"])
    if saved["generation"] is not None:
        _use_mined(plan, state, int(saved["generation"]), tile_ids)
    plan.tell("resumed", epoch=state.epoch, checkpoint=newest.version)
    return state


def save(plan: TrainPlan, state: State, objective: Objective) -> None:
    """Publish a checkpoint from rank 0; the others wait, so that no rank runs ahead of what is safe.

    Raises:
        TrainingError: on all ranks, if another command has taken the run over.
    """
    workspace = plan.experiment.open_workspace()
    if not agreed(rank() > 0 or Lease.held(workspace.store, workspace.lease, plan.lease), next(state.module.parameters()).device):
        raise TrainingError(f"run {workspace.run} was taken over by another command, which goes on with it; this one ends")
    if rank() == 0:
        _publish(plan, state, objective)
        _drop_old(plan)
    barrier()


def _publish(plan: TrainPlan, state: State, objective: Objective) -> None:
    draft = plan.experiment.open_workspace().checkpoints.draft(f"epoch-{state.epoch:04d}")
    for name, data in to_files(state.learned, plan.spec).items():
        draft.write(name, data)
    saved = {
        "optimizer": state.optimizer.state_dict(),
        "objective": objective.state_dict(),
        "epoch": state.epoch,
        "generation": state.generation,
    }
    if state.average is not None:
        saved |= {"module": state.module.state_dict(), "average": state.average.state_dict()}
    draft.write("state.pt", training_state_bytes(saved))
    mining = None if state.generation is None else generation_name(state.generation)
    ours = fingerprint(plan.spec, state.learned.state_dict())
    parents = {"set": plan.source.version, "mining": mining}
    version = draft.publish({"parents": parents, "encoder_fingerprint": ours, "epoch": state.epoch, "counts": {}})
    if version.manifest["encoder_fingerprint"] != ours:  # one that a killed command had all but published: a restart goes on from it
        raise PublishConflictError(f"checkpoint {version.version} exists already with other weights; training starts again from it")


def _drop_old(plan: TrainPlan) -> None:
    artefact = plan.experiment.open_workspace().checkpoints
    keys = artefact.store.list(artefact.prefix + "epoch-")
    versions = sorted({key.removeprefix(artefact.prefix).partition("/")[0] for key in keys})
    for version in versions[: -plan.experiment.train.keep_checkpoints]:
        for key in keys:
            if key.startswith(f"{artefact.prefix}{version}/"):
                artefact.store.delete(key)


def generation_name(generation: int) -> str:
    """Return the name of a mining generation: the epoch before which it was mined."""
    return f"generation-{generation:04d}"


def publish_mined(plan: TrainPlan, state: State, mined: Mined, tile_ids: Sequence[str]) -> None:
    """Publish the mining table of the generation in use, from rank 0, and have every rank use what then stands there."""
    if rank() == 0:
        buffer = io.BytesIO()
        pq.write_table(mined.table(tile_ids), buffer)
        draft = plan.experiment.open_workspace().mining.draft(generation_name(state.epoch))
        draft.write("mined.parquet", buffer.getvalue())
        counts = {"anchors": len(tile_ids), "negatives": int((mined.candidates >= 0).sum()), "refused": mined.refused}
        draft.publish(
            {
                "parents": {"set": plan.source.version},
                "generation": state.epoch,
                "encoder_fingerprint": fingerprint(plan.spec, state.module.state_dict()),
                "counts": counts,
            }
        )
    barrier()
    _use_mined(plan, state, state.epoch, tile_ids)


def _use_mined(plan: TrainPlan, state: State, generation: int, tile_ids: Sequence[str]) -> None:
    table = plan.experiment.open_workspace().mining.at(generation_name(generation))
    state.mined = from_table(pq.read_table(io.BytesIO(table.read("mined.parquet"))), tile_ids)
    state.generation = generation
