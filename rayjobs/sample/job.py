"""The driver's side of `rayjobs sample`: plan the tiles, have them read, publish the set."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from rayjobs.cluster.session import joined
from rayjobs.errors import ClusterError, NotFoundError, NoTilesError, TooManyFailuresError, first_few
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.radiometry import check_sentinel2_scenes
from rayjobs.rasters.reader import REPLACE
from rayjobs.rasters.scenes import scenes_table
from rayjobs.sample.identity import set_version
from rayjobs.sample.plan import SetPlan, plan_set
from rayjobs.sample.read import ReadPlan, from_ipc, read_shard, to_ipc
from rayjobs.storage import Artefact, Draft, FileDigest, Version
from rayjobs.tiles import chips
from rayjobs.tiles.samplers import grid_shape
from rayjobs.tiles.section import GridSampler
from rayjobs.tiles.splits import check_splits
from rayjobs.tiles.table import geoparquet_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.rasters.section import RastersSection
    from rayjobs.tiles.section import TilesSection

logger = logging.getLogger(__name__)

_LINES = 3
"""Of one kind that are shown; the rest is counted."""
_RETRIES = 5
"""Of a shard whose worker died: the node may have gone, and so may the next; a file that kills its readers takes one of them."""
_READ_COLUMNS = ["tile_id", "scene_id", "row", "col", "height", "width", "split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs sample` tells at its end."""

    version: str
    counts: dict[str, Any]
    """Tiles planned, kept, sparse, unreadable; kept by split and, where there are labels, by class; scenes."""
    fresh: bool
    """False where the set was published already."""
    quarantine: str | None
    """Where the tiles and files that are not in the set are listed, each with its reason; None where all are in it."""


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return the plan and its cost without touching a pixel, and whether the set is there already."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    plan = plan_set(experiment.rasters, experiment.tiles)
    label_map = _label_map(experiment.rasters, plan)
    current = workspace.set.current()  # without one there is nothing to take stamps for
    published = current is not None and _whole(workspace.set, set_version(plan, experiment.tiles, label_map)) is not None
    return {**plan.cost(), **_tile_grid(experiment.tiles, plan), "cautions": _cautions(experiment, plan), "published_already": published}


def _tile_grid(section: TilesSection, plan: SetPlan) -> dict[str, Any]:
    """Return how the tiles of a grid are counted, and how many that gives on all scenes before the area and the ground are looked at."""
    if section.size is None or not isinstance(section.sampler, GridSampler):
        return {}
    step, edge = section.sampler.step(section.size), section.sampler.edge
    shapes = [grid_shape(scene.grid, size=section.size, stride=step, edge=edge) for scene in plan.scenes]
    largest, scene = max(zip(shapes, plan.scenes, strict=True), key=lambda entry: entry[0][0] * entry[0][1])
    rounded = "floor" if edge == "discard" else "ceil"
    return {
        "tile_grid": {
            "formula": f"{rounded}((side - {section.size - step}) / {step}) along each side, in pixels",
            "largest": f"{scene.scene_id}: {scene.grid.width} x {scene.grid.height} px, {largest[1]} x {largest[0]} tiles",
            "tiles": sum(down * across for down, across in shapes),
        }
    }


def _cautions(experiment: Experiment, plan: SetPlan) -> list[str]:
    """Return what the plan cautions against, and whether the set lacks what the experiment will ask of it."""
    across = {"train.supervision: places": experiment.train.supervision == "places"}
    across["evaluate.relevance: place"] = experiment.evaluate.relevance == "place"
    wants = [key for key, asked in across.items() if asked]
    days = {scene.datetime.date() if scene.datetime else None for scene in plan.scenes}
    if not wants or len(days) > 1:
        return list(plan.cautions)
    told = "of one date" if days - {None} else "without a date"
    return [*plan.cautions, f"{' and '.join(wants)} compare dates, and all scenes are {told}; add others, or say when they were taken"]


def run(experiment: Experiment, console: Console) -> Result:
    """Sample the experiment's set into the workspace and publish it."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    console.say("sample/plan      reading headers and placing tiles")
    plan = plan_set(experiment.rasters, experiment.tiles)
    _say_some(console, [f"left out {uri}: {reason}" for uri, reason in plan.unreadable])
    _say_some(console, [f"caution: {caution}" for caution in _cautions(experiment, plan)])
    label_map = _label_map(experiment.rasters, plan)
    console.say(f"sample/plan      {plan.tiles.num_rows:,} tiles on {len(plan.scenes):,} scenes; taking stamps of their files")
    name = set_version(plan, experiment.tiles, label_map)
    standing = _standing(workspace.set, name)
    if standing:
        console.say(_published_already(standing))
        return _result(standing, fresh=False)
    _say_some(console, check_sentinel2_scenes(plan.scenes, experiment.rasters.sentinel2_check))
    draft = workspace.set.draft(name)
    read_plan = ReadPlan(
        store=workspace.store,
        prefix=draft.prefix,
        dtype=plan.dtype,
        physical=plan.physical,
        tile_size=experiment.tiles.size,
        min_valid_fraction=experiment.tiles.min_valid_fraction,
        label_map=label_map,
    )
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
        reports = _read(plan, read_plan, experiment.rasters.max_bad_fraction, console)
    version = _publish(experiment, plan, draft, reports, label_map)
    result = _result(version, fresh=True)
    _tell_lost(plan, reports, result, console)
    return result


def _result(version: Version, *, fresh: bool) -> Result:
    counts = dict(version.manifest["counts"])
    lost = sum(counts[name] for name in ("unreadable_files", chips.SPARSE, chips.UNREADABLE))
    address = version.store.address(version.key("quarantine.parquet"))
    return Result(version=version.version, counts=counts, fresh=fresh, quarantine=address if lost else None)


def _tell_lost(plan: SetPlan, reports: Sequence[dict[str, Any]], result: Result, console: Console) -> None:
    """Say which tiles could not be read, and where all that was left out is listed."""
    lost, sparse = result.counts[chips.UNREADABLE], result.counts[chips.SPARSE]
    if lost:
        console.say(f"sample           {lost:,} tiles could not be read: {first_few(_reasons(plan, reports))}")
    if sparse:
        console.say(f"sample           {sparse:,} tiles have too few valid pixels (tiles.min_valid_fraction)")
    if result.quarantine:
        console.say(f"sample           all that is not in the set, with the reason for each: {result.quarantine}")


def _say_some(console: Console, texts: Sequence[str]) -> None:
    """Show the first of several lines of one kind, and log them all."""
    for text in texts:
        logger.warning("%s", text)
    for text in texts[:_LINES]:
        console.say(f"sample/plan      {text}")
    if len(texts) > _LINES:
        console.say(f"sample/plan      and {len(texts) - _LINES} more like the last; the log has them all")


def _published_already(version: Version) -> str:
    """Say so, and how tiles that were lost to an outage can be had nevertheless: a published version never changes."""
    lost = version.manifest["counts"][chips.UNREADABLE]
    remedy = f"; {lost} of its tiles could not be read then: to try them again, sample another set (workspace.set)" if lost else ""
    return f"sample           set {version.manifest['name']} {version.version} is published already{remedy}"


def _standing(artefact: Artefact, name: str) -> Version | None:
    """Return a version that was published before, made current again if another one is; None also where files of it are gone."""
    draft = artefact.draft(name)
    version = _whole(artefact, name)
    if version is None:
        return None
    current = artefact.current()
    if current is None or current.version != name:
        draft.add(version.files)
        draft.publish(version.manifest)
    return version


def _whole(artefact: Artefact, name: str) -> Version | None:
    """Return a version that was published before and has all its files still."""
    try:
        version = artefact.at(name)
    except NotFoundError:
        return None
    gone = any(artefact.store.size(entry.key(version.prefix)) != entry.size for entry in version.files)
    return None if gone else version


def _label_map(section: RastersSection, plan: SetPlan) -> LabelMap | None:
    if section.label_map is None:
        return None
    label_map = LabelMap(**section.label_map.arguments())
    label_map.check_overlap(plan.scenes)
    return label_map


def _shards(plan: SetPlan) -> Iterator[dict[str, Any]]:
    """Yield what each shard's reader needs: its tiles in the order of reading, and the scenes that they lie in."""
    ordered = plan.tiles.sort_by("order")
    scenes, tiles = scenes_table(plan.scenes), ordered.select(_READ_COLUMNS)
    of_tile = pc.index_in(tiles["scene_id"], value_set=scenes["scene_id"].combine_chunks()).to_numpy()
    offsets = np.searchsorted(ordered["shard"].to_numpy(), np.arange(plan.shards + 1))
    for number, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        own = scenes.take(np.unique(of_tile[start:stop]))
        yield {"shard": number, "tiles": to_ipc(tiles.slice(start, stop - start)), "scenes": to_ipc(own)}


def _read(plan: SetPlan, read_plan: ReadPlan, max_bad_fraction: float, console: Console) -> list[dict[str, Any]]:
    """Have every shard read, watching the share of tiles that cannot be."""
    reports: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    with console.stage("sample/read", plan.tiles.num_rows, "tiles") as stage:
        for report in _reports(plan, read_plan):
            statuses = from_ipc(report["outcome"])["status"].to_pylist()
            seen.update(statuses)
            reports.append(report)
            stage.advance(len(statuses), kept=seen[chips.KEPT], sparse=seen[chips.SPARSE], unreadable=seen[chips.UNREADABLE])
            if seen[chips.UNREADABLE] > max_bad_fraction * plan.tiles.num_rows:
                raise TooManyFailuresError(_too_many(plan, reports, seen[chips.UNREADABLE], max_bad_fraction))
    return sorted(reports, key=lambda report: int(report["shard"]))


def _reports(plan: SetPlan, read_plan: ReadPlan) -> Iterator[dict[str, Any]]:
    """Yield the report of each shard as it is read, anywhere on the cluster. Ray Data puts the function, and the plan in it, once."""
    shards = ray.data.from_items(list(_shards(plan)), override_num_blocks=plan.shards)
    try:
        yield from shards.map(functools.partial(read_shard, plan=read_plan), num_cpus=1, max_retries=_RETRIES).iter_rows()
    except ray.exceptions.WorkerCrashedError as error:
        raise ClusterError(
            f"the process that reads one shard of tiles died {_RETRIES + 1} times, each time a new one (was it killed, or out of memory? "
            "Ray's log of that node says it); what was read is kept: run the same command again"
        ) from error


def _too_many(plan: SetPlan, reports: Sequence[dict[str, Any]], bad: int, limit: float) -> str:
    return (
        f"{bad} of {plan.tiles.num_rows} tiles cannot be read, more than rasters.max_bad_fraction {limit} allows: "
        f"{first_few(_reasons(plan, reports))}; replace the files, leave them out, or raise rasters.max_bad_fraction"
    )


def _reasons(plan: SetPlan, reports: Sequence[dict[str, Any]]) -> list[str]:
    """Return why tiles cannot be read: one reason for each scene, since its others are alike."""
    lost = pa.concat_tables([from_ipc(report["outcome"]) for report in reports])
    lost = lost.filter(pc.equal(lost["status"], chips.UNREADABLE))
    scenes = plan.tiles["scene_id"].take(pc.index_in(lost["tile_id"], value_set=plan.tiles["tile_id"].combine_chunks()))
    by_scene: dict[str, str] = {}
    for scene_id, reason in zip(scenes.to_pylist(), lost["reason"].to_pylist(), strict=True):
        by_scene.setdefault(scene_id, reason.removesuffix(f"; {REPLACE}"))
    return list(by_scene.values())


def _publish(experiment: Experiment, plan: SetPlan, draft: Draft, reports: list[dict[str, Any]], label_map: LabelMap | None) -> Version:
    outcomes = pa.concat_tables([from_ipc(report["outcome"]) for report in reports]).sort_by("tile_id")
    if outcomes["tile_id"] != plan.tiles["tile_id"]:
        raise AssertionError("the shards do not hold the planned tiles")  # a fault of ours, not the user's
    kept = pc.equal(outcomes["status"], chips.KEPT)
    if not pc.any(kept).as_py():
        raise NoTilesError(_none_kept(outcomes))
    classes = label_map.names if label_map else ()
    tiles = _with_labels(plan.tiles, outcomes, classes, experiment.tiles).filter(kept).drop_columns(["order"])
    check_splits(tiles, experiment.tiles.splits)
    draft.add(FileDigest(**report["digest"]) for report in reports)
    draft.write("tiles.parquet", geoparquet_bytes(tiles))
    draft.write("scenes.parquet", geoparquet_bytes(scenes_table(plan.scenes)))
    refused = outcomes.filter(pc.invert(kept)).select(["tile_id", "status", "reason", "valid_fraction"])
    draft.write("quarantine.parquet", geoparquet_bytes(_with_files(refused, plan.unreadable)))
    draft.write("experiment.yaml", experiment.to_yaml().encode())
    fields = {
        "parents": {},
        "counts": _counts(plan, outcomes, tiles),
        "bands": list(plan.scenes[0].assets),
        "dtype": plan.dtype,
        "tile_size": experiment.tiles.size,
        "resolution_m": _resolution(plan),
        "classes": list(classes) or sorted({label for label in tiles["label"].to_pylist() if label is not None}),
        "shards": plan.shards,
        **_band_statistics(reports, plan),
    }
    return draft.publish(fields)


def _with_labels(tiles: pa.Table, outcomes: pa.Table, classes: tuple[str, ...], section: TilesSection) -> pa.Table:
    """Add what reading found: valid fraction, label fractions, and the dominant class where it is pure and covers the tile enough."""
    tiles = _replace(tiles, "valid_fraction", outcomes["valid_fraction"])
    if not classes:
        return tiles
    fractions, coverage = outcomes["label_fractions"].to_pylist(), outcomes["label_coverage"].to_pylist()
    purity = [max(entry) if entry else None for entry in fractions]
    dominant = [
        classes[int(np.argmax(entry))] if share and share >= section.min_label_purity and covered >= section.min_label_coverage else None
        for entry, share, covered in zip(fractions, purity, coverage, strict=True)
    ]
    tiles = _replace(tiles, "label", pa.array(dominant, pa.string()))
    tiles = _replace(tiles, "label_purity", pa.array(purity, pa.float32()))
    for name in ("label_coverage", "label_fractions"):
        tiles = _replace(tiles, name, outcomes[name])
    return tiles


def _replace(table: pa.Table, name: str, values: Any) -> pa.Table:
    position = table.schema.get_field_index(name)
    return table.set_column(position, table.schema.field(position), values.cast(table.schema.field(position).type))


def _with_files(refused: pa.Table, unreadable: tuple[tuple[str, str], ...]) -> pa.Table:
    """Add the files whose header could not be read to the table of refused tiles."""
    files = {
        "tile_id": [None] * len(unreadable),
        "status": [chips.UNREADABLE] * len(unreadable),
        "reason": [f"{uri}: {reason}" for uri, reason in unreadable],
        "valid_fraction": [None] * len(unreadable),
    }
    schema = pa.schema([field.with_nullable(nullable=True) for field in refused.schema])
    return pa.concat_tables([refused.cast(schema), pa.table(files, schema=schema)])


def _none_kept(outcomes: pa.Table) -> str:
    statuses = ", ".join(f"{count} {status}" for status, count in Counter(outcomes["status"].to_pylist()).items())
    best = pc.max(outcomes["valid_fraction"]).as_py()
    seen = (
        ""
        if best is None
        else f"; the best valid_fraction seen is {best:.3f}: lower tiles.min_valid_fraction or correct nodata and quality"
    )
    example = outcomes["reason"][0].as_py()
    return f"none of {outcomes.num_rows} planned tiles could be kept ({statuses}; for example: {example}){seen}"


def _counts(plan: SetPlan, outcomes: pa.Table, tiles: pa.Table) -> dict[str, Any]:
    statuses = Counter(outcomes["status"].to_pylist())
    classes = Counter(label for label in tiles["label"].to_pylist() if label is not None)
    return {
        "scenes": len(plan.scenes),
        "unreadable_files": len(plan.unreadable),
        "planned": plan.tiles.num_rows,
        **{status: statuses[status] for status in (chips.KEPT, chips.SPARSE, chips.UNREADABLE)},
        "by_split": {split or "none": count for split, count in sorted(Counter(tiles["split"].to_pylist()).items(), key=str)},
        **({"by_class": dict(sorted(classes.items()))} if classes else {}),
    }


def _resolution(plan: SetPlan) -> float | None:
    known = [scene.resolution_m for scene in plan.scenes if scene.resolution_m is not None]
    return float(np.median(known)) if known else None


def _band_statistics(reports: list[dict[str, Any]], plan: SetPlan) -> dict[str, list[float]]:
    """Return mean and standard deviation of each band over the valid pixels of training tiles (of none: 0 and 1)."""
    sums = [report["sums"] for report in reports if report["sums"]]
    bands = len(plan.scenes[0].assets)
    count = sum(int(entry["count"]) for entry in sums)
    if count == 0:
        return {"band_mean": [0.0] * bands, "band_std": [1.0] * bands}
    mean = np.sum([entry["sum"] for entry in sums], axis=0) / count
    variance = np.sum([entry["squares"] for entry in sums], axis=0) / count - mean**2
    return {"band_mean": mean.tolist(), "band_std": np.sqrt(np.maximum(variance, 1e-12)).tolist()}
