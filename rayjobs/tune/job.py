"""The driver's side of `rayjobs tune`: plan the trials, have Ray Tune run them, train the best anew, publish what was found."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from rayjobs.cluster.session import even_cpus, joined, require_cpus, wants_gpu
from rayjobs.errors import ConfigError, RayjobsError, TrainingError
from rayjobs.evaluate import job as evaluation
from rayjobs.evaluate.measure import plan
from rayjobs.storage import Lease
from rayjobs.tracking import Dataset, tracked, tracking_uri
from rayjobs.train import job as training
from rayjobs.train.ground import ground_of, training_tiles
from rayjobs.train.pinned import Pinned, decided
from rayjobs.train.validation import Validation
from rayjobs.tune import search
from rayjobs.tune.finals import choose, chosen, finals
from rayjobs.tune.fit import tried
from rayjobs.tune.population import mutations
from rayjobs.tune.report import files, report_of, shown, version_of
from rayjobs.tune.space import Replay, Space, overrides, parse
from rayjobs.tune.trial import Sweep, experiment_of
from rayjobs.tune.trials import all_known
from rayjobs.tune.validation import Measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version
    from rayjobs.tracking import Tracker
    from rayjobs.tune.trials import Trial
    from rayjobs.workspace import Workspace

_TRIED = ("model", "loss", "hashing", "interclass", "projector", "miner", "memory", "clustering", "mining", "train")
"""Sections whose keys may be tried: trials share the sampled tiles and all that is around them."""
_NOT_TRIED = ("train.num_workers", "train.cpus_per_worker", "train.seed")
_DECIDE = ("rasters", "tiles", "evaluate", "tune", *_TRIED)
"""Sections that decide what a sweep finds."""
_MAY_CHANGE = {
    "rasters": ("sources",),
    "tune": ("concurrent", "max_failures"),
    "train": ("num_workers", "cpus_per_worker", "max_failures", "keep_checkpoints", "ask_every", "loss_memory_mib"),
}
"""Keys of these that may differ when a sweep is gone on with."""
_CHAMPION = "champion"
"""What MLflow's registry calls the best: the one that validation chose, since no choice is made on the split of the finals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs tune` tells at its end."""

    sweep: str
    objective: str
    best: dict[str, Any]
    """Of the best trial `run`, `values` of the keys of the space, and `value`, the objective on the validation split."""
    trials: dict[str, int]
    """How many ended how."""
    finals: list[dict[str, Any]]
    """The best values trained anew: `run`, `seed`, and the objective on `evaluate.split` with its interval."""
    report: str
    """Where `sweep.json` lies."""
    page: str
    """Where `sweep.html` lies."""
    mlflow_run: str | None


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return which trials there are, how many are done, and what each takes; refuse what `run` would refuse."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    _pinned(experiment, workspace, source).begun()
    space = _space(experiment)
    validation, metric = _validation(experiment, source)
    _check_finals(experiment, source)
    draws = _checked(experiment, space, source)
    done = {found.run: found.ended for found in all_known(workspace)}
    each = training.preview(_of(experiment, space, draws[0]))
    return {
        "trials": search.trials_of(experiment.tune, space),
        "ended_already": sum(ended in {"finished", "pruned"} for ended in done.values()),
        "keys": {name: _described(domain) for name, domain in space.names().items()},
        "objective": f"{metric} of {validation.tiles.num_rows} tiles of the val split",
        "steps_per_trial": each["steps"],
        "finals": experiment.tune.final_seeds,
        "cautions": each["cautions"],
    }


def _described(domain: Any) -> str:
    options = getattr(domain, "options", None)
    return f"{len(options)} values" if options else f"{domain.low:g} to {domain.high:g}"


def run(experiment: Experiment, console: Console) -> Result:
    """Try the space, train the best values anew, and publish what was found."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    space = _space(experiment)
    validation, metric = _validation(experiment, source)
    _check_finals(experiment, source)
    _checked(experiment, space, source)
    with Lease(workspace.store, f"{workspace.sweep_folder}lease") as lease:
        _pinned(experiment, workspace, source).begin()
        with (
            joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say),
            _tracked(experiment, workspace, source, console) as tracker,
        ):
            tags = {"mlflow.parentRunId": tracker.run_id, "sweep": workspace.sweep} if tracker.run_id else {"sweep": workspace.sweep}
            base, concurrent = _shared_out(experiment, console)
            sweep = Sweep(
                experiment=base,
                space=space,
                objective=metric,
                validation=validation,
                tags=tags,
                mlflow=_mlflow(experiment, workspace),
                mailbox=None,
            )
            trials = tried(sweep, concurrent, console)
            best = _best(trials, chosen(workspace))
            console.say(f"tune             best: {best.run}, {metric} {best.value:.4f} on val")
            lease.check()
            choose(workspace, best)
            measured = finals(experiment, best, tags, console)
            lease.check()
            report = report_of(experiment, source.version, trials, best, measured)
            if experiment.tracking.model:
                found = experiment_of(experiment, best.values, best.run)
                training.register_model(found, experiment.tracking.model, console, _CHAMPION)
            return _publish(experiment, report, best, tracker, console)


def _space(experiment: Experiment) -> Space:
    """Return the space. Raises `ConfigError` for a key that trials cannot have of their own, or that no scheduler can do with."""
    space = parse(experiment.tune.space)
    if experiment.tune.scheduler.kind == "pbt":
        mutations(space)
    for key, _ in space.entries:
        if key.partition(".")[0] not in _TRIED or key in _NOT_TRIED:
            raise ConfigError(
                f"tune.space.{key} cannot be tried: trials share the sampled tiles and the cluster; choose keys of {', '.join(_TRIED)}"
            )
    return space


def _checked(experiment: Experiment, space: Space, source: Version) -> list[dict[str, Any]]:
    """Return draws of the space whose experiments all can be trained, as far as that can be told beforehand.

    Raises:
        ConfigError: one cannot; names its values.
    """
    draws = search.examples(experiment.tune, space)
    ground = ground_of(training_tiles(source, experiment), experiment)
    for draw in draws:
        values = overrides(space, Replay(draw))
        try:
            training.check(_of(experiment, space, draw), source, ground)
        except RayjobsError as error:
            raise ConfigError(f"tune.space: a trial with {json.dumps(values)} cannot be trained: {error}") from error
    return draws


def _of(experiment: Experiment, space: Space, draw: Mapping[str, float]) -> Experiment:
    made, ours = experiment_of(experiment, overrides(space, Replay(draw))), experiment.train
    if (made.train.num_workers, made.train.cpus_per_worker, made.train.seed) != (ours.num_workers, ours.cpus_per_worker, ours.seed):
        raise ConfigError(f"trials share {', '.join(_NOT_TRIED)}; leave them out of the space")
    return made


def _validation(experiment: Experiment, source: Version) -> tuple[Validation, str]:
    """Return how trials are measured on the validation split, and the metric that counts."""
    held_out = dataclasses.replace(experiment, evaluate=dataclasses.replace(experiment.evaluate, split="val", segmentation=None))
    question = evaluation.question_of(held_out, source)
    found = plan(question, dataclasses.replace(held_out.evaluate, probes=()))
    evaluation.check(held_out, source, question, found)
    tiles = evaluation.measured_tiles(source, held_out.evaluate)
    distance = training.encoder_spec(experiment, source).distance
    measure = Measure(question=question, plan=found, settings=held_out.evaluate, distance=distance)
    return Validation(tiles=tiles, measure=measure), experiment.evaluate.objective


def _check_finals(experiment: Experiment, source: Version) -> None:
    """Refuse a split on which the best values could not be measured, before hours are spent on finding them."""
    if experiment.tune.final_seeds:
        question = evaluation.question_of(experiment, source)
        evaluation.check(experiment, source, question, plan(question, experiment.evaluate))


def _pinned(experiment: Experiment, workspace: Workspace, source: Version) -> Pinned:
    return Pinned(
        store=workspace.store,
        key=f"{workspace.sweep_folder}experiment.yaml",
        what=f"sweep {workspace.sweep!r}",
        option="--workspace.sweep NAME",
        decided=decided(experiment, source, _DECIDE, _MAY_CHANGE),
        resolved=experiment.to_dict(),
    )


def _tracked(experiment: Experiment, workspace: Workspace, source: Version, console: Console) -> Any:
    """Log the sweep as the parent of its trials in MLflow."""
    return tracked(
        experiment.tracking,
        workspace=workspace.store.uri,
        verb="tune",
        run=workspace.sweep,
        parameters={**experiment.to_dict(), "set_version": source.version},
        say=console.say,
        resume=_mlflow_run(workspace),
        tags={"sweep": workspace.sweep},
        dataset=Dataset.of(source),
        opened=lambda run_id: workspace.store.write(f"{workspace.sweep_folder}mlflow.json", json.dumps({"run_id": run_id}).encode()),
    )


def _mlflow_run(workspace: Workspace) -> str | None:
    found = workspace.store.read_tagged(f"{workspace.sweep_folder}mlflow.json")
    return str(json.loads(found.data)["run_id"]) if found else None


def _shared_out(experiment: Experiment, console: Console) -> tuple[Experiment, int]:
    """Return the experiment with what each trial takes of the cluster, and how many trials there is room for at a time."""
    settings, resources = experiment.train, ray.cluster_resources()
    workers, concurrent = settings.workers[1], experiment.tune.concurrent
    if wants_gpu(experiment.ray):
        concurrent = concurrent or max(1, int(resources.get("GPU", 0)) // workers)
    elif settings.cpus_per_worker:
        concurrent = concurrent or max(1, int(resources.get("CPU", 0)) // (workers * settings.cpus_per_worker))
    if experiment.tune.scheduler.kind == "pbt":
        concurrent = search.trials_of(experiment.tune, _space(experiment))  # all of a population learn at once
    concurrent = _kept(experiment.open_workspace(), concurrent or 1)
    cpus = settings.cpus_per_worker or even_cpus(workers * concurrent)
    require_cpus(
        experiment.ray, settings.workers[0] * cpus, f"a trial's train.num_workers {settings.workers[0]} of {cpus} CPUs each", console.say
    )
    return dataclasses.replace(experiment, train=dataclasses.replace(settings, cpus_per_worker=cpus)), concurrent


def _mlflow(experiment: Experiment, workspace: Workspace) -> str | None:
    return tracking_uri(experiment.tracking, workspace.store.uri, make=False) if experiment.tracking.enabled else None


def _kept(workspace: Workspace, concurrent: int) -> int:
    """Return how many trials at a time a sweep was begun with: Ray Tune goes on with that number, whatever is asked for now."""
    key = f"{workspace.sweep_folder}concurrent.json"
    found = workspace.store.read_tagged(key)
    if found is None:
        workspace.store.write(key, json.dumps(concurrent).encode())
        return concurrent
    return int(json.loads(found.data))


def _best(trials: Sequence[Trial], named: str | None = None) -> Trial:
    """Return the finished trial that finds best on the validation split, or the one that was chosen before.

    Raises:
        TrainingError: none finished.
    """
    finished = [found for found in trials if found.ended == "finished" and found.value is not None]
    if not finished:
        first = next((found for found in trials if found.failure), None)
        told = f": {first.run} with {first.failure}" if first else ""
        raise TrainingError(f"none of {len(trials)} trials came to its end{told}; the same command tries those that failed again")
    return max(finished, key=lambda found: (found.run == named, found.value or 0.0))


def _publish(experiment: Experiment, report: dict[str, Any], best: Trial, tracker: Tracker, console: Console) -> Result:
    workspace = experiment.open_workspace()
    made = files(experiment, report)
    draft = workspace.sweep_report.draft(version_of(report))
    for name, data in made.items():
        draft.write(name, data)
    version = draft.publish({"parents": {"set": report["set_version"]}, "counts": report["counts"]})
    objective, count = report["objective"], len(report["trials"])
    tracker.metrics({f"best/val/{objective}": float(best.value or 0.0), "trials": float(count)}, step=count)
    if report["final"]:
        tracker.metrics({f"final/{report['split']}/{objective}": report["final"]["mean"]}, step=count)
    tracker.tags({"best_run": best.run})
    tracker.files(made)
    for line in shown(report):
        console.say(f"tune             {line}")
    addresses = {name: workspace.store.address(version.key(name)) for name in made}
    console.say(f"tune             report: {addresses['sweep.html']}")
    return Result(
        sweep=workspace.sweep,
        objective=objective,
        best={"run": best.run, "values": best.values, "value": best.value},
        trials=report["counts"],
        finals=report["finals"],
        report=addresses["sweep.json"],
        page=addresses["sweep.html"],
        mlflow_run=tracker.run_id,
    )
