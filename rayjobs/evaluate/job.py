"""The driver's side of `rayjobs evaluate`: embed held-out ground by every row's encoder, measure, and publish one report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from rayjobs import __version__
from rayjobs.cluster.session import joined, wants_gpu
from rayjobs.embed.encoder import ChosenEncoder, newest_checkpoint, of_checkpoint, tell_encoder
from rayjobs.embed.job import tiles_of
from rayjobs.errors import ConfigError, TrainingError
from rayjobs.evaluate.answers import results
from rayjobs.evaluate.illustrate import Choice, Illustrated, choose, illustrate
from rayjobs.evaluate.measure import Measured, Plan, fits, measure, metrics_of, nothing_relevant, plan
from rayjobs.evaluate.page import page
from rayjobs.evaluate.relevance import Question, ask, findable
from rayjobs.evaluate.report import cautions, cautions_of_lone, shown, table, values_of
from rayjobs.evaluate.rows import FROZEN, TRAINED, Row, embed_rows, expected, measured_splits, standardised_on
from rayjobs.evaluate.segmentation import segment
from rayjobs.models.checkpoint import from_files
from rayjobs.rasters.label_map import LabelMap
from rayjobs.tiles.render import pictures_of
from rayjobs.tiles.table import read_tiles
from rayjobs.tracking import Dataset, history, tracked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.evaluate.section import EvaluateSection
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs evaluate` tells at its end: the fields of `report.json` (see `rayjobs.evaluate.report`), and where that lies."""

    rows: list[dict[str, Any]]
    """One per encoder: `name`, `metrics` ({metric: {value, low, high}}), `without_interval` ({metric: value})."""
    objective: str
    """The metric that counts."""
    differences: dict[str, dict[str, float | None]]
    """Trained minus each other row in the objective, paired by tile: value, low, high."""
    probes: list[dict[str, Any]]
    """One per row, probe, target and way of splitting."""
    classes: dict[str, list[dict[str, Any]]]
    """By row, one entry per class."""
    confusion: dict[str, Any] | None
    """Of the first probe of classes, by row."""
    segmentation: dict[str, Any] | None
    """The probe of single pixels: `rows`, with mIoU, accuracy and IoU by class, and its own `protocol`."""
    without: dict[str, Any] | None
    """Metrics of retrieval without some classes, by row, where `evaluate.without_classes` names any."""
    distances: dict[str, Any] | None
    """How far from its query what is found lies, by row, where tiles lie anywhere."""
    dates: dict[str, list[dict[str, Any]]]
    """Of each row, retrieval across dates, pair by pair; empty where no other date is asked."""
    ranks: dict[str, list[float]]
    """Of each row, the precision at rank 1, 2, ... up to `evaluate.ranks`; empty where none was asked for."""
    protocol: dict[str, Any]
    """Queries, gallery, relevance, exclusion, resampling unit, seeds."""
    report: str
    """Where `report.json` lies in the workspace."""
    page: str
    """Where `report.html` lies: the same for people, with pictures, in one file."""


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what evaluation will measure, and what it will take."""
    experiment.open_workspace().store.check()
    source, checkpoint = _parents(experiment)
    question = question_of(experiment, source)
    found = plan(question, experiment.evaluate)
    check(experiment, source, question, found)
    encoder = of_checkpoint(experiment, checkpoint)
    tiles, dim = len(question.tile_ids), from_files(**encoder.read()).spec.dim
    rows = expected(experiment)
    return {
        "encoder": encoder.words,
        "rows": rows,
        "queries": len(findable(question)),
        "gallery": tiles,
        "units": f"{len(np.unique(question.units))} {question.unit_means}",
        "metrics": metrics_of(found, experiment.evaluate.ks),
        "probes": [
            f"{kind} of {division.target}, {len(division.splits)} splits, {division.by}"
            for kind, division in fits(found, experiment.evaluate)
        ],
        "segmentation": _segmentation_planned(experiment),
        "cautions": [*_cautions_of_encoder(experiment, encoder), *found.left_out],
        "encoders": len(rows),
        "tiles_to_embed": tiles * len(rows) + tiles_of(source, (standardised_on(experiment, source),)),
        "memory_bytes": tiles * len(rows) * dim * 4,
    }


def _segmentation_planned(experiment: Experiment) -> str | None:
    settings = experiment.evaluate
    if settings.segmentation is None:
        return None
    return f"at most {settings.segmentation.tiles} tiles each of the train and the {settings.split} split"


def run(experiment: Experiment, console: Console, tags: Mapping[str, str] = MappingProxyType({})) -> Result:
    """Measure every row on the chosen split and publish the report; its run in MLflow has `tags`."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    source, checkpoint = _parents(experiment)
    question = question_of(experiment, source)
    found = plan(question, experiment.evaluate)
    check(experiment, source, question, found)
    encoder = of_checkpoint(experiment, checkpoint)
    tell_encoder(encoder, console, "evaluate")
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
        rows = embed_rows(experiment, source, encoder.read(), console)
        segmentation = _segmented(experiment, source, rows, console)
    measured = _measure(experiment, rows, question, found, console)
    protocol = _protocol(experiment, source, question, found, measured, _cautions_of_encoder(experiment, encoder))
    report = {**table(measured, experiment.evaluate, ours=TRAINED, segmentation=segmentation), "protocol": protocol}
    files = _files(experiment, source, checkpoint, report, measured)
    addresses = _publish(experiment, source, checkpoint, files)
    _log(experiment, source, report, files, tags, console)
    _show(console, report)
    console.say(f"evaluate         report: {addresses['report.html']}")
    return Result(**report, report=addresses["report.json"], page=addresses["report.html"])


def _cautions_of_encoder(experiment: Experiment, encoder: ChosenEncoder) -> list[str]:
    """Return what of the experiment has no say in which encoder is measured."""
    named = experiment.workspace.encoder
    told = f"what is measured is {encoder.words}, not workspace.encoder {named}; name the model's own run with --workspace.run"
    return [*encoder.cautions, *([told] if named else [])]


def _parents(experiment: Experiment) -> tuple[Version, Version]:
    """Return the set and the checkpoint that are measured, taken once: training may go on meanwhile."""
    workspace = experiment.open_workspace()
    return workspace.set.require("run `rayjobs sample` first"), newest_checkpoint(experiment)


def measured_tiles(source: Version, settings: EvaluateSection) -> pa.Table:
    """Return the rows of a set's tile table that a question is about, sorted by `tile_id`: of places all, else those of the split."""
    tiles = read_tiles(source.read("tiles.parquet")).sort_by("tile_id")
    wanted = measured_splits(settings)
    return tiles if wanted is None else tiles.filter(pc.is_in(tiles["split"], pa.array(wanted)))


def question_of(experiment: Experiment, source: Version) -> Question:
    """Return what is asked of the measured split, from the tile table alone.

    Raises:
        ConfigError: the set has no tile of the split.
    """
    settings = experiment.evaluate
    tiles = measured_tiles(source, settings)
    if not pc.any(pc.equal(tiles["split"], settings.split)).as_py():
        raise ConfigError(
            f"no tile of the set belongs to the {settings.split} split; choose another evaluate.split, or sample one with a share"
        )
    return ask(
        tiles,
        settings,
        classes=source.manifest["classes"],
        divided_by=experiment.tiles.splits.by,
        min_label_coverage=experiment.tiles.min_label_coverage,
        place_tolerance=experiment.tiles.place_tolerance,
    )


def check(experiment: Experiment, source: Version, question: Question, found: Plan) -> None:
    """Refuse what cannot be answered before anything is embedded."""
    settings = experiment.evaluate
    if not len(findable(question)):
        raise TrainingError(nothing_relevant(settings))
    known = metrics_of(found, settings.ks)
    if settings.objective not in known:
        raise ConfigError(
            f"evaluate.objective {settings.objective!r} is not measured here (cut-offs are evaluate.ks, and graded metrics need class "
            f"proportions, from rasters.label_map); choose one of {', '.join(known)}"
        )
    unknown = sorted(set(settings.without_classes) - {*question.classes, *question.held_classes})
    if unknown:
        held = ", ".join(question.held_classes) or "none"
        raise ConfigError(f"evaluate.without_classes names {unknown[0]!r}, and the classes of the set are {held}; correct it")
    if settings.segmentation and experiment.rasters.label_map is None:
        raise ConfigError("evaluate.segmentation needs the class of each pixel; set rasters.label_map, or evaluate.segmentation: null")
    if settings.segmentation and not tiles_of(source, ("train",)):
        raise ConfigError("evaluate.segmentation is fitted on training tiles, and the set has none; set evaluate.segmentation: null")


def _segmented(experiment: Experiment, source: Version, rows: Mapping[str, Row], console: Console) -> dict[str, Any] | None:
    """Fit and test the probe of single pixels on one worker, if it is asked for."""
    settings, label_map = experiment.evaluate, experiment.rasters.label_map
    if settings.segmentation is None or label_map is None:
        return None
    with console.stage("evaluate/segment", None, "rows"):
        worker: Any = ray.remote(num_cpus=1, num_gpus=1 if wants_gpu(experiment.ray) else 0)
        task = worker(segment)
        encoders = {name: row.encoder for name, row in rows.items()}
        sizes = {"tiles": settings.segmentation.tiles, "cells": settings.segmentation.cells}
        maps = LabelMap(**label_map.arguments())
        pending = task.remote(
            source, maps, encoders, split=settings.split, ours=TRAINED, **sizes, resamples=settings.resamples, seed=settings.seed
        )
        found: dict[str, Any] = ray.get(pending)
    return found


def _measure(experiment: Experiment, rows: Mapping[str, Row], question: Question, found: Plan, console: Console) -> list[Measured]:
    """Measure row by row, the trained one last."""
    measured = []
    with console.stage("evaluate/measure", len(rows), "rows") as stage:
        for name, row in rows.items():
            embedded = row.embedded
            if embedded.table["tile_id"].to_pylist() != question.tile_ids:
                raise AssertionError("rows hold different tiles")  # a fault of ours: they could not be compared
            measured.append(measure(name, embedded.vectors, embedded.distance, question, found, experiment.evaluate))
            stage.advance(1)
    return measured


def _protocol(
    experiment: Experiment, source: Version, question: Question, found: Plan, measured: Sequence[Measured], of_encoder: Sequence[str]
) -> dict[str, Any]:
    settings, row = experiment.evaluate, measured[-1]
    gallery = min((pair.gallery for pair in question.dates), default=len(question.tile_ids))
    queries = row.metrics[settings.objective].tiles
    retrieved = row.metrics["MAP@R"].tiles
    units = len(np.unique(question.units[queries]))
    return {
        "set_version": source.version,
        "split": settings.split,
        "queries": len(retrieved),
        "lone_queries": len(question.queries) - len(retrieved),
        "gallery": gallery,
        "relevant": question.relevant_means,
        "excluded": question.excluded_means,
        "interval": f"95 %, {settings.resamples} bootstrap resamples of {question.unit_means}",
        "units": units,
        "image_statistics": f"standardised on the {standardised_on(experiment, source)} split",
        **_protocol_of_proportions(question, found),
        **_protocol_of_probes(experiment, question, found),
        "cautions": [
            *of_encoder,
            *_cautions_of_rows(experiment, [each.name for each in measured]),
            *cautions(settings.ks, gallery, units, question.unit_means),
            *cautions_of_lone(question, retrieved),
            *found.left_out,
        ],
        "earlier_reports_on_this_split": _earlier_reports(experiment),
        "seeds": {"train": experiment.train.seed, "random-init, bootstrap and probes": settings.seed},
    }


def _cautions_of_rows(experiment: Experiment, rows: Sequence[str]) -> list[str]:
    """Return which rows are missing, and what a difference between two of them does not tell apart."""
    told = [
        f"there is no row {name}: its weights could not be had here, or do not fit" for name in expected(experiment) if name not in rows
    ]
    if FROZEN in rows and experiment.model.whitening is not None:
        study = "cross_date" if experiment.evaluate.relevance == "place" else "class_disjoint"
        told.append(
            f"{TRAINED} minus {FROZEN} holds what model.whitening gives without labels, too; `python -m benchmarks.{study}` tells such a "
            "gain from that of the loss"
        )
    return told


def _protocol_of_proportions(question: Question, found: Plan) -> dict[str, Any]:
    if not len(found.mixed):
        return {}
    classes = len(question.held_classes)
    means = (
        f"nDCG@k/graded, soft_precision@k and gSil are measured among the {len(found.mixed)} tiles whose proportions of {classes} classes "
        "are known; soft_precision@k and gSil depend on the number of classes"
    )
    return {"proportions": means}


def _protocol_of_probes(experiment: Experiment, question: Question, found: Plan) -> dict[str, Any]:
    settings = experiment.evaluate
    if not found.divisions:
        return {}
    share, buffer = f"{settings.probe_test_share:g}", f"within {settings.radius:g} tile sizes"
    return {
        "probe_splits": {
            "ground": f"{share} of the {question.ground_means} are tested; tiles {buffer} of tested ones do not train",
            "random": f"{share} of the tiles are tested, class by class; tiles that overlap tested ones do not train",
        },
        "probe_interval": "95 %, corrected for resampled splits (Nadeau and Bengio 2003)",
    }


def _earlier_reports(experiment: Experiment) -> int:
    """Count this run's reports on the split: choices made after the first one on `test` are no longer blind."""
    report = experiment.open_workspace().report
    keys = report.store.list(f"{report.prefix}{experiment.evaluate.split}-")
    return sum(key.endswith("/manifest.json") for key in keys)  # one that was cut off before its manifest was shown to nobody


def _files(
    experiment: Experiment, source: Version, checkpoint: Version, report: dict[str, Any], measured: list[Measured]
) -> dict[str, bytes]:
    """Return the files of the report by name."""
    settings = experiment.evaluate
    chosen = choose(measured, settings.seed, settings.contact_sheets)
    illustrated = _illustrated(experiment, source, report, measured, chosen)
    versions = {
        "set": source.version,
        "checkpoint": checkpoint.version,
        "encoder fingerprint": str(checkpoint.manifest["encoder_fingerprint"]),
        "rayjobs": __version__,
        **{package: metadata.version(package) for package in ("torch", "timm", "ray")},
    }
    shown = page(
        report,
        illustrated.pictures,
        name=experiment.open_workspace().run,
        experiment=experiment.to_yaml(),
        versions=versions,
        notes=illustrated.notes,
        ours=TRAINED,
    )
    return {
        "report.json": json.dumps(report, indent=1, allow_nan=False).encode(),
        "report.html": shown.encode(),
        **_results(experiment, source, measured, chosen),
        "experiment.yaml": experiment.to_yaml().encode(),
        **{f"pictures/{name}.png": data for name, data in illustrated.pictures.items()},
        **{f"tensorboard/{name}": data for name, data in illustrated.board.items()},
    }


def _results(experiment: Experiment, source: Version, measured: list[Measured], chosen: Choice) -> dict[str, bytes]:
    """Return `results.json` by its name, where queries are to be answered at length."""
    if not chosen.contact:
        return {}
    tiles = measured_tiles(source, experiment.evaluate)
    scenes = dict(zip(tiles["tile_id"].to_pylist(), tiles["scene_id"].to_pylist(), strict=True))
    found = results(measured, chosen.contact, scenes, experiment.evaluate.seed)
    return {"results.json": json.dumps(found, indent=1, allow_nan=False).encode()}


def _illustrated(experiment: Experiment, source: Version, report: dict[str, Any], measured: list[Measured], chosen: Choice) -> Illustrated:
    settings = experiment.evaluate
    tile_ids = measured[0].question.tile_ids
    images = pictures_of(source, {tile_ids[tile] for tile in chosen.tiles().tolist()})
    return illustrate(measured, report, chosen, images, _history(experiment), umap=settings.umap, seed=settings.seed)


def _history(experiment: Experiment) -> dict[str, list[tuple[int, float]]]:
    """Return what training told MLflow, if that can be read here."""
    workspace = experiment.open_workspace()
    run = workspace.mlflow_run()
    found = history(experiment.tracking, workspace=workspace.store.uri, run_id=run) if run else {}
    return {name: points for name, points in found.items() if name.startswith(("train/", "mine/"))}


def _publish(experiment: Experiment, source: Version, checkpoint: Version, files: Mapping[str, bytes]) -> dict[str, str]:
    """Publish the report, and return where each of its files lies."""
    workspace = experiment.open_workspace()
    digest = hashlib.sha256(files["report.json"] + checkpoint.version.encode()).hexdigest()[:16]
    draft = workspace.report.draft(f"{experiment.evaluate.split}-{digest}")
    for name, data in files.items():
        draft.write(name, data)
    parents = {"set": source.version, "checkpoint": checkpoint.version}
    version = draft.publish({"parents": parents, "encoder_fingerprint": checkpoint.manifest["encoder_fingerprint"], "counts": {}})
    return {name: workspace.store.address(version.key(name)) for name in files}


def _log(
    experiment: Experiment, source: Version, report: dict[str, Any], files: Mapping[str, bytes], tags: Mapping[str, str], console: Console
) -> None:
    workspace = experiment.open_workspace()
    name = f"{workspace.run}-evaluate-{experiment.evaluate.split}"
    parameters = experiment.to_dict()
    with tracked(
        experiment.tracking,
        workspace=workspace.store.uri,
        verb="evaluate",
        run=name,
        parameters=parameters,
        say=console.say,
        tags=tags,
        dataset=Dataset.of(source),
    ) as tracker:
        tracker.metrics(values_of(report), step=0)
        tracker.files(files)


def _show(console: Console, report: dict[str, Any]) -> None:
    for number, line in enumerate(shown(report)):
        console.say(line if number else f"evaluate         {line}")
    for caution in report["protocol"]["cautions"]:
        console.say(f"evaluate         caution: {caution}")
