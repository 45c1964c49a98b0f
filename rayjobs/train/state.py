"""What a training run carries from step to step, and how it is kept in the workspace and taken up again."""

from __future__ import annotations

import io
import math
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train.torch
import torch

from rayjobs.errors import CheckpointError, NotFoundError, PublishConflictError, RayjobsError, StorageError, TrainingError
from rayjobs.metric.clusters import Clusters
from rayjobs.models.average import WeightAverage
from rayjobs.models.checkpoint import fingerprint, from_files, read_training_state, to_files, training_state_bytes
from rayjobs.models.encoder import build
from rayjobs.storage import Lease
from rayjobs.train.batches import EpochPlan, HardTiles
from rayjobs.train.distributed import agreed, found_by_rank_zero, from_rank_zero, rank, world_size
from rayjobs.train.layout import FORMAT, all_finite, check_counts, check_fits, read_mined
from rayjobs.train.mine import Mined, from_table
from rayjobs.train.optimizers import MOMENTS, optimizer_of, take_up
from rayjobs.train.shown import Projected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.models.checkpoint import Checkpointed
    from rayjobs.models.encoder import Encoder
    from rayjobs.models.spec import ModelSpec
    from rayjobs.storage import Version
    from rayjobs.train.objective import Objective
    from rayjobs.train.section import TrainSection
    from rayjobs.train.validation import Validation

T = TypeVar("T")

_ANSWER_S = 30.0
"""How long a worker that has failed waits for the driver's answer, and for the other ranks to fail likewise."""
_PAUSE_S = 0.2
_LOSSES = "losses.parquet"
_GENERATION = "generation-"
_LAST_WAITS_S = (5.0, 15.0, 30.0, 60.0)
"""Before each further try to publish the last checkpoint of a run; storage has waited and tried again within each try already."""


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
    validation: Validation | None = None
    """What is measured after an epoch, where anybody looks on."""
    target: Version | None = None
    """The set of `adaptation.target`."""

    def tell(self, kind: str, **message: Any) -> None:
        """Leave the driver a message, from rank 0."""
        if rank() == 0 and self.mailbox is not None:
            self.mailbox.post.remote({"kind": kind, **message})

    def tell_failure(self, error: RayjobsError) -> bool:
        """Tell the driver, from any rank, of a failure that no restart mends; return whether all ranks have, within some seconds.

        Raises:
            RayError: the driver cannot be told.
        """
        if self.mailbox is None:
            return False
        ray.get(self.mailbox.fail.remote(rank(), error), timeout=_ANSWER_S)
        deadline = time.monotonic() + _ANSWER_S
        ranks = set(range(world_size()))
        while not (together := ranks <= self.failures()) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        return together

    def failures(self) -> set[int]:
        """Return the ranks that have told a failure which no restart mends, in this worker group or one before."""
        failed: set[int] = set() if self.mailbox is None else ray.get(self.mailbox.failed.remote(), timeout=_ANSWER_S)
        return failed

    def is_ending(self) -> bool:
        """Ask whether the driver was told to end; on rank 0, the others know of nothing."""
        return bool(rank() == 0 and self.mailbox is not None and ray.get(self.mailbox.is_ending.remote()))


class MinedTable(NamedTuple):
    """A mining table on its way to the workspace."""

    generation: int
    data: bytes
    """Of `mined.parquet`."""
    manifest: dict[str, Any]


@dataclass(slots=True)
class State:
    """What changes from step to step, and what a checkpoint keeps."""

    module: torch.nn.Module
    """The encoder itself, not its DDP wrapping."""
    parallel: torch.nn.Module
    """The encoder, or that part of it which is called in a step, as DDP wraps it."""
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Steps completed of the epoch under way."""
    batches: EpochPlan | None = None
    """Batches of the epoch under way; None between epochs."""
    losses: array[float] = field(default_factory=lambda: array("d"))
    """Loss of every step of the run that led to these weights."""
    mined: HardTiles | None = None
    """Mined negatives and positives in use."""
    generation: int | None = None
    """Mining generation in use."""
    unpublished: MinedTable | None = None
    """The generation in use where it could not be published yet; on rank 0 alone."""
    failed_uploads: int = 0
    """Checkpoints and mining tables that could not be published when it was time."""
    average: WeightAverage | None = None
    """Running average of the encoder's weights, where one is kept: then it is what checkpoints hold."""
    clusters: Clusters | None = None
    """Clusters of the training tiles, where the loss lives on them."""
    validated: dict[str, float] = field(default_factory=dict)
    """What was found on held-out tiles after the last epoch. A checkpoint's manifest tells it."""
    least: float = math.inf
    """Least loss on the held-out tiles so far, where one is measured."""
    stalled: int = 0
    """Checkpoints since then."""

    def end_epoch(self) -> None:
        """Go on to the first step of the next epoch."""
        self.epoch, self.step, self.batches = self.epoch + 1, 0, None

    def measured(self, loss: float) -> None:
        """Take in the loss on the held-out tiles."""
        self.stalled = 0 if loss < self.least else self.stalled + 1
        self.least = min(self.least, loss)

    def is_over(self, settings: TrainSection) -> bool:
        """Whether the last epoch is done, or patience is at its end."""
        return self.epoch >= settings.epochs or (settings.patience is not None and self.stalled >= settings.patience)

    @property
    def learned(self) -> torch.nn.Module:
        """The encoder as it would be used: the average, where one is kept."""
        return self.module if self.average is None else self.average.module


def taken_up(plan: TrainPlan, objective: Objective, device: torch.device, tile_ids: Sequence[str]) -> State:
    """Return the state at the newest sound checkpoint, which asks for no pretrained weights: they may be gone; else `initial`."""
    checkpoints = plan.experiment.open_workspace().checkpoints
    if found_by_rank_zero(lambda: bool(checkpoints.finished())):
        state = restore(plan, initial(plan, objective, device, pretrained=False), objective, tile_ids)
        if state.epoch or state.step:
            return state
    return initial(plan, objective, device)


def initial(plan: TrainPlan, objective: Objective, device: torch.device, *, pretrained: bool = True) -> State:
    """Return the state of a run that begins; unless `pretrained`, with weights at random, for a checkpoint to replace."""
    settings, model = plan.experiment.train, plan.experiment.model
    weights = plan.experiment.with_weights().model.pretrained if pretrained else "none"
    module = cast("Encoder", build(plan.spec, settings.seed, pretrained=weights, rgb=model.rgb)).to(device)
    module.freeze(model.freeze, batch_norms=model.freeze_batch_norm)
    if module.fusion is not None and model.fusion is not None:
        module.fusion.dropout = model.fusion.dropout
    if settings.activation_checkpointing:
        module.checkpoint_activations()
    if settings.sync_batch_norm:
        _require_gpu(device)
        module.synchronise_batch_norms()
    network = Projected(module) if settings.frozen_features else module
    parallel = ray.train.torch.prepare_model(network) if world_size() > 1 else network
    average = WeightAverage(module, decay=settings.ema) if settings.ema else None
    if settings.compile:
        parallel.compile()
    return State(module=module, parallel=parallel, optimizer=optimizer_of(settings, module, objective.learned, device), average=average)


def _require_gpu(device: torch.device) -> None:
    if device.type == "cpu":
        raise TrainingError("train.sync_batch_norm works on GPUs alone, and this worker has none; set it to false, or ray.gpu: yes")


def restore(plan: TrainPlan, state: State, objective: Objective, tile_ids: Sequence[str]) -> State:
    """Take up the newest sound checkpoint and its mining generation, if the run has one; every rank takes up what rank 0 found."""
    workspace = plan.experiment.open_workspace()
    chosen = from_rank_zero(_newest(plan, state, objective, tile_ids) if rank() == 0 else None)
    if chosen is None:
        return state
    name, generation = chosen
    version = workspace.checkpoints.at(name)
    _take_up(state, objective, _loaded(version))
    if generation is not None:
        use_mined(plan, state, generation, tile_ids)
    plan.tell("resumed", epoch=state.epoch, step=state.step, checkpoint=name)
    return state


def _newest(plan: TrainPlan, state: State, objective: Objective, tile_ids: Sequence[str]) -> tuple[str, int | None] | None:
    """Return the name of the newest checkpoint that this run can take up, and the mining generation to go on with.

    What is damaged or cannot be used is said and withdrawn, so that it can be published again when training comes there.
    """
    workspace = plan.experiment.open_workspace()

    def say(text: str) -> None:
        plan.tell("damaged", text=text)

    def unfit_here(version: Version) -> str | None:
        return _refusal(lambda: _check_taken_up(_loaded(version), plan, state, objective, len(tile_ids)))

    version = workspace.checkpoints.newest_sound(say, unfit=unfit_here)
    if version is None:
        return None
    generation = _loaded(version).saved["generation"]
    if generation is None:
        return version.version, None
    mined = _newest_generation(plan, generation, tile_ids)
    return version.version, _number(mined) if mined else None


def _newest_generation(plan: TrainPlan, last: int, tile_ids: Sequence[str]) -> Version | None:
    """Return the newest mining generation up to a last one that this run can use; say and withdraw those after it."""

    def unfit(table: Version) -> str | None:
        return _refusal(lambda: (_number(table), hard_tiles(plan, table, tile_ids)))

    mining = plan.experiment.open_workspace().mining
    return mining.newest_sound(lambda text: plan.tell("damaged", text=text), generation_name(last), unfit=unfit)


class _Checkpoint(NamedTuple):
    """A checkpoint's files, read."""

    encoder: Checkpointed
    saved: dict[str, Any]
    """Of `state.pt`."""
    losses: array[float]


def unfit(version: Version) -> str | None:
    """Tell why a checkpoint whose files are whole is none that any run can go on from; None where it is one."""
    return _refusal(lambda: _loaded(version))


def _refusal(check: Callable[[], object]) -> str | None:
    """Return why something of the workspace cannot be used; None where it can."""
    try:
        check()
    except (CheckpointError, NotFoundError) as error:  # not found: its manifest does not name all files
        return str(error)
    return None


def _loaded(version: Version) -> _Checkpoint:
    """Read a checkpoint. Raises `CheckpointError` where it is none, or another than its name and its manifest say."""
    encoder = from_files(model_json=version.read("model.json"), tensors=version.read("model.safetensors"))
    saved = read_training_state(version.read("state.pt"))
    check_counts(saved)
    epoch, step = saved["epoch"], saved["step"]
    if _name_at(epoch, step) != version.version or version.manifest.get("epoch") != epoch:
        raise CheckpointError(f"its state.pt is of {epoch} epochs and {step} steps; take another checkpoint")
    return _Checkpoint(encoder, saved, _losses(version))


def _losses(version: Version) -> array[float]:
    try:
        column = pq.read_table(io.BytesIO(version.read(_LOSSES)))["loss"].cast(pa.float64())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CheckpointError(f"{_LOSSES} holds no losses ({error}); take another checkpoint") from error
    return array("d", column.to_numpy())


def _check_taken_up(checkpoint: _Checkpoint, plan: TrainPlan, state: State, objective: Objective, tiles: int) -> None:
    if checkpoint.encoder.spec != plan.spec:
        raise CheckpointError("its model.json describes another encoder than this run's; take another checkpoint")
    moments = MOMENTS[plan.experiment.train.optimizer.kind]
    check_fits(checkpoint.saved, _saved(state, objective), state.optimizer, moments, tiles=tiles)


def _take_up(state: State, objective: Objective, checkpoint: _Checkpoint) -> None:
    saved = checkpoint.saved
    if state.average is None:
        state.module.load_state_dict(checkpoint.encoder.module.state_dict())
    else:
        state.module.load_state_dict(saved["module"])
        state.average.load_state_dict(saved["average"])
    objective.load_state_dict(saved["objective"])
    take_up(state.optimizer, saved["optimizer"])
    state.epoch, state.step, state.failed_uploads = saved["epoch"], saved["step"], saved["failed_uploads"]
    state.least, state.stalled = saved["least"], saved["stalled"]
    state.batches = _rebuilt(EpochPlan, saved["batches"] if state.step else None)
    state.clusters = _rebuilt(Clusters, saved["clusters"])
    state.losses = checkpoint.losses


def _flat(value: Any) -> dict[str, Any] | None:
    """Return a dataclass of arrays and numbers as `weights_only` reads it back."""
    if value is None:
        return None
    parts = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for name, part in parts.items()}


def _rebuilt(kind: type[T], parts: Mapping[str, Any] | None) -> T | None:
    if parts is None:
        return None
    return kind(**{name: part.numpy() if isinstance(part, torch.Tensor) else part for name, part in parts.items()})


def save(plan: TrainPlan, state: State, objective: Objective, *, last: bool = False) -> bool:
    """Publish a checkpoint from rank 0; the others wait, so that no rank runs ahead of what is safe.

    Returns:
        whether it was published. Where storage fails, this is said and counted, and training may go on to the next checkpoint.

    Raises:
        TrainingError: on all ranks, if weights are not finite on any, or if another command has taken the run over.
        StorageError: on all ranks, if the last checkpoint of the run could not be published.
    """
    device = next(state.module.parameters()).device
    require_finite(state, objective)
    fault = _upload(plan, state, objective, _LAST_WAITS_S if last else ()) if rank() == 0 else None
    if not agreed(not isinstance(fault, TrainingError), device):
        run = plan.experiment.open_workspace().run
        raise TrainingError(f"run {run} was taken over by another command, which goes on with it; this one ends")
    if agreed(fault is None, device):
        return True
    state.failed_uploads += 1
    if last:
        raise StorageError("the last checkpoint could not be published, though it was tried for minutes; see what the storage said")
    return False


def require_finite(state: State, objective: Objective) -> None:
    """Check all that was learned. Raises `TrainingError`, on all ranks, if weights are not finite on any."""
    device = next(state.module.parameters()).device
    if not agreed(all(map(all_finite, _learned(state, objective))), device):
        raise TrainingError(f"weights are not finite after {state.epoch} epochs and {state.step} steps; lower train.learning_rate")


def _learned(state: State, objective: Objective) -> list[dict[str, torch.Tensor]]:
    """Return all that a step changes for good: the loss looks at it before the step, not after."""
    average = {} if state.average is None else state.average.state_dict()
    return [state.module.state_dict(), objective.learned.state_dict(), average]


def _upload(plan: TrainPlan, state: State, objective: Objective, waits: Sequence[float]) -> StorageError | TrainingError | None:
    """Publish the checkpoint, and the mining table that it names; return what prevented it."""
    workspace = plan.experiment.open_workspace()
    for wait in (*waits, None):
        try:
            if not Lease.held(workspace.store, workspace.lease, plan.lease):
                return TrainingError("the lease is another's")
            if state.unpublished is not None:
                _publish_pending(plan, state, state.unpublished)
            _publish(plan, state, objective)
        except PublishConflictError:
            raise
        except StorageError as error:
            plan.tell("upload_failed", what=f"checkpoint {_name(state)}", reason=str(error), wait=wait)
            if wait is None:
                return error
            time.sleep(wait)
        else:
            break
    _sweep(plan)
    return None


def _publish_pending(plan: TrainPlan, state: State, table: MinedTable) -> None:
    if not publish_table(plan, table):
        raise PublishConflictError(f"{generation_name(table.generation)} exists already with other pairs; training starts again from it")
    state.unpublished = None


def _name(state: State) -> str:
    return _name_at(state.epoch, state.step)


def _name_at(epoch: int, step: int) -> str:
    """Return a checkpoint's name; names sort as the states do."""
    return f"epoch-{epoch:04d}" + (f"-step-{step:08d}" if step else "")


def _publish(plan: TrainPlan, state: State, objective: Objective) -> None:
    draft = plan.experiment.open_workspace().checkpoints.draft(_name(state))
    for name, data in to_files(state.learned, plan.spec).items():
        draft.write(name, data)
    draft.write("state.pt", training_state_bytes(_saved(state, objective)))
    draft.write(_LOSSES, _losses_bytes(state.losses))
    mining = None if state.generation is None else generation_name(state.generation)
    ours = fingerprint(plan.spec, state.learned.state_dict())
    parents = {"set": plan.source.version, "mining": mining}
    over = not state.step and state.is_over(plan.experiment.train)
    done = {"epoch": state.epoch, "step": state.step, "over": over, "validation": {} if state.step else state.validated}
    version = draft.publish({"parents": parents, "encoder_fingerprint": ours, **done, "counts": {}})
    if version.manifest["encoder_fingerprint"] != ours:  # one that a killed command had all but published: a restart goes on from it
        raise PublishConflictError(f"checkpoint {version.version} exists already with other weights; training starts again from it")


def _saved(state: State, objective: Objective) -> dict[str, Any]:
    saved = {
        "format": FORMAT,
        "optimizer": state.optimizer.state_dict(),
        "objective": objective.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "batches": _flat(state.batches) if state.step else None,
        "clusters": _flat(state.clusters),
        "generation": state.generation,
        "failed_uploads": state.failed_uploads,
        "least": state.least,
        "stalled": state.stalled,
    }
    if state.average is not None:
        saved |= {"module": state.module.state_dict(), "average": state.average.state_dict()}
    return saved


def _losses_bytes(losses: array[float]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"step": pa.array(range(len(losses)), pa.int64()), "loss": pa.array(losses, pa.float64())}), buffer)
    return buffer.getvalue()


def _sweep(plan: TrainPlan) -> None:
    """Remove checkpoints beyond those that are kept, and what killed commands left unfinished before the newest."""
    artefact = plan.experiment.open_workspace().checkpoints
    try:
        finished = artefact.finished()
        kept = finished[-plan.experiment.train.keep_checkpoints :]
        keys = [(key.removeprefix(artefact.prefix).partition("/")[0], key) for key in artefact.store.list(f"{artefact.prefix}epoch-")]
        old = [key for version, key in keys if version not in kept and version < finished[-1]]
        for key in sorted(old, key=lambda key: not key.endswith("/manifest.json")):  # without its manifest it is no version
            artefact.store.delete(key)
    except StorageError as error:
        plan.tell("upload_failed", what="the removal of old checkpoints", reason=str(error), wait=None)


def generation_name(generation: int) -> str:
    """Return the name of a mining generation: the epoch before which it was mined."""
    return f"{_GENERATION}{generation:04d}"


def _number(version: Version) -> int:
    """Return the generation that a version of the mining table is. Raises `CheckpointError` where its name is none."""
    digits = version.version.removeprefix(_GENERATION)
    if not digits.isdecimal() or generation_name(int(digits)) != version.version:
        raise CheckpointError(f"{version.version!r} is no name of a generation")
    return int(digits)


def publish_mined(plan: TrainPlan, state: State, mined: Mined, tile_ids: Sequence[str]) -> None:
    """Publish the mining table of the generation in use, from rank 0, and have every rank use what then stands there.

    Where storage fails, this is said and counted, the ranks use what they have found, and it is tried again with the next checkpoint.
    """
    device = next(state.module.parameters()).device
    state.mined, state.generation = mined.hard_tiles, state.epoch
    fault: StorageError | None = None
    ours = True
    if rank() == 0:
        ours_now = fingerprint(plan.spec, state.module.state_dict())
        state.unpublished = mined_table(plan, mined, tile_ids, generation=state.epoch, encoder_fingerprint=ours_now)
        try:
            make_way(plan, state.epoch, tile_ids)
            ours = publish_table(plan, state.unpublished)
            state.unpublished = None
        except PublishConflictError:
            raise
        except StorageError as error:
            fault = error
            plan.tell("upload_failed", what=generation_name(state.epoch), reason=str(error), wait=None)
    if not agreed(fault is None, device):
        state.failed_uploads += 1
    elif not agreed(ours, device):
        use_mined(plan, state, state.epoch, tile_ids)


def mined_table(plan: TrainPlan, mined: Mined, tile_ids: Sequence[str], *, generation: int, encoder_fingerprint: str) -> MinedTable:
    """Return a generation as it is published."""
    manifest = {
        "parents": {"set": plan.source.version},
        "generation": generation,
        "encoder_fingerprint": encoder_fingerprint,
        "counts": {"anchors": mined.anchors, **mined.counts, "refused": mined.refused},
    }
    return MinedTable(generation, mined.parquet(tile_ids), manifest)


def make_way(plan: TrainPlan, generation: int, tile_ids: Sequence[str]) -> None:
    """Withdraw what stands under the name of a generation and is none of this run, so that the generation can be published."""
    if generation_name(generation) in plan.experiment.open_workspace().mining.finished():
        _newest_generation(plan, generation, tile_ids)


def publish_table(plan: TrainPlan, table: MinedTable) -> bool:
    """Publish a mining table; return whether it is what then stands there."""
    draft = plan.experiment.open_workspace().mining.draft(generation_name(table.generation))
    ours = draft.write("mined.parquet", table.data)
    return draft.publish(table.manifest).entry("mined.parquet").sha256 == ours.sha256


def use_mined(plan: TrainPlan, state: State, generation: int, tile_ids: Sequence[str]) -> None:
    """Have this rank use a published generation."""
    state.mined, state.generation = published_tiles(plan, generation, tile_ids), generation


def published_tiles(plan: TrainPlan, generation: int, tile_ids: Sequence[str]) -> HardTiles:
    """Return what a published generation says of each tile.

    Raises:
        StorageError: it cannot be read.
        CheckpointError: it is none of this run.
    """
    return hard_tiles(plan, plan.experiment.open_workspace().mining.at(generation_name(generation)), tile_ids)


def hard_tiles(plan: TrainPlan, version: Version, tile_ids: Sequence[str]) -> HardTiles:
    """Return what a version of the mining table says of each tile; see `published_tiles`."""
    return from_table(read_mined(version.read("mined.parquet"), tile_ids, plan.experiment.mining), tile_ids)
