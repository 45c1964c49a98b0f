"""The driver's side of `rayjobs train`: pin the run to its experiment, start Ray Train, show and log what the workers tell."""

from __future__ import annotations

import os
import threading
import urllib.parse
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.fs
import ray
import ray.train
import ray.train.torch

from rayjobs.cluster.failures import own_error
from rayjobs.cluster.mailbox import listening
from rayjobs.cluster.session import cpus_here, even_cpus, is_joined, joined, require_cpus, wants_gpu
from rayjobs.errors import ConfigError, RayjobsError, TrainingError
from rayjobs.models import backbones
from rayjobs.models.encoder import parameter_count
from rayjobs.models.pretrained import require_weights
from rayjobs.models.section import spec_of
from rayjobs.models.spec import ModelSpec, check_bands
from rayjobs.storage import Lease
from rayjobs.tracking import Dataset, Model, Tracker, is_open, register, tracked
from rayjobs.train import cache
from rayjobs.train.features import check_frozen, feature_bytes
from rayjobs.train.given_labels import keep_labels
from rayjobs.train.ground import ground_of, supervise, target_tiles, training_tiles
from rayjobs.train.logged import mlflow_model
from rayjobs.train.loop import loop, steps_per_epoch
from rayjobs.train.mine import host_bytes
from rayjobs.train.objective import check_objective
from rayjobs.train.patience import check_patience, held_out_tiles
from rayjobs.train.pinned import Pinned, decided
from rayjobs.train.section import AugmentSection
from rayjobs.train.state import TrainPlan, unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa

    from rayjobs.console import Console, Stage
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version
    from rayjobs.train.batches import Supervision
    from rayjobs.train.ground import Ground
    from rayjobs.train.validation import Watch
    from rayjobs.workspace import Workspace

_DECIDE = (
    "rasters",
    "tiles",
    "model",
    "loss",
    "hashing",
    "interclass",
    "projector",
    "miner",
    "memory",
    "clustering",
    "mining",
    "train",
    "adaptation",
)
"""Sections that decide what a run learns."""
_MAY_CHANGE = {
    "rasters": ("sources",),  # addresses may differ from one machine to another; `set_version` stands for what they hold
    "mining": ("num_cpus", "num_gpus"),
    "train": (
        "num_workers",
        "cpus_per_worker",
        "max_failures",
        "keep_checkpoints",
        "checkpoint_every",
        "checkpoint_steps",
        "ask_every",
        "loss_memory_mib",
    ),
}
"""Keys of these sections that may differ when a run is taken up again: none decides what is learned."""

_START_TIMEOUT_S = 7
"""How long Ray Train waits for nodes that it believes to have, before it looks again which it has. It hears of a dead node within 20 s,
so that its default of 60 s would be lost whenever a node dies, and now 21 s at most are; a start waits for nothing else in this time."""
_GRACE_S = 2.5
"""How long a command that is told to end waits for a last checkpoint: `ray job stop` kills it after 3 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs train` tells at its end."""

    run: str
    checkpoint: str
    """Name of the newest checkpoint's version."""
    encoder_fingerprint: str
    epochs: int
    resumed_from: int
    """Epochs that were done when this command began."""
    mlflow_run: str | None


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what training will take and how much of it is done, without starting Ray; refuse what `run` would refuse."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    backbones.require(experiment.model.backbone)
    source = workspace.set.require("run `rayjobs sample` first")
    _pinned(experiment, workspace, source).begun()
    newest = workspace.checkpoints.current()
    tiles = training_tiles(source, experiment)
    ground = ground_of(tiles, experiment)
    check(experiment, source, ground, begins=newest is None)
    check_patience(experiment, source, ground, watched=False)
    supervision = supervise(experiment, ground)
    settings = experiment.train
    steps = steps_per_epoch(experiment, supervision)
    spec = encoder_spec(experiment, source)
    every, target = experiment.mining.every, target_of(experiment)
    chips = tiles.num_rows + (target_tiles(target).num_rows if target else 0)
    return {
        "training_tiles": tiles.num_rows,
        "anchors": len(supervision.anchors),
        "steps_per_epoch": steps,
        "steps": steps * settings.epochs,
        "epochs_done": int(newest.manifest["epoch"]) if newest else 0,
        "done_already": newest is not None and _is_over(newest, experiment),
        "mining_refreshes": len(range(experiment.mining.first, settings.epochs, every)) if every else 0,
        "parameters": parameter_count(spec),
        "chip_cache_bytes": chips * spec.tile_size**2 * (len(spec.bands) * np.dtype(spec.dtype).itemsize + 1),
        "feature_bytes": feature_bytes(settings, spec, tiles.num_rows),
        "mining_bytes_per_worker": host_bytes(
            experiment.mining,
            tiles=tiles.num_rows,
            anchors=len(supervision.anchors),
            dim=spec.dim,
            threads=int(settings.cpus_per_worker or 1),
        ),
        "cautions": _cautions(experiment, supervision),
    }


def check(experiment: Experiment, source: Version, ground: Ground, *, begins: bool = True) -> None:
    """Refuse an experiment that cannot be trained on a set, as far as that is known beforehand.

    Args:
        experiment: to be trained.
        source: the set.
        ground: what is known of the training tiles.
        begins: whether training starts from pretrained weights, not from a checkpoint, which holds all weights itself.

    Raises:
        ConfigError: no such backbone, an encoder that does not fit the set, features kept of a backbone that learns, or a loss or miner
            that asks for what the tiles do not tell.
        TrainingError: likewise.
        CheckpointError: the pretrained weights cannot be had.
        NotFoundError: they are of a run that has learned nothing yet.
    """
    backbones.require(experiment.model.backbone)
    spec = encoder_spec(experiment, source)
    if begins:
        require_weights(experiment.with_weights().model.pretrained, experiment.model.backbone)
    check_frozen(experiment)
    experiment.train.augment.colour_bands(spec.imagery)
    check_objective(experiment, ground)
    target = target_of(experiment)
    if target:
        check_bands(spec, tuple(target.manifest["bands"]))
        target_tiles(target)


def _cautions(experiment: Experiment, supervision: Supervision) -> list[str]:
    """Return what is allowed and hardly meant."""
    settings, found = experiment.train, []
    drawn = len(supervision.anchors)
    if settings.batch_size > drawn:
        found.append(f"train.batch_size {settings.batch_size} is more than the {drawn} tiles that have one alike: batches repeat tiles")
    cpus = settings.workers[0] * (settings.cpus_per_worker or 1)
    if not is_joined(experiment.ray) and cpus > cpus_here(experiment.ray):
        found.append(f"train.num_workers want {cpus} CPUs, and this machine has {cpus_here(experiment.ray)}: training will not start")
    if settings.frozen_features > 1 and settings.augment == AugmentSection(symmetries=False):
        kept = f"train.frozen_features {settings.frozen_features}"
        found.append(f"{kept} computes the same several times, since train.augment changes nothing; set it to 1")
    if settings.sync_batch_norm and experiment.ray.gpu == "no":
        found.append("train.sync_batch_norm works on GPUs alone, and ray.gpu is no: training will not start")
    whitening, together = experiment.model.domain_whitening, settings.batch_size // settings.workers[1]
    together = min(together, settings.micro_batch or together)
    if whitening and together <= whitening.group_size:
        found.append(
            f"model.domain_whitening takes the covariance of {whitening.group_size} features from {together} tiles at a time (the batch "
            "over the workers, or train.micro_batch), which do not tell it; lower group_size, or raise the batch"
        )
    return found


def run(experiment: Experiment, console: Console, watch: Watch | None = None, tags: Mapping[str, str] = MappingProxyType({})) -> Result:
    """Train the run to its last epoch, from its newest checkpoint if it has one; `watch` sees it learn, and MLflow's run has `tags`."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    with Lease(workspace.store, workspace.lease) as lease:
        pinned = _pinned(experiment, workspace, source)
        pinned.begun()
        newest = workspace.checkpoints.newest_sound(lambda text: console.say(f"train            {text}"), unfit=unfit)
        ground = ground_of(training_tiles(source, experiment), experiment)
        check(experiment, source, ground, begins=newest is None)  # first: what is refused takes no name
        check_patience(experiment, source, ground, watched=watch is not None)
        pinned.begin()
        keep_labels(experiment)
        done = int(newest.manifest["epoch"]) if newest else 0
        if newest and _is_over(newest, experiment):
            console.say(f"train            run {workspace.run} has all its {done} epochs already")
            _end_tracking(experiment, workspace, source, console)
            return _result(workspace, done, None)
        begun = experiment if newest else experiment.with_weights()
        parameters = {**begun.to_dict(), "set_version": source.version}
        resume = workspace.mlflow_run()
        with (
            joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say),
            tracked(
                experiment.tracking,
                workspace=workspace.store.uri,
                verb="train",
                run=workspace.run,
                parameters=parameters,
                say=console.say,
                resume=resume,
                tags=tags,
                dataset=Dataset.of(source),
                opened=workspace.remember_mlflow_run,
            ) as tracker,
        ):
            _fit(begun, source, lease.token, tracker, console, watch)
            lease.check()
            _check_reached_end(experiment)
            _track_model(experiment, workspace, source, tracker)
    return _result(workspace, done, tracker.run_id)


def _track_model(experiment: Experiment, workspace: Workspace, source: Version, tracker: Tracker) -> None:
    """Log what was learned."""
    newest = workspace.checkpoints.require("")
    fingerprint = newest.manifest["encoder_fingerprint"]
    tracker.tags({"encoder_fingerprint": fingerprint, "set_version": source.version})
    tracker.files({"experiment.yaml": experiment.to_yaml().encode()})
    name = experiment.tracking.model
    tracker.model(lambda: _mlflow_model(newest), Model(name=name, fingerprint=fingerprint) if name else None)


def _mlflow_model(checkpoint: Version) -> dict[str, bytes]:
    return mlflow_model({name: checkpoint.read(name) for name in ("model.json", "model.safetensors")})


def _end_tracking(experiment: Experiment, workspace: Workspace, source: Version, console: Console) -> None:
    """Log what a command that was killed after the last checkpoint had not logged yet, and close its run in MLflow."""
    run_id, uri = workspace.mlflow_run(), workspace.store.uri
    if run_id and is_open(experiment.tracking, workspace=uri, run_id=run_id):
        with tracked(
            experiment.tracking, workspace=uri, verb="train", run=workspace.run, parameters={}, say=console.say, resume=run_id
        ) as tracker:
            _track_model(experiment, workspace, source, tracker)
    if experiment.tracking.model:
        register_model(experiment, experiment.tracking.model, console)


def register_model(experiment: Experiment, name: str, console: Console, alias: str | None = None) -> None:
    """Make what a finished run has learned a version of a registered model, unless it is one; give that version an alias."""
    workspace = experiment.open_workspace()
    newest = workspace.checkpoints.require("run `rayjobs train` first")
    register(
        experiment.tracking,
        workspace=workspace.store.uri,
        run=workspace.run,
        run_id=workspace.mlflow_run(),
        files=lambda: _mlflow_model(newest),
        model=Model(name=name, fingerprint=str(newest.manifest["encoder_fingerprint"]), alias=alias),
        say=console.say,
    )


def _is_over(newest: Version, experiment: Experiment) -> bool:
    """Whether a checkpoint is of the last epoch, or of the one in which patience came to its end."""
    return int(newest.manifest["epoch"]) >= experiment.train.epochs or newest.manifest.get("over") is True


def _check_reached_end(experiment: Experiment) -> None:
    """Compare the newest checkpoint with what was asked for, whatever the workers said or could not say. Raises `TrainingError`."""
    newest = experiment.open_workspace().checkpoints.current()
    if newest is None or not _is_over(newest, experiment):
        done = int(newest.manifest["epoch"]) if newest else 0
        raise TrainingError(
            f"training ended after {done} of {experiment.train.epochs} epochs, and no worker said why; see the log file, and run the "
            "command again to go on"
        )


def _pinned(experiment: Experiment, workspace: Workspace, source: Version) -> Pinned:
    target = target_of(experiment)
    return Pinned(
        store=workspace.store,
        key=workspace.pinned,
        what=f"run {workspace.run!r}",
        option="--workspace.run NAME",
        decided={**decided(experiment, source, _DECIDE, _MAY_CHANGE), **({"target_version": target.version} if target else {})},
        resolved=experiment.to_dict(),
    )


def encoder_spec(experiment: Experiment, source: Version) -> ModelSpec:
    """Return what the experiment's encoder is for a set."""
    manifest = source.manifest
    return spec_of(
        experiment.model,
        bands=tuple(manifest["bands"]),
        mean=tuple(manifest["band_mean"]),
        std=tuple(manifest["band_std"]),
        tile_size=tile_size(source, experiment),
        resolution_m=manifest["resolution_m"],
        dtype=manifest["dtype"],
    )


def target_of(experiment: Experiment) -> Version | None:
    """Return the set that the encoder is adapted to, if there is one."""
    name = experiment.adaptation.target
    if name is None:
        return None
    return experiment.open_workspace().named_set(name).require(f"sample a set named {name}, or correct adaptation.target")


def tile_size(source: Version, experiment: Experiment) -> int:
    """Return the side in pixels to which the set's chips are brought: their own, or, where each is a whole image, the model's input size.

    Raises:
        ConfigError: whole images, and no input size.
    """
    size = source.manifest["tile_size"] or experiment.model.input_size
    if size is None:
        raise ConfigError("tiles.size is null (whole images), so model.input_size must say which size the network sees")
    return int(size)


def _fit(experiment: Experiment, source: Version, lease: str, tracker: Tracker, console: Console, watch: Watch | None) -> None:
    settings = experiment.train
    tiles = training_tiles(source, experiment)
    spec = encoder_spec(experiment, source)
    least, most = settings.workers
    cpus = settings.cpus_per_worker or even_cpus(most)
    require_cpus(experiment.ray, least * cpus, f"train.num_workers {least} of {cpus} CPUs each", console.say)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # else each report of a worker waits up to two seconds
    listener = _Listener(console, tracker, watch.heard if watch else None)
    validation = watch.validation if watch else None
    with console.stage("train", None, "steps") as listener.stage, listening(listener.hear) as mailbox:
        plan = TrainPlan(
            experiment=experiment,
            source=source,
            spec=spec,
            mailbox=mailbox,
            lease=lease,
            validation=validation,
            target=target_of(experiment),
        )
        trainer = _trainer(plan, tiles, cpus, gpu=wants_gpu(experiment.ray))
        try:
            trainer.fit()
        except KeyboardInterrupt:
            _leave_a_checkpoint(mailbox, listener)
            raise
        except ray.train.TrainingFailedError as error:
            raise own_error(error) or _last_words(error, settings.max_failures) from error
        except ray.exceptions.RayError as error:
            raise own_error(error) or TrainingError(
                f"Ray Train's controller is lost ({str(error).strip().splitlines()[0]}); the same command goes on from the last checkpoint"
            ) from error
    if listener.failure:
        raise listener.failure


def _trainer(plan: TrainPlan, tiles: pa.Table, cpus: int, *, gpu: bool) -> _Trainer:
    """Return Ray's trainer of a plan, whose workers have so many CPUs each."""
    workspace, settings = plan.experiment.open_workspace(), plan.experiment.train
    size, maps = plan.spec.tile_size, plan.spec.maps_of(len(plan.spec.bands))
    least, most = settings.workers
    filesystem, path = arrow_filesystem(workspace.store.uri)
    datasets: dict[str, Any] = {"chips": cache.chip_dataset(plan.source, tiles, size, maps)}
    if plan.validation:
        datasets["validated"] = cache.chip_dataset(plan.source, plan.validation.tiles, size, maps)
    if settings.patience:
        datasets["held_out"] = cache.chip_dataset(plan.source, held_out_tiles(plan.source, plan.experiment), size, maps)
    if plan.target:
        datasets["target"] = cache.chip_dataset(plan.target, target_tiles(plan.target), size, maps)
    return _Trainer(
        loop,
        train_loop_config={"plan": plan},
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),  # type: ignore[arg-type]  # Ray's hint has no pairs yet
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=f"{path}/runs/{workspace.run}",
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
        ),
    )


class _Trainer(ray.train.torch.TorchTrainer):
    """Ray's trainer, whose `fit` leaves Ctrl-C to us: Ray's own handler aborts the workers, who then make no checkpoint."""

    def _register_sigint_handler(self, controller: object) -> None:
        """Keep the handler that raises `KeyboardInterrupt`, as SIGTERM does."""


def _leave_a_checkpoint(mailbox: Any, listener: _Listener) -> None:
    """Give the workers the time that a stopped job has to make a checkpoint; where they need longer, the one before stands."""
    mailbox.end.remote()
    listener.left.wait(_GRACE_S)


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return what Ray writes its own bookkeeping with, and the path there of a workspace."""
    if not uri.startswith("s3://"):
        return pyarrow.fs.LocalFileSystem(), uri.removeprefix("file:")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urllib.parse.urlsplit(endpoint or "")
    options = {"endpoint_override": parts.netloc, "scheme": parts.scheme} if endpoint else {}
    return pyarrow.fs.S3FileSystem(**options), uri.removeprefix("s3://")


def _last_words(error: BaseException, max_failures: int) -> TrainingError:
    """Sum up a failure that is none of ours."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = [line for line in str(failures[0]).strip().splitlines() if line.strip()]
    return TrainingError(
        f"training failed {max_failures + 1} times, the last time with: {lines[-1] if lines else error!r}; the log file has the whole trace"
    )


class _Listener:
    """Shows and logs what rank 0 tells."""

    stage: Stage

    def __init__(self, console: Console, tracker: Tracker, heard: Callable[[int, Mapping[str, float]], None] | None) -> None:
        self._console, self._tracker, self._heard = console, tracker, heard
        self.failure: RayjobsError | None = None
        self.left = threading.Event()
        """Set when the workers have answered that the driver is about to end."""
        self._hear = {
            "begun": self._begun,
            "resumed": self._resumed,
            "features": self._features,
            "damaged": self._damaged,
            "upload_failed": self._upload_failed,
            "cut_off": self._cut_off,
            "mined": self._mined,
            "took": self._took,
            "mining_failed": self._mining_failed,
            "stalled": self._stalled,
            "step": self._step,
            "epoch": self._epoch,
            "failed": self._failed,
        }

    def hear(self, message: dict[str, Any]) -> None:
        """Take one message."""
        self._hear[message["kind"]](message)

    def _begun(self, message: dict[str, Any]) -> None:
        self.stage.begin(message["steps"], message["done"])
        workers = message["workers"]
        self._console.say(f"train            {workers} worker{'s' if workers > 1 else ''}")

    def _failed(self, message: dict[str, Any]) -> None:
        self.failure = self.failure or message["error"]

    def _resumed(self, message: dict[str, Any]) -> None:
        steps = f" and {message['step']} steps" if message["step"] else ""
        self._console.say(f"train            continues from checkpoint {message['checkpoint']}: {message['epoch']} epochs{steps} are done")

    def _features(self, message: dict[str, Any]) -> None:
        came = f"computed in {message['seconds']:.1f} s" if message["computed"] else "found in the workspace"
        versions = f"{message['versions']} version{'s' if message['versions'] > 1 else ''}"
        self._console.say(f"train/features   {message['tiles']:,} tiles in {versions}: {came}")

    def _damaged(self, message: dict[str, Any]) -> None:
        self._console.say(f"train            {message['text']}")

    def _upload_failed(self, message: dict[str, Any]) -> None:
        again = "with the next checkpoint" if message["wait"] is None else f"in {message['wait']:.0f} s"
        self._console.say(f"train            {message['what']} failed: {message['reason']}; it is tried again {again}")

    def _cut_off(self, message: dict[str, Any]) -> None:
        why = "the command is to end" if message["ending"] else "a node is about to be taken away"
        left = (
            f"a checkpoint is made after {message['epoch']} epochs and {message['step']} steps" if message["published"] else "no checkpoint"
        )
        self._console.say(f"train            {why}: {left}")
        if message["ending"]:
            self.left.set()

    def _mined(self, message: dict[str, Any]) -> None:
        refused = ", ".join(f"{count:,} by {name}" for name, count in message["refused"].items())
        found = ", ".join(f"{count:,} hard {name}" for name, count in message["found"].items() if count or name == "negatives")
        self._console.say(
            f"train/mine       generation {message['epoch']}: {found}; refused {refused or 'none'}; "
            f"embedding {message['mine/embed_s']:.1f} s, {message['search']} {message['mine/search_s']:.1f} s"
        )
        counts = {f"mine/refused/{name}": count for name, count in message["refused"].items()}
        counts |= {f"mine/{name}": count for name, count in message["found"].items()}
        times = {name: message[name] for name in ("mine/embed_s", "mine/search_s")}
        self._tracker.metrics({**counts, **times}, step=message["epoch"])

    def _took(self, message: dict[str, Any]) -> None:
        lag = message["epoch"] - message["generation"]
        self._console.say(f"train/mine       generation {message['generation']} is used from now on, {lag} epochs behind")

    def _mining_failed(self, message: dict[str, Any]) -> None:
        self._console.say(f"train/mine       caution: mining beside training failed ({message['reason']}); training goes on without it")

    def _stalled(self, message: dict[str, Any]) -> None:
        self._console.say(
            f"train            ends after {message['epoch']} epochs: the loss on the val split has not fallen below {message['least']:.4f} "
            f"for {message['stalled']} checkpoints"
        )

    def _step(self, message: dict[str, Any]) -> None:
        self.stage.reach(message["done"], epoch=message["epoch"], loss=message["loss"])

    def _epoch(self, message: dict[str, Any]) -> None:
        metrics = message["metrics"]
        self.stage.done = message["done"]
        self._console.say(
            f"train            epoch {message['epoch']}: loss {metrics['train/loss']:.4f}"
            + (f", on the val split {metrics['val/loss']:.4f}" if "val/loss" in metrics else "")
            + (f", {metrics['train/tiles_per_s']:.0f} tiles/s" if "train/tiles_per_s" in metrics else "")
        )
        self._tracker.metrics(metrics, step=message["epoch"])
        if self._heard:
            self._heard(message["epoch"], metrics)


def _result(workspace: Workspace, resumed_from: int, mlflow_run: str | None) -> Result:
    newest = workspace.checkpoints.require("run `rayjobs train` first")
    return Result(
        run=workspace.run,
        checkpoint=newest.version,
        encoder_fingerprint=newest.manifest["encoder_fingerprint"],
        epochs=int(newest.manifest["epoch"]),
        resumed_from=resumed_from,
        mlflow_run=mlflow_run or workspace.mlflow_run(),
    )
