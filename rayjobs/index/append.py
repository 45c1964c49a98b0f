"""`rayjobs index append`: embed the tiles of the set that the index does not hold yet, and add them as new segments."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayjobs.cluster.session import joined, wants_gpu
from rayjobs.embed.encoder import chosen_encoder, tell_encoder
from rayjobs.embed.job import embed
from rayjobs.errors import FingerprintError
from rayjobs.index.build import SegmentPlan, segment_of_parts
from rayjobs.index.job import Building, chosen_kind, grouped
from rayjobs.index.versions import FORMAT, Contents, Published, Result, made_of, name_of, newest, next_segment, publish, writing
from rayjobs.index.workers import OnRay, Workers
from rayjobs.retrieval.manifest import QUANTISER
from rayjobs.tiles.table import read_tiles

if TYPE_CHECKING:
    import argparse

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.index.section import IndexSection
    from rayjobs.storage import Artefact, Lease, Version

DESCRIPTION = """Embed the tiles of the current set that the index does not hold, and publish a version that holds them, too.

The other tiles are neither embedded nor written again. The experiment's encoder must be that of the index. Tiles that were deleted stay
out, even after `compact`; `rayjobs index` builds anew, with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a set compares with an index."""

    new: pa.Table
    """Rows of the tile table that the index does not hold, sorted by `tile_id`."""
    held: int
    """Tiles of the set that it holds."""
    kept_out: int
    """Tiles of the set that were deleted from it."""


def add_options(made: argparse.ArgumentParser) -> None:
    """Take no options of its own."""


def preview(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Return what appending will take."""
    del options
    workspace = experiment.open_workspace()
    parent, wanted = newest(workspace.index), _compared(experiment)
    rows, dimension = wanted.new.num_rows, parent.manifest.dimension
    return {
        "parent": parent.version.version,
        "kind": parent.manifest.kind,
        "tiles": rows,
        "held_already": wanted.held,
        "deleted_before": wanted.kept_out,
        "shards_to_read": len(wanted.new["shard"].unique()),
        "table_bytes": rows * dimension * 4,
        "segments": -(-rows // experiment.index.rows_per_segment),
    }


def run(experiment: Experiment, options: argparse.Namespace, console: Console) -> Result:
    """Embed what is new and publish the index with it."""
    del options
    workspace, settings = experiment.open_workspace(), experiment.index
    workspace.store.check()
    chosen, parent = chosen_encoder(experiment), newest(workspace.index)
    check_encoder(parent, chosen.fingerprint)
    tell_encoder(chosen, console, "index")
    encoder = chosen.read()
    wanted = _compared(experiment)
    _tell(parent, wanted, settings, console)
    if not wanted.new.num_rows:
        return _result(parent, wanted, fresh=False)
    source = workspace.set.require("run `rayjobs sample` first")
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
        gpu, target = wants_gpu(experiment.ray), workspace.embeddings("appended")
        table = embed(source, encoder, target, console, gpu=gpu, splits=settings.splits, only=wanted.new, stage="index/embed")
        with writing(workspace.index) as lease:
            appending = Appending(workspace.index, settings, OnRay(gpu=gpu), console)
            return _result(appending.publish(parent, table, experiment, lease), wanted, fresh=True)


def _compared(experiment: Experiment) -> Wanted:
    workspace, splits = experiment.open_workspace(), experiment.index.splits
    source = workspace.set.require("run `rayjobs sample` first")
    tiles = read_tiles(source.read("tiles.parquet"))
    tiles = tiles if splits is None else tiles.filter(pc.is_in(tiles["split"], pa.array(list(splits))))
    return compare(tiles, newest(workspace.index))


def compare(tiles: pa.Table, parent: Published) -> Wanted:
    """Return which tiles of a table an index version does not hold; the ids of one segment at a time are in memory."""
    tiles = tiles.sort_by("tile_id")
    ids = tiles["tile_id"].combine_chunks()
    held = np.zeros(len(ids), bool)
    for entry in parent.manifest.segments:
        held |= _is_in(ids, parent.ids_of(entry))
    gone = _is_in(ids, pa.array(parent.tombstones, pa.string())) | _is_in(ids, pa.array(parent.removed, pa.string()))
    return Wanted(new=tiles.filter(pa.array(~held & ~gone)), held=int((held & ~gone).sum()), kept_out=int(gone.sum()))


def _is_in(ids: pa.Array, others: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found: np.ndarray[Any, np.dtype[np.bool_]] = pc.is_in(ids, value_set=others).to_numpy(zero_copy_only=False)
    return found


def check_encoder(parent: Published, fingerprint: str) -> None:
    """Refuse to add vectors of another encoder than the index's.

    Raises:
        FingerprintError: names both.
    """
    if fingerprint != parent.manifest.encoder_fingerprint:
        raise FingerprintError(
            f"index {parent.version.manifest['name']} was made by encoder {parent.manifest.encoder_fingerprint[:12]}, and the "
            f"experiment's is encoder {fingerprint[:12]}: their vectors cannot be compared; build anew with `rayjobs index`, or name the "
            "run of the index's encoder by workspace.run, or the model by workspace.encoder"
        )


def _tell(parent: Published, wanted: Wanted, settings: IndexSection, console: Console) -> None:
    gone = f", {wanted.kept_out:,} were deleted and stay out" if wanted.kept_out else ""
    console.say(f"index            {wanted.new.num_rows:,} tiles are new, {wanted.held:,} are in the index{gone}")
    rows = parent.manifest.stored - parent.manifest.deleted + wanted.new.num_rows
    fits = chosen_kind(settings, rows, parent.spec)
    if fits.kind != parent.manifest.kind:
        console.say(
            f"index            caution: stays of kind {parent.manifest.kind}; for {rows:,} tiles index.kind {settings.kind} "
            f"would be {fits.kind} ({fits.why}): build anew with `rayjobs index`"
        )


class Appending:
    """Adds an embedding table to an index."""

    def __init__(self, index: Artefact, settings: IndexSection, workers: Workers, console: Console) -> None:
        """Name the index, how large segments are, and who does the work."""
        self._index, self._settings, self._console = index, settings, console
        self._building = Building(index, settings, workers, console)

    def publish(self, parent: Published, table: Version, experiment: Experiment, lease: Lease) -> Published:
        """Publish a version with the segments of `parent` and those of a table, whose tiles it does not hold.

        Raises:
            PublishConflictError: `parent` is not current any more.
        """
        settings = (self._settings.rows_per_segment, self._settings.recall)
        draft = self._index.draft(name_of("append", FORMAT, parent.version.version, table.version, *settings), after=parent.version)
        draft.adopt(parent.version, [*parent.shared(), *parent.files_of(parent.manifest.segments)])
        quantiser = parent.version.entry(QUANTISER) if parent.manifest.quantiser else None
        plan = SegmentPlan(store=draft.artefact.store, prefix=draft.prefix, kind=parent.manifest.kind, quantiser=quantiser)
        groups = list(grouped(table, self._settings.rows_per_segment, first=next_segment(parent.manifest)))
        added = self._building.segments(draft, functools.partial(segment_of_parts, plan=plan, embeddings=table), groups)
        segments = (*parent.manifest.segments, *(segment.entry for segment in added))
        manifest = self._building.measured(draft, dataclasses.replace(parent.manifest, segments=segments))
        contents = Contents(
            action="append",
            manifest=manifest,
            spec=parent.spec,
            parents={**made_of(table), "index": parent.version.version},
            build=parent.version.manifest["build"],
            tombstones=parent.tombstones,
            removed=parent.removed,
        )
        return publish(draft, contents, experiment, lease, self._console)


def _result(published: Published, wanted: Wanted, *, fresh: bool) -> Result:
    return published.result("append", fresh=fresh, appended=wanted.new.num_rows, held_already=wanted.held, deleted_before=wanted.kept_out)
