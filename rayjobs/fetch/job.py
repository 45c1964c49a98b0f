"""The driver's side of `rayjobs fetch`: ask what there is, have every tile fetched, make GeoTIFFs of them, publish."""

from __future__ import annotations

import argparse
import functools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.data

from rayjobs import command
from rayjobs.cluster.session import joined
from rayjobs.errors import ConfigError
from rayjobs.experiment import load, made
from rayjobs.fetch.cogs import CogSettings, assemble, cog_key, summary
from rayjobs.fetch.layers import listed
from rayjobs.fetch.missing import told_missing, told_unlisted
from rayjobs.fetch.pieces import FetchPlan, fetch_piece
from rayjobs.fetch.plan import PIECES, FetchScene, cost, plan_fetch, unlisted
from rayjobs.fetch.publish import ITEMS_FILE, REQUESTS_FILE, Fetched, animations_of, plan_name, published, read_state, table_bytes
from rayjobs.rasters.section import GibsSource
from rayjobs.rasters.web import LocalPace, Patience
from rayjobs.storage import Lease

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.fetch.section import FetchSection
    from rayjobs.storage import Artefact

_DESCRIPTION = """Fetch imagery from tile services into the workspace, as Cloud Optimised GeoTIFFs.

What is fetched are the sources of kind gibs, wmts and xyz of an experiment, or a layer that the options name. The same command goes on
where it was ended, and asks again for what failed. It ends with code 1 while a request is missing, says for which reasons, and
names each in the table `requests`, and with --json."""
_URL = GibsSource.__dataclass_fields__["url"].default


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs fetch` tells at its end."""

    complete: bool
    """Whether nothing is missing, so that the version is published."""
    version: str | None
    """None while something is missing, since there is no version then."""
    scenes: int
    """Of the plan."""
    files: dict[str, str]
    """Address of each scene's file, by scene, of those that are complete."""
    items: str | None
    """Address of the STAC items of all scenes, which a source of kind stac reads; None while something is missing."""
    requests: str
    """Address of the table of all requests; `outcome` is `failed` in the rows of those that are missing."""
    asked: int
    """Requests that this command made, each counted once however often it was tried."""
    missing_fraction: dict[str, float]
    """Share of pixels without data, such as swath gaps, by scene."""
    animations: dict[str, str]
    """Address of the animated picture of each layer."""
    missing: list[dict[str, Any]]
    """The requests that failed: `scene_id`, `url`, `status`, `at`, `tries` and `reason`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb from a command line; return 0 (complete), 1 (failed, or something is missing) or 2 (usage)."""
    options, overrides = parser().parse_known_args(arguments)
    missing: list[Any] = []

    def act(console: Console) -> dict[str, Any]:
        if options.layers:
            return listed(options.url or _URL, options.layers, console, table=not options.json)
        experiment = _experiment(options, overrides)
        if options.dry_run:
            told = preview(experiment)
            _caution(told["scenes_not_listed"], console)
            return told
        result = run(experiment, console)
        missing.extend(result.missing)
        return asdict(result)

    return command.execute("fetch", options, act) or int(bool(missing))


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs fetch`."""
    options = command.parser("fetch", _DESCRIPTION, needs_config=False)
    options.add_argument("--layers", metavar="WORD", nargs="+", help="list the layers that have all these words in their name, and end")
    options.add_argument("--layer", metavar="NAME", help="fetch this layer, instead of what an experiment names")
    options.add_argument("--bbox", metavar=("WEST", "SOUTH", "EAST", "NORTH"), nargs=4, type=float, help="the area, degrees")
    options.add_argument(
        "--dates", metavar="DATE", nargs="+", help="days, and intervals 2024-01-01/2024-01-31 (default: the service's own)"
    )
    options.add_argument("--resolution", metavar="METRES", type=float, help="per pixel: the level that comes nearest (default: the finest)")
    options.add_argument("--url", help="where the service's capabilities lie (default: those of NASA GIBS)")
    return options


def _experiment(options: argparse.Namespace, overrides: Sequence[str]) -> Experiment:
    """Return the experiment of a file, or one made of the options.

    Raises:
        ConfigError: neither is given, or both.
    """
    if options.config is not None:
        if any((options.layer, options.bbox, options.dates, options.resolution, options.url)):
            raise ConfigError("give either --config, or --layer with --bbox, --dates, --resolution and --url")
        return load(options.config, overrides)
    if not options.layer or not options.bbox:
        raise ConfigError("say what to fetch: --config FILE, or --layer NAME --bbox WEST SOUTH EAST NORTH, and mostly --dates DATE")
    where = {"url": options.url or _URL, "resolution_m": options.resolution}
    source = {"kind": "gibs", "layer": options.layer, "dates": options.dates or [], **where}
    name = "".join(letter if letter.isalnum() else "-" for letter in options.layer).strip("-") or "fetched"
    return made({"name": name, "rasters": {"sources": [source], "aoi": options.bbox}}, overrides)


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return the plan and its cost: the services are asked what they have, and for no tile."""
    scenes = plan_fetch(experiment.rasters, experiment.fetch)
    workspace = experiment.open_workspace()
    workspace.store.check()
    plan = _plan(experiment, workspace.imagery, threads=1, pace=None)
    todo = [scene for scene in scenes if not summary(plan, scene)]
    told = cost(scenes, experiment.fetch)
    return {**told, "requests_done": told["requests"] - sum(scene.requests for scene in todo), "scenes_not_listed": unlisted(todo)}


def run(experiment: Experiment, console: Console) -> Result:
    """Fetch what the experiment's services have, and publish it once nothing is missing."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    console.say("fetch/plan       asking the services what they have")
    scenes = plan_fetch(experiment.rasters, experiment.fetch)
    artefact = workspace.imagery
    with Lease(workspace.store, f"{artefact.prefix}lease") as lease:
        plan = _plan(experiment, artefact, threads=1, pace=None)
        done = {scene.scene_id: found for scene in scenes if (found := summary(plan, scene))}
        todo = [scene for scene in scenes if scene.scene_id not in done]
        _clear(plan, [scene for scene in scenes if scene.scene_id in done], todo)
        _caution(unlisted(todo), console)
        asked = 0
        if todo:
            with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
                asked = _fetch(todo, experiment, artefact, console)
        lease.check()
        return _end(experiment, read_state(plan, scenes, done), artefact, asked, console)


def _clear(plan: FetchPlan, done: Sequence[FetchScene], todo: Sequence[FetchScene]) -> None:
    """Delete pieces of complete scenes: a worker that was killed between saying that one is complete and deleting them has left them."""
    spent = {scene.pieces_folder for scene in done} - {scene.pieces_folder for scene in todo}
    for key in plan.store.list(f"{plan.prefix}{PIECES}") if spent else []:
        if f"{key.rpartition('/')[0]}/".removeprefix(plan.prefix) in spent:
            plan.store.delete(key)


def _plan(experiment: Experiment, artefact: Artefact, *, threads: int, pace: Any) -> FetchPlan:
    section = experiment.fetch
    patience = Patience(
        tries=section.tries, timeout_s=section.timeout_s, backoff_s=section.backoff_s, longest_wait_s=section.longest_wait_s
    )
    return FetchPlan(
        store=artefact.store,
        prefix=artefact.prefix,
        patience=patience,
        threads=threads,
        empty_statuses=section.empty_statuses,
        pace=pace,
    )


def _fetch(todo: Sequence[FetchScene], experiment: Experiment, artefact: Artefact, console: Console) -> int:
    """Have all pieces fetched and the complete scenes put together, anywhere on the cluster; return how many requests were made."""
    section = experiment.fetch
    pieces = [{"scene_id": scene.scene_id, "piece": number} for scene in todo for number in range(scene.pieces)]
    workers = max(1, min(section.concurrency, len(pieces), int(ray.cluster_resources().get("CPU", 1))))
    pace = _pace(section)
    plan = _plan(experiment, artefact, threads=max(1, section.concurrency // workers), pace=pace)
    scenes = {scene.scene_id: scene for scene in todo}
    asked, holes = 0, set()
    with console.stage("fetch/tiles", sum(scene.requests for scene in todo), "tiles") as stage:
        for report in _each(pieces, functools.partial(fetch_piece, plan=plan, scenes=scenes), workers):
            asked += report["asked"]
            if report["failed"]:
                holes.add(report["scene_id"])
            stage.advance(len(scenes[report["scene_id"]].tiles(report["piece"])), asked=asked, scenes_with_holes=len(holes))
    whole = [{"scene_id": scene_id} for scene_id in scenes if scene_id not in holes]
    if whole:
        settings = CogSettings(nodata=section.nodata, compress=section.compress)
        with console.stage("fetch/geotiffs", len(whole), "scenes") as stage:
            for _ in _each(whole, functools.partial(assemble, plan=plan, scenes=scenes, settings=settings), workers):
                stage.advance(1)
    return asked


def _pace(section: FetchSection) -> Any:
    """Start the actor that sets the pace of the whole job, and return its handle; it ends with the handle."""
    return ray.remote(num_cpus=0)(LocalPace).remote(section.requests_per_second, section.give_up_after)


def _each(rows: Sequence[Mapping[str, Any]], work: Any, workers: int) -> Iterator[dict[str, Any]]:
    """Yield what a function returns for each row, as it comes; Ray Data has so many workers at once and no more."""
    entries = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    yield from entries.map(work, num_cpus=1, concurrency=workers).iter_rows()


def _end(experiment: Experiment, state: Fetched, artefact: Artefact, asked: int, console: Console) -> Result:
    """Publish what is complete, or tell what is missing."""
    store = artefact.store
    unfinished = f"{artefact.prefix}missing/{plan_name(state.scenes, experiment.fetch)}.parquet"
    missing = state.missing()
    name, items, animations = None, None, {}
    if missing:
        store.write(unfinished, table_bytes(state.requests))
        requests = store.address(unfinished)
        for line in told_missing(missing, state.scenes, requests):
            console.say(f"fetch            {line}")
    else:
        version = published(state, experiment, artefact)
        store.delete(unfinished)
        name = version.version
        items, requests = (store.address(version.key(name)) for name in (ITEMS_FILE, REQUESTS_FILE))
        animations = animations_of(version)
    return Result(
        complete=not missing,
        version=name,
        scenes=len(state.scenes),
        files={scene_id: store.address(cog_key(artefact.prefix, file)) for scene_id, file in state.files.items()},
        items=items,
        requests=requests,
        asked=asked,
        missing_fraction={told["scene_id"]: told["missing_fraction"] for told in state.summaries},
        animations=animations,
        missing=missing,
    )


def _caution(scenes: Sequence[str], console: Console) -> None:
    if scenes:
        console.say(f"fetch/plan       {told_unlisted(scenes)}")
