"""Which encoder the verbs take: the newest checkpoint of the run, or a registered model of MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from rayjobs.config import changed_keys, to_dict
from rayjobs.errors import ConfigError, FingerprintError
from rayjobs.models.checkpoint import from_files
from rayjobs.models.pyfunc import FILES, FOLDER
from rayjobs.tracking import registered

if TYPE_CHECKING:
    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.models.spec import ModelSpec
    from rayjobs.storage import Version
    from rayjobs.tracking import Registered


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEncoder:
    """The encoder of an experiment."""

    fingerprint: str
    words: str
    """Which it is, for people."""
    cautions: tuple[str, ...]
    """What about the experiment has no say in it."""
    read: Callable[[], Mapping[str, bytes]]
    """Returns `model_json` and `tensors`, compared with their digests."""


def chosen_encoder(experiment: Experiment) -> ChosenEncoder:
    """Return the encoder that `embed` and `index` take.

    Raises:
        NotFoundError: the run has no checkpoint; MLflow does not know the registered model.
    """
    name = experiment.workspace.encoder
    if name is None:
        return of_checkpoint(experiment, newest_checkpoint(experiment))
    found = registered(experiment.tracking, workspace=experiment.open_workspace().store.uri, model=name)
    return ChosenEncoder(
        fingerprint=found.fingerprint,
        words=f"{name}, version {found.version}, encoder {found.fingerprint[:12]}",
        cautions=(),
        read=lambda: _files_of(found),
    )


def _files_of(model: Registered) -> dict[str, bytes]:
    """Read a registered model. Raises `FingerprintError` where it is not what was registered."""
    found = model.read([f"{FOLDER}/{name}" for name in FILES])
    files = dict(zip(("model_json", "tensors"), found.values(), strict=True))
    fingerprint = from_files(**files).fingerprint
    if fingerprint != model.fingerprint:
        raise FingerprintError(
            f"version {model.version} of model {model.name} was registered as encoder {model.fingerprint[:12]}, and its files are of "
            f"{fingerprint[:12]}: they were altered; register the model anew"
        )
    return files


def newest_checkpoint(experiment: Experiment) -> Version:
    """Return the newest checkpoint of the experiment's run. Raises `NotFoundError` where there is none."""
    return experiment.open_workspace().checkpoints.require("run `rayjobs train` first")


def of_checkpoint(experiment: Experiment, checkpoint: Version) -> ChosenEncoder:
    """Return the encoder of a checkpoint of the experiment's run."""
    fingerprint = str(checkpoint.manifest["encoder_fingerprint"])
    run = experiment.open_workspace().run
    return ChosenEncoder(
        fingerprint=fingerprint,
        words=f"checkpoint {checkpoint.version} of run {run}, encoder {fingerprint[:12]}",
        cautions=_idle_keys(experiment),
        read=lambda: {"model_json": checkpoint.read("model.json"), "tensors": checkpoint.read("model.safetensors")},
    )


def check_fits(spec: ModelSpec, source: Version) -> None:
    """Refuse to embed a set with an encoder of other pixels: what comes out would be numbers, and mean nothing.

    Raises:
        ConfigError: other bands, or another type.
    """
    bands, dtype = tuple(source.manifest["bands"]), str(source.manifest["dtype"])
    if bands not in spec.modalities or dtype != spec.dtype:
        taken = " or of ".join(", ".join(names) for names in spec.modalities)
        raise ConfigError(
            f"set {source.manifest['name']} has {dtype} pixels of the bands {', '.join(bands)}, and the encoder takes {spec.dtype} of "
            f"{taken}; name another with workspace.encoder or workspace.run, or sample with rasters.bands of the encoder"
        )


def tell_encoder(encoder: ChosenEncoder, console: Console, verb: str) -> None:
    """Say which encoder is used, and which keys of the experiment have no say in that."""
    console.say(f"{verb:<16} {encoder.words}")
    for caution in encoder.cautions:
        console.say(f"{verb:<16} caution: {caution}")


def _idle_keys(experiment: Experiment) -> tuple[str, ...]:
    """Return a caution where the `model` section is not that of the run, whose checkpoint alone says what the encoder is."""
    workspace = experiment.open_workspace()
    pinned = workspace.store.read_tagged(workspace.pinned)
    if pinned is None:
        return ()
    changed = changed_keys({"model": yaml.safe_load(pinned.data)["decided"]["model"]}, {"model": to_dict(experiment.model)})
    told = (
        f"run {workspace.run} was trained with other keys ({'; '.join(changed)}), and its checkpoint decides: the `model` section does "
        "not change the encoder; train another run (--workspace.run NAME) for the new ones"
    )
    return (told,) if changed else ()
