"""Which encoders are compared, and their embeddings of the same tiles: random weights, image statistics, frozen weights, the trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayjobs.cluster.session import wants_gpu
from rayjobs.embed.job import Embeddings, embed, read_embeddings
from rayjobs.errors import CheckpointError, ConfigError
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.encoder import bare, build
from rayjobs.models.spec import ModelSpec, standardised, statistics_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.evaluate.section import EvaluateSection
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version

    Embedded = Callable[..., Embeddings]
    Splits = Sequence[str] | None

RANDOM, STATISTICS, FROZEN, FLOAT, TRAINED = "random-init", "image-statistics", "frozen-pretrained", "trained-float", "trained"
"""Names of the rows, in the order of the table. `FLOAT`, of an encoder that hashes alone, is what its codes are made from."""

_TRAINING = "train"
_PLAIN = f"{STATISTICS}-plain"
_STAGES = {_PLAIN: "embed/scale-of-statistics"}
"""What progress is called, where the name of the table would say little."""


def measured_splits(settings: EvaluateSection) -> Splits:
    """Return the splits whose tiles are embedded: that of the queries, or, where other dates are asked, all (None)."""
    return None if settings.relevance == "place" else (settings.split,)


def expected(experiment: Experiment) -> list[str]:
    """Return the names of the rows, that of frozen weights among them where the experiment names any."""
    hashes = experiment.model.projection == "hash"
    return [RANDOM, STATISTICS, *([FROZEN] if _weights(experiment) else []), *([FLOAT] if hashes else []), TRAINED]


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
        STATISTICS: _statistics(spec, embedded, standardised_on(experiment, source)),
        FROZEN: _frozen(experiment, spec, console),
        FLOAT: _activations(spec, trained),
        TRAINED: trained,
    }
    return {name: Row(encoder=encoder, embedded=embedded(name, encoder)) for name, encoder in encoders.items() if encoder}


def _weights(experiment: Experiment) -> str | None:
    chosen = experiment.evaluate.weights or experiment.model.pretrained
    return None if chosen == "none" else chosen


def _files(spec: ModelSpec, *, seed: int = 0, pretrained: str = "none", rgb: Sequence[str] | None = None) -> dict[str, bytes]:
    files = to_files(build(spec, seed, pretrained=pretrained, rgb=rgb), spec)
    return {"model_json": files["model.json"], "tensors": files["model.safetensors"]}


def _statistics(spec: ModelSpec, embedded: Embedded, split: str) -> dict[str, bytes]:
    """Return the encoder of image statistics that have mean 0 and deviation 1 over a split."""
    plain = statistics_spec(
        bands=spec.bands, mean=spec.mean, std=spec.std, tile_size=spec.tile_size, resolution_m=spec.resolution_m, dtype=spec.dtype
    )
    return _files(standardised(plain, embedded(_PLAIN, _files(plain), (split,)).vectors))


def _activations(spec: ModelSpec, trained: Mapping[str, bytes]) -> dict[str, bytes] | None:
    """Return the trained encoder as it is before its codes are made: what that costs is its distance from the trained row."""
    if spec.projection != "hash":
        return None
    return {**trained, "model_json": dataclasses.replace(spec, projection="activations").to_json()}


def _frozen(experiment: Experiment, spec: ModelSpec, console: Console) -> dict[str, bytes] | None:
    """Return the pretrained backbone as it is, or None where there are no weights, or they cannot be had here."""
    weights = _weights(experiment)
    if weights is None:
        return None
    try:
        return _files(bare(spec), seed=experiment.evaluate.seed, pretrained=weights, rgb=experiment.model.rgb)
    except (CheckpointError, ConfigError) as error:
        console.say(f"evaluate         no frozen-pretrained row: {error}")
        return None
