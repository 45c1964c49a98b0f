"""The driver's side of `rayjobs evaluate`: embed held-out ground by every row's encoder, rank, and publish one table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.cluster.session import joined, wants_gpu
from rayjobs.embed.job import Embeddings, embed, encoder_files, read_embeddings
from rayjobs.errors import CheckpointError, ConfigError, TrainingError
from rayjobs.evaluate.relevance import Question, ask
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.encoder import build
from rayjobs.models.spec import ModelSpec, standardised, statistics_spec
from rayjobs.retrieval.intervals import Interval, bootstrap_interval, paired_difference
from rayjobs.retrieval.metrics import Scores, metric_names, score
from rayjobs.tracking import tracked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version

_TRAINED = "trained"
_FEW_UNITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs evaluate` tells at its end."""

    rows: list[dict[str, Any]]
    """One per encoder: `name`, `metrics` ({metric: {value, low, high}})."""
    objective: str
    """The metric that counts."""
    differences: dict[str, dict[str, float]]
    """Trained minus each other row in the objective, paired by query: value, low, high."""
    protocol: dict[str, Any]
    """Queries, gallery, relevance, exclusion, resampling unit, seeds."""
    report: str
    """Where the table lies in the workspace."""


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what evaluation will take."""
    source, checkpoint = _parents(experiment)
    _check(experiment, source)
    by_split = source.manifest["counts"]["by_split"]
    tiles, dim = by_split.get(experiment.evaluate.split, 0), from_files(**encoder_files(checkpoint)).spec.dim
    encoders = 4 if _frozen_weights(experiment) else 3
    return {
        "queries": tiles,
        "gallery": tiles,
        "encoders": encoders,
        "tiles_to_embed": tiles * encoders + by_split.get("train", 0),
        "memory_bytes": tiles * encoders * dim * 4,
    }


def run(experiment: Experiment, console: Console) -> Result:
    """Measure every row on the chosen split and publish the table."""
    settings = experiment.evaluate
    workspace = experiment.open_workspace()
    workspace.store.check()
    source, checkpoint = _parents(experiment)
    _check(experiment, source)
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared):
        tables = _embed_all(experiment, source, encoder_files(checkpoint), console)
    question = ask(tables[_TRAINED].table, settings, by_block=experiment.tiles.splits.by == "block")
    scores = {name: _score(found, question, experiment) for name, found in tables.items()}
    units = question.units[scores[_TRAINED].queries]
    rows = [{"name": name, "metrics": _intervals(found, units, experiment)} for name, found in scores.items()]
    differences = _differences(scores, units, experiment)
    protocol = _protocol(experiment, source, question, scores[_TRAINED], len(np.unique(units)))
    table = {"rows": rows, "objective": settings.objective, "differences": differences, "protocol": protocol}
    report = _publish(experiment, source, checkpoint, table)
    _log(experiment, rows, differences, console)
    _show(console, rows, differences, settings.objective)
    for caution in protocol["cautions"]:
        console.say(f"evaluate         caution: {caution}")
    return Result(rows=rows, objective=settings.objective, differences=differences, protocol=protocol, report=report)


def _parents(experiment: Experiment) -> tuple[Version, Version]:
    """Return the set and the checkpoint that are measured, taken once: training may go on meanwhile."""
    workspace = experiment.open_workspace()
    return workspace.set.require("run `rayjobs sample` first"), workspace.checkpoints.require("run `rayjobs train` first")


def _check(experiment: Experiment, source: Version) -> None:
    """Refuse what cannot be answered before anything is embedded."""
    settings = experiment.evaluate
    known = metric_names(settings.ks)
    if settings.objective not in known:
        raise ConfigError(f"evaluate.objective {settings.objective!r} is not measured; choose one of {', '.join(known)}")
    if settings.relevance == "label" and not source.manifest["classes"]:
        raise ConfigError("evaluate.relevance is label, and no tile has one; set rasters.label_map, or relevance: neighbourhood")


def _frozen_weights(experiment: Experiment) -> str | None:
    chosen = experiment.evaluate.weights or experiment.model.pretrained
    return None if chosen == "none" else chosen


def _embed_all(experiment: Experiment, source: Version, trained: Mapping[str, bytes], console: Console) -> dict[str, Embeddings]:
    """Return the embeddings of the split by every row's encoder."""
    workspace, split = experiment.open_workspace(), (experiment.evaluate.split,)
    spec, gpu = from_files(**trained).spec, wants_gpu(experiment.ray)

    def embedded(name: str, encoder: Mapping[str, bytes], splits: tuple[str, ...] = split) -> Embeddings:
        return read_embeddings(embed(source, encoder, workspace.embeddings(name), console, gpu=gpu, splits=splits))

    plain = statistics_spec(
        bands=spec.bands, mean=spec.mean, std=spec.std, tile_size=spec.tile_size, resolution_m=spec.resolution_m, dtype=spec.dtype
    )
    of_training = embedded("image-statistics-plain", _files(plain), ("train",))
    tables = {
        "random-init": embedded("random-init", _files(spec, seed=experiment.evaluate.seed)),
        "image-statistics": embedded("image-statistics", _files(standardised(plain, of_training.vectors))),
    }
    weights = _frozen_weights(experiment)
    if weights:
        frozen = _frozen(experiment, spec, weights, console)
        if frozen:
            tables["frozen-pretrained"] = embedded("frozen-pretrained", frozen)
    tables[_TRAINED] = embedded(_TRAINED, trained)
    return tables


def _files(spec: ModelSpec, *, seed: int = 0, pretrained: str = "none", rgb: Sequence[str] | None = None) -> dict[str, bytes]:
    files = to_files(build(spec, seed, pretrained=pretrained, rgb=rgb), spec)
    return {"model_json": files["model.json"], "tensors": files["model.safetensors"]}


def _frozen(experiment: Experiment, spec: ModelSpec, weights: str, console: Console) -> dict[str, bytes] | None:
    """Return the pretrained backbone as it is, or None where its weights cannot be had here."""
    from rayjobs.models.backbones import feature_count  # noqa: PLC0415  needed in this row alone

    bare = dataclasses.replace(spec, projection="none", dim=feature_count(spec.backbone, len(spec.bands)))
    try:
        return _files(bare, seed=experiment.evaluate.seed, pretrained=weights, rgb=experiment.model.rgb)
    except (CheckpointError, ConfigError) as error:
        console.say(f"evaluate         no frozen-pretrained row: {error}")
        return None


def _score(found: Embeddings, question: Question, experiment: Experiment) -> Scores:
    if found.table["tile_id"].to_pylist() != question.tile_ids:
        raise AssertionError("rows hold different tiles")  # a fault of ours: they could not be compared
    scores = score(
        found.vectors,
        found.vectors,
        relevance=question.relevance,
        excluded=question.excluded,
        ks=experiment.evaluate.ks,
        distance=found.distance,
        seed=experiment.evaluate.seed,
    )
    if not len(scores.queries):
        raise TrainingError(
            f"no tile of the {experiment.evaluate.split} split has another relevant one; widen evaluate.radius or take larger blocks"
        )
    return scores


def _intervals(scores: Scores, units: np.ndarray[Any, Any], experiment: Experiment) -> dict[str, dict[str, float]]:
    settings = experiment.evaluate
    return {
        name: _entry(bootstrap_interval(values, units, resamples=settings.resamples, seed=settings.seed))
        for name, values in scores.values.items()
    }


def _entry(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _differences(scores: Mapping[str, Scores], units: np.ndarray[Any, Any], experiment: Experiment) -> dict[str, dict[str, float]]:
    settings = experiment.evaluate
    ours = scores[_TRAINED].values[settings.objective]
    differences = {}
    for name, other in scores.items():
        if name != _TRAINED:
            theirs = other.values[settings.objective]
            differences[name] = _entry(paired_difference(ours, theirs, units, resamples=settings.resamples, seed=settings.seed))
    return differences


def _protocol(experiment: Experiment, source: Version, question: Question, scores: Scores, units: int) -> dict[str, Any]:
    settings = experiment.evaluate
    return {
        "set_version": source.version,
        "split": settings.split,
        "queries": len(scores.queries),
        "lone_queries": scores.lone,
        "gallery": len(question.tile_ids),
        "relevant": question.relevant_means,
        "excluded": "the query itself, and tiles whose ground overlaps its own",
        "interval": f"95 %, {settings.resamples} bootstrap resamples of {question.unit_means}",
        "units": units,
        "cautions": _cautions(settings.ks, len(question.tile_ids), units),
        "earlier_reports_on_this_split": _earlier_reports(experiment),
        "seeds": {"train": experiment.train.seed, "random-init and bootstrap": settings.seed},
    }


def _cautions(ks: Sequence[int], gallery: int, units: int) -> list[str]:
    """Return what keeps the figures from saying much."""
    deep = [k for k in ks if k >= gallery]
    few = f"only {units} independent units: the intervals are unsure themselves; take more imagery, or smaller tiles.splits.block_m"
    whole = f"the gallery has {gallery} tiles, so what is measured at {deep} finds everything, whatever the encoder; lower evaluate.ks"
    return [*([few] if units < _FEW_UNITS else []), *([whole] if deep else [])]


def _earlier_reports(experiment: Experiment) -> int:
    """Count this run's reports on the split: choices made after the first one on `test` are no longer blind."""
    report = experiment.open_workspace().report
    mark = f"{experiment.evaluate.split}-"
    return len({key.removeprefix(report.prefix).partition("/")[0] for key in report.store.list(report.prefix + mark)})


def _publish(experiment: Experiment, source: Version, checkpoint: Version, table: dict[str, Any]) -> str:
    workspace = experiment.open_workspace()
    data = json.dumps(table, indent=1).encode()
    digest = hashlib.sha256(data + checkpoint.version.encode()).hexdigest()[:16]
    draft = workspace.report.draft(f"{experiment.evaluate.split}-{digest}")
    draft.write("report.json", data)
    draft.write("experiment.yaml", experiment.to_yaml().encode())
    parents = {"set": source.version, "checkpoint": checkpoint.version}
    version = draft.publish({"parents": parents, "encoder_fingerprint": checkpoint.manifest["encoder_fingerprint"], "counts": {}})
    return workspace.store.address(version.prefix + version.entry("report.json").location)


def _log(experiment: Experiment, rows: list[dict[str, Any]], differences: dict[str, dict[str, float]], console: Console) -> None:
    workspace = experiment.open_workspace()
    name = f"{workspace.run}-evaluate-{experiment.evaluate.split}"
    parameters = experiment.to_dict()
    with tracked(experiment.tracking, workspace=workspace.store.uri, run=name, parameters=parameters, say=console.say) as tracker:
        for row in rows:
            values = {f"{row['name']}/{_plain(metric)}": entry["value"] for metric, entry in row["metrics"].items()}
            tracker.metrics(values, step=0)
        tracker.files({"report.json": json.dumps({"rows": rows, "differences": differences}, indent=1).encode()})


def _plain(metric: str) -> str:
    """MLflow takes no @ in the name of a metric."""
    return metric.replace("@", "_at_")


def _show(console: Console, rows: list[dict[str, Any]], differences: dict[str, dict[str, float]], objective: str) -> None:
    console.say(f"evaluate         {objective}, with its 95 % interval, and trained minus each row:")
    for row in rows:
        entry = row["metrics"][objective]
        text = f"  {row['name']:<18}{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
        if row["name"] in differences:
            gap = differences[row["name"]]
            text += f"    {gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        console.say(text)
