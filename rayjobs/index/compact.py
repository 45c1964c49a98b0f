"""`rayjobs index compact`: merge small segments, and take out of segments what was deleted."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from rayjobs.cluster.session import joined
from rayjobs.errors import NoTilesError
from rayjobs.index.build import SegmentPlan, segment_of_segments
from rayjobs.index.job import Building
from rayjobs.index.versions import FORMAT, Contents, Published, Result, name_of, newest, next_segment, publish, segment_name, writing
from rayjobs.index.workers import OnRay, Workers
from rayjobs.retrieval.kinds import KINDS, STORES
from rayjobs.retrieval.manifest import QUANTISER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.index.section import IndexSection
    from rayjobs.retrieval.manifest import SegmentEntry
    from rayjobs.storage import Artefact, Lease

DESCRIPTION = """Publish a version in which small segments are merged, and segments of which tiles were deleted are written without them.

Segments that are at least half full and of which nothing was deleted are taken over as they are. What can be found does not change; deleted
tiles can come back only by `rollback`, or by `rayjobs index`, which builds anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which segments stay and which are written anew."""

    kept: tuple[SegmentEntry, ...]
    """As they are."""
    merged: tuple[tuple[str, ...], ...]
    """Names of the segments that become one each."""
    dropped: tuple[str, ...]
    """Names of segments of which all is deleted."""
    rows: int
    """Tiles that are written."""

    @property
    def is_empty(self) -> bool:
        """Whether all is compact already."""
        return not self.merged and not self.dropped


def add_options(made: argparse.ArgumentParser) -> None:
    """Take no options of its own."""


def preview(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Return what compaction will take."""
    del options
    parent = newest(experiment.open_workspace().index)
    planned, stored = plan(parent, experiment.index.rows_per_segment), STORES[KINDS[parent.manifest.kind].store]
    return {
        "parent": parent.version.version,
        "segments_kept": len(planned.kept),
        "segments_merged": sum(map(len, planned.merged)),
        "segments_dropped": len(planned.dropped),
        "segments_written": len(planned.merged),
        "rows_written": planned.rows,
        "bytes_written": round(planned.rows * stored.bytes_per_vector(parent.manifest.dimension)),
        "deleted_taken_out": parent.manifest.deleted,
    }


def run(experiment: Experiment, options: argparse.Namespace, console: Console) -> Result:
    """Publish the index compacted."""
    del options
    workspace, settings = experiment.open_workspace(), experiment.index
    workspace.store.check()
    parent = newest(workspace.index)
    planned = plan(parent, settings.rows_per_segment)
    if planned.is_empty:
        console.say("index            nothing is deleted, and no two segments fit into one: it is compact already")
        return parent.result("compact", fresh=False, rows_written=0, deleted_taken_out=0)
    with (
        joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say),
        writing(workspace.index) as lease,
    ):
        compacting = Compacting(workspace.index, settings, OnRay(gpu=False), console)
        version = compacting.publish(parent, planned, experiment, lease)
    return version.result("compact", fresh=True, rows_written=planned.rows, deleted_taken_out=parent.manifest.deleted)


def plan(parent: Published, rows_per_segment: int) -> Plan:
    """Decide which segments of a version to merge.

    Those with deletions and those less than half full are put together, each into the first group that has room (first fit).

    Raises:
        NoTilesError: nothing would be left.
    """
    alive = _alive(parent)
    if not any(alive.values()):
        raise NoTilesError("every tile of the index is deleted; `rayjobs index rollback` brings them back, `rayjobs index` builds anew")
    loose = [entry for entry in parent.manifest.segments if alive[entry.name] < max(entry.rows, (rows_per_segment + 1) // 2)]
    groups: list[list[SegmentEntry]] = []
    for entry in (entry for entry in loose if alive[entry.name]):
        room = (group for group in groups if sum(alive[one.name] for one in [*group, entry]) <= rows_per_segment)
        group = next(room, None)
        if group is None:
            groups.append([entry])
        else:
            group.append(entry)
    written = [group for group in groups if len(group) > 1 or alive[group[0].name] < group[0].rows]
    dropped = tuple(name for name, rows in alive.items() if not rows)
    gone = {entry.name for group in written for entry in group} | set(dropped)
    return Plan(
        kept=tuple(entry for entry in parent.manifest.segments if entry.name not in gone),
        merged=tuple(tuple(entry.name for entry in group) for group in written),
        dropped=dropped,
        rows=sum(alive[entry.name] for group in written for entry in group),
    )


def _alive(parent: Published) -> Mapping[str, int]:
    """Return how many tiles of each segment are not deleted; the ids of one segment at a time are in memory."""
    dead = pa.array(parent.tombstones, pa.string())
    if not len(dead):
        return {entry.name: entry.rows for entry in parent.manifest.segments}
    return {entry.name: entry.rows - _count(parent, entry, dead) for entry in parent.manifest.segments}


def _count(parent: Published, entry: SegmentEntry, dead: pa.Array) -> int:
    return int(pc.sum(pc.is_in(parent.ids_of(entry), value_set=dead)).as_py())


class Compacting:
    """Merges segments of an index."""

    def __init__(self, index: Artefact, settings: IndexSection, workers: Workers, console: Console) -> None:
        """Name the index, how large segments are, and who does the work."""
        self._index, self._settings, self._console = index, settings, console
        self._building = Building(index, settings, workers, console)

    def publish(self, parent: Published, planned: Plan, experiment: Experiment, lease: Lease) -> Published:
        """Publish a version with merged segments.

        Raises:
            PublishConflictError: `parent` is not current any more.
        """
        named = name_of("compact", FORMAT, parent.version.version, planned.merged, planned.dropped, self._settings.recall)
        draft = self._index.draft(named, after=parent.version)
        draft.adopt(parent.version, [*parent.shared(), *parent.files_of(planned.kept)])
        quantiser = parent.version.entry(QUANTISER) if parent.manifest.quantiser else None
        plan_of_all = SegmentPlan(store=draft.artefact.store, prefix=draft.prefix, kind=parent.manifest.kind, quantiser=quantiser)
        merge = functools.partial(segment_of_segments, plan=plan_of_all, parent=parent.version, manifest=parent.manifest)
        written = self._building.segments(draft, merge, _rows(planned.merged, next_segment(parent.manifest)))
        segments = (*planned.kept, *(segment.entry for segment in written))
        manifest = self._building.measured(draft, dataclasses.replace(parent.manifest, segments=segments, deleted=0))
        contents = Contents(
            action="compact",
            manifest=manifest,
            spec=parent.spec,
            parents={**parent.version.manifest["parents"], "index": parent.version.version},
            build=parent.version.manifest["build"],
            removed=sorted({*parent.removed, *parent.tombstones}),
        )
        return publish(draft, contents, experiment, lease, self._console)


def _rows(merged: Sequence[Sequence[str]], first: int) -> list[dict[str, Any]]:
    return [{"name": segment_name(number), "segments": list(names)} for number, names in enumerate(merged, start=first)]
