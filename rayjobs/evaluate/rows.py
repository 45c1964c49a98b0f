"""Which encoders are compared, and their embeddings of the same tiles: random weights, image statistics, frozen weights, the trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from rayjobs.cluster.session import wants_gpu
from rayjobs.embed.job import Embeddings, embed, read_embeddings
from rayjobs.errors import CheckpointError, ConfigError, NotFoundError
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.encoder import bare, build
from rayjobs.models.spec import ModelSpec, standardised, statistics_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from rayjobs.console import Console
    from rayjobs.evaluate.section import EvaluateSection
    from rayjobs.experiment import Experiment
    from rayjobs.models.encoder import Encoder
    from rayjobs.storage import Version

    Embedded = Callable[..., Embeddings]
    Splits = Sequence[str] | None

RANDOM, STATISTICS, FROZEN, FLOAT, TRAINED = "random-init", "image-statistics", "frozen-pretrained", "trained-float", "trained"
"""Names of the rows, in the order of the table. `FLOAT`, of an encoder that hashes alone, is what its codes are made from."""
ALONE: Mapping[str, Literal["imagery", "maps"]] = {"trained-imagery": "maps", "trained-maps": "imagery"}
"""Rows of an encoder that fuses imagery and maps, which come before `TRAINED`: the modality that the trained encoder then lacks."""

_TRAINING = "train"
_PLAIN = f"{STATISTICS}-plain"
_STAGES = {_PLAIN: "embed/scale-of-statistics"}
"""What progress is called, where the name of the table would say little."""


def measured_splits(settings: EvaluateSection) -> Splits:
    """Return the splits whose tiles are embedded: that of the queries, or, where other dates are asked, all (None)."""
    return None if settings.relevance == "place" else (settings.split,)


def expected(experiment: Experiment) -> list[str]:
    """Return the names of the rows, that of frozen weights among them where the experiment names any."""
    model = experiment.model
    last = [*([FLOAT] if model.projection == "hash" else []), *(ALONE if model.fusion else [])]
    return [RANDOM, STATISTICS, *([FROZEN] if _weights(experiment) else []), *last, TRAINED]


def standardised_on(experiment: Experiment, source: Version) -> str:
    """Return the split whose tiles set the scale of the image statistics: that of training, or, of a set without one, the measured one."""
    return _TRAINING if source.manifest["counts"]["by_split"].get(_TRAINING) else experiment.evaluate.split


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One encoder, and what it makes of the measured split."""

    encoder: Mapping[str, bytes]
    """`model_json` and `tensors`."""
    embedded: Embeddings


def embed_rows(experiment: Experiment, source: Version, trained: Mapping[str, bytes], console: Console) -> dict[str, Row]:
    """Return every row's encoder and its embeddings of the measured split, by name, the trained one last.

    Args:
        experiment: names split, seed and weights.
        source: the set.
        trained: `model_json` and `tensors` of the trained encoder.
        console: shows progress.
    """
    workspace, gpu, measured = experiment.open_workspace(), wants_gpu(experiment.ray), measured_splits(experiment.evaluate)

    def embedded(name: str, encoder: Mapping[str, bytes], splits: Splits = measured) -> Embeddings:
        target = workspace.embeddings(name)
        return read_embeddings(embed(source, encoder, target, console, gpu=gpu, splits=splits, stage=_STAGES.get(name, f"embed/{name}")))

    spec = from_files(**trained).spec
    encoders = {
        RANDOM: _files(spec, seed=experiment.evaluate.seed),
        STATISTICS: _statistics(spec, source.manifest["bands"], embedded, standardised_on(experiment, source)),
        FROZEN: _frozen(experiment, spec, console),
        FLOAT: _activations(spec, trained),
        **(_alone(trained) if tuple(source.manifest["bands"]) == spec.bands else {}),
        TRAINED: trained,
    }
    return {name: Row(encoder=encoder, embedded=embedded(name, encoder)) for name, encoder in encoders.items() if encoder}


def _weights(experiment: Experiment) -> str | None:
    chosen = experiment.evaluate.weights or experiment.model.pretrained
    return None if chosen == "none" else chosen


def _files(spec: ModelSpec, *, seed: int = 0) -> dict[str, bytes]:
    return _published(build(spec, seed), spec)


def _published(module: nn.Module, spec: ModelSpec) -> dict[str, bytes]:
    files = to_files(module, spec)
    return {"model_json": files["model.json"], "tensors": files["model.safetensors"]}


def _statistics(spec: ModelSpec, bands: Sequence[str], embedded: Embedded, split: str) -> dict[str, bytes]:
    """Return the encoder of image statistics, of the bands that the set has, that have mean 0 and deviation 1 over a split."""
    mean, std = ([values[spec.bands.index(band)] for band in bands] for values in (spec.mean, spec.std))
    plain = statistics_spec(bands=bands, mean=mean, std=std, tile_size=spec.tile_size, resolution_m=spec.resolution_m, dtype=spec.dtype)
    return _files(standardised(plain, embedded(_PLAIN, _files(plain), (split,)).vectors))


def _activations(spec: ModelSpec, trained: Mapping[str, bytes]) -> dict[str, bytes] | None:
    """Return the trained encoder as it is before its codes are made: what that costs is its distance from the trained row."""
    if spec.projection != "hash":
        return None
    return {**trained, "model_json": dataclasses.replace(spec, projection="activations").to_json()}


def _alone(trained: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Return the trained encoder without either modality, by the name of its row; nothing of one that fuses none."""
    found = {}
    for name, lacking in ALONE.items():
        checkpointed = from_files(**trained)
        if checkpointed.spec.maps:
            cast("Encoder", checkpointed.module).fusion.look_past(lacking)  # type: ignore[union-attr]  # maps are fused
            found[name] = _published(checkpointed.module, checkpointed.spec)
    return found


def _frozen(experiment: Experiment, spec: ModelSpec, console: Console) -> dict[str, bytes] | None:
    """Return the pretrained backbone as it is, which sees no maps, or None where there are no weights, or they cannot be had here."""
    weights = _weights(experiment)
    if weights is None:
        return None
    try:
        found = experiment.open_workspace().weights(weights)
        module = cast("Encoder", build(bare(spec), experiment.evaluate.seed, pretrained=found, rgb=experiment.model.rgb))
        if module.fusion is not None:
            module.fusion.leave_imagery()
        return _published(module, module.spec)
    except (CheckpointError, ConfigError, NotFoundError) as error:
        console.say(f"evaluate         no frozen-pretrained row: {error}")
        return None
