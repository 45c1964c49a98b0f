"""The driver's side of `rayjobs fetch`: ask what there is, have every tile fetched, make GeoTIFFs of them, publish."""

from __future__ import annotations

import argparse
import functools
import io
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from rayjobs import command
from rayjobs.cluster.session import joined
from rayjobs.errors import ConfigError
from rayjobs.experiment import load, made
from rayjobs.fetch.animate import animated
from rayjobs.fetch.cogs import CogSettings, assemble, summary
from rayjobs.fetch.items import item_collection
from rayjobs.fetch.layers import listed
from rayjobs.fetch.pieces import FAILED, REQUESTS, FetchPlan, fetch_piece, piece_key, read_requests
from rayjobs.fetch.plan import FetchScene, cost, plan_fetch, version_name, when
from rayjobs.rasters.section import GibsSource
from rayjobs.rasters.web import LocalPace, Patience
from rayjobs.storage import FileDigest, Lease

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.fetch.section import FetchSection
    from rayjobs.storage import Artefact, Draft, Version

_DESCRIPTION = """Fetch imagery from tile services into the workspace, as Cloud Optimised GeoTIFFs.

What is fetched are the sources of kind gibs, wmts and xyz of an experiment, or a layer that the options name. The same command goes on
where it was ended, and asks again for what failed. It ends with code 1 while a request is missing, and names each."""
_URL = GibsSource.__dataclass_fields__["url"].default
_SHOWN = 3
_ANIMATIONS = "animations/"
_DATE = re.compile(r"@\d[\dTZ_-]*(\.\d+Z)?")
"""Of a scene's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs fetch` tells at its end."""

    complete: bool
    """Whether nothing is missing, so that the version is published."""
    version: str
    scenes: int
    """Of the plan."""
    files: dict[str, str]
    """Address of each scene's file, by scene, of those that are complete."""
    items: str | None
    """Address of the STAC items of all scenes, which a source of kind stac reads; None while something is missing."""
    requests: str
    """Address of the table of all requests."""
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
            return preview(experiment)
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
    options.add_argument("--dates", metavar="DATE", nargs="+", help="days, and intervals such as 2024-01-01/2024-01-31")
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
    if not options.layer or not options.bbox or not options.dates:
        raise ConfigError("say what to fetch: --config FILE, or --layer NAME --bbox WEST SOUTH EAST NORTH --dates DATE")
    where = {"url": options.url or _URL, "resolution_m": options.resolution}
    source = {"kind": "gibs", "layer": options.layer, "dates": options.dates, **where}
    name = "".join(letter if letter.isalnum() else "-" for letter in options.layer).strip("-") or "fetched"
    return made({"name": name, "rasters": {"sources": [source], "aoi": options.bbox}}, overrides)


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return the plan and its cost: the services are asked what they have, and for no tile."""
    scenes = plan_fetch(experiment.rasters, experiment.fetch)
    workspace = experiment.open_workspace()
    workspace.store.check()
    plan = _plan(experiment, workspace.imagery, threads=1, pace=None)
    done = sum(scene.requests for scene in scenes if summary(plan, scene))
    return {**cost(scenes, experiment.fetch), "requests_done": done}


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
        asked = 0
        if todo:
            with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
                asked = _fetch(todo, experiment, artefact, console)
            done |= {scene.scene_id: found for scene in todo if (found := summary(plan, scene))}
        lease.check()
        return _told(experiment, scenes, done, plan, artefact, asked, console)


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


def _told(
    experiment: Experiment,
    scenes: Sequence[FetchScene],
    done: Mapping[str, tuple[dict[str, Any], pa.Table]],
    plan: FetchPlan,
    artefact: Artefact,
    asked: int,
    console: Console,
) -> Result:
    """Publish what is complete, or tell what is missing."""
    section = experiment.fetch
    look = f"{section.animation} {section.animation_height} {section.frames_per_second}"
    plan_name = version_name(scenes, look)
    requests = pa.concat_tables([done[scene.scene_id][1] if scene.scene_id in done else _so_far(plan, scene) for scene in scenes])
    summaries = [done[scene.scene_id][0] for scene in scenes if scene.scene_id in done]
    files = {told["scene_id"]: FileDigest(**told["file"]) for told in summaries}
    # what was fetched anew may have other pixels, and a published version never changes
    name = version_name(scenes, look, [files[scene_id].sha256 for scene_id in sorted(files)])
    addresses = {scene_id: plan.store.address(file.key(f"{plan.prefix}x/")) for scene_id, file in files.items()}
    missing = _missing(requests)
    shares = {told["scene_id"]: told["missing_fraction"] for told in summaries}
    result = Result(
        complete=not missing,
        version=name,
        scenes=len(scenes),
        files=addresses,
        items=None,
        requests="",
        asked=asked,
        missing_fraction=shares,
        animations={},
        missing=missing,
    )
    unfinished = f"{plan.prefix}missing/{plan_name}.parquet"
    if missing:
        plan.store.write(unfinished, _parquet(requests))
        _tell_missing(missing, console)
        return replace(result, requests=plan.store.address(unfinished))
    standing = artefact.current()
    if standing is not None and standing.version == name:
        version = standing
    else:
        version = _publish(experiment, scenes, files, summaries, requests, artefact.draft(name))
    plan.store.delete(unfinished)
    items, table = (plan.store.address(version.key(file)) for file in ("items.json", "requests.parquet"))
    pictures = {
        PurePosixPath(file.name).stem: plan.store.address(file.key(version.prefix)) for file in version.files if _is_animation(file)
    }
    return replace(result, items=items, requests=table, animations=pictures)


def _is_animation(file: FileDigest) -> bool:
    return file.name.startswith(_ANIMATIONS)


def _so_far(plan: FetchPlan, scene: FetchScene) -> pa.Table:
    pieces = [read_requests(plan.store, piece_key(plan.prefix, scene, piece)) for piece in range(scene.pieces)]
    return pa.concat_tables([REQUESTS.empty_table(), *pieces])


def _missing(requests: pa.Table) -> list[dict[str, Any]]:
    lost = requests.filter(pa.compute.equal(requests["outcome"], FAILED)).to_pylist()
    return [
        {
            **{name: row[name] for name in ("scene_id", "url", "status", "tries")},
            "at": row["at"].isoformat(),
            "reason": row["failures"][-1]["reason"],
        }
        for row in lost
    ]


def _tell_missing(missing: Sequence[Mapping[str, Any]], console: Console) -> None:
    console.say(f"fetch            {len(missing):,} requests failed; the same command asks for them again, and for nothing else")
    for row in missing[:_SHOWN]:
        console.say(f"fetch            {row['url']} failed at {row['at']}: {row['reason']}")


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _animations(section: FetchSection, scenes: Sequence[FetchScene], addresses: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of an animated picture of each layer and level; of one whose area has several parts, of each part."""
    if section.animation == "none":
        return
    parts: dict[str, list[FetchScene]] = {}
    for scene in sorted(scenes, key=lambda scene: (when(scene) or "", scene.scene_id)):
        parts.setdefault(_DATE.sub("", scene.scene_id), []).append(scene)
    for part, of_part in parts.items():
        frames = [addresses[scene.scene_id] for scene in of_part]
        data = animated(frames, form=section.animation, height=section.animation_height, frames_per_second=section.frames_per_second)
        yield f"{_ANIMATIONS}{part}.{section.animation}", data


def _publish(
    experiment: Experiment,
    scenes: Sequence[FetchScene],
    files: Mapping[str, FileDigest],
    summaries: Sequence[Mapping[str, Any]],
    requests: pa.Table,
    draft: Draft,
) -> Version:
    draft.add(files.values())
    draft.write("requests.parquet", _parquet(requests))
    draft.write("items.json", json.dumps(item_collection(scenes, files)).encode())
    for name, data in _animations(
        experiment.fetch, scenes, {name: draft.artefact.store.address(file.key(draft.prefix)) for name, file in files.items()}
    ):
        draft.write(name, data)
    draft.write("experiment.yaml", experiment.to_yaml().encode())
    counts = {"scenes": len(scenes), **{name: sum(told[name] for told in summaries) for name in ("requests", "empty", "pixels")}}
    return draft.publish({"parents": {}, "counts": counts})
