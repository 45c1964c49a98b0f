"""What runs on a worker: train the quantiser of an index, build a segment of it, measure how hard a search has to try."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from rayjobs.retrieval.choice import tuned
from rayjobs.retrieval.kinds import KINDS, Effort, sample_rows
from rayjobs.retrieval.manifest import QUANTISER, IndexManifest, RecallEstimate, SegmentEntry, read_tombstones
from rayjobs.retrieval.segments import build_segment, load_segment
from rayjobs.storage import FileDigest, Store, Version, keep_first, share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Vectors = np.ndarray[Any, np.dtype[np.float32]]

MADE = "made"
"""Folder of a version under way: what workers have made of it, and an action that is begun again need not make again."""
_SAMPLED_PARTS = 128
"""Most parts of an embedding table that a sample is drawn from: reading all of a large one takes longer than training."""
_TUNED_SEGMENTS = 4
"""Most segments that the effort is measured on; the newest is among them."""
_QUERIES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPlan:
    """What every segment of a version has in common."""

    store: Store
    prefix: str
    """Folder of the index version in the workspace, ending in `/`."""
    kind: str
    """Key of `KINDS`."""
    quantiser: FileDigest | None
    """Of kinds that train: where it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltSegment:
    """A segment that lies in the workspace."""

    entry: SegmentEntry
    files: tuple[FileDigest, ...]


_BUILT = pydantic.TypeAdapter(BuiltSegment)
_FILE = pydantic.TypeAdapter(FileDigest)


def segment_of_parts(row: Mapping[str, Any], *, plan: SegmentPlan, embeddings: Version) -> dict[str, Any]:
    """Build a segment of some parts of an embedding table; see `built` for what it returns.

    Args:
        row: `name` of the segment and the `parts` it is made of.
        plan: what all segments share.
        embeddings: the table.
    """
    return _once(plan, row["name"], lambda: _segment(plan, row["name"], [_part(embeddings, name) for name in row["parts"]]))


def segment_of_segments(row: Mapping[str, Any], *, plan: SegmentPlan, parent: Version, manifest: IndexManifest) -> dict[str, Any]:
    """Merge some segments of an earlier version, without what was deleted of them; see `built` for what it returns.

    Args:
        row: `name` of the segment and the `segments` it is made of.
        plan: what all segments share.
        parent: the earlier version.
        manifest: its manifest.
    """

    def merged() -> dict[str, Any]:
        dead = pa.array(read_tombstones(parent, manifest), pa.string())
        return _segment(plan, row["name"], [_alive(parent, manifest, name, dead) for name in row["segments"]])

    return _once(plan, row["name"], merged)


def built(row: Mapping[str, Any]) -> BuiltSegment:
    """Return the segment that a worker tells of."""
    return _BUILT.validate_json(row["json"])


def _once(plan: SegmentPlan, name: str, make: Callable[[], Any]) -> dict[str, Any]:
    """Return what `make` tells, as `json`; what an earlier attempt at this version made is not made again."""
    key = f"{plan.prefix}{MADE}/{name}.json"
    left = plan.store.read_tagged(key)
    return {"json": (left or keep_first(plan.store, key, json.dumps(make()).encode())).data.decode()}


def _segment(plan: SegmentPlan, name: str, pieces: Sequence[tuple[pa.Table, Vectors]]) -> dict[str, Any]:
    table = pa.concat_tables([table for table, _ in pieces], promote_options="permissive")  # columns came and went between appends
    vectors = np.concatenate([vectors for _, vectors in pieces])
    order = pc.sort_indices(table["tile_id"])
    quantiser = None if plan.quantiser is None else plan.store.read(plan.quantiser.key(plan.prefix))
    entry, files = build_segment(name, vectors[order.to_numpy()], table.take(order).combine_chunks(), kind=plan.kind, quantiser=quantiser)
    digests = [share(plan.store, plan.prefix, file, data) for file, data in files.items()]
    told: dict[str, Any] = _BUILT.dump_python(BuiltSegment(entry=entry, files=tuple(digests)), mode="json")
    return told


def _part(embeddings: Version, name: str) -> tuple[pa.Table, Vectors]:
    """Return the rows of a part of an embedding table, with the set that each comes from, and their vectors."""
    table = pq.read_table(io.BytesIO(embeddings.read(name))).replace_schema_metadata(None)
    column, tiles = table["embedding"].combine_chunks(), table.drop_columns(["embedding"])
    sets = pa.repeat(embeddings.manifest["parents"]["set"], len(tiles))  # an index that is appended to has tiles of several
    return tiles.append_column("set", sets), column.flatten().to_numpy().reshape(-1, column.type.list_size)


def _alive(parent: Version, manifest: IndexManifest, name: str, dead: pa.Array) -> tuple[pa.Table, Vectors]:
    """Return the rows of a segment that are not deleted, and their vectors."""
    entry = next(entry for entry in manifest.segments if entry.name == name)
    with tempfile.TemporaryDirectory(prefix="rayjobs-") as cache:
        segment = load_segment(parent, entry, manifest, Path(cache))
        table = pq.read_table(io.BytesIO(parent.read(f"{name}.parquet"))).replace_schema_metadata(None)
        alive = pc.invert(pc.is_in(table["tile_id"], value_set=dead)).to_numpy()
        vectors = segment.vectors_of(np.flatnonzero(alive))
    return table.filter(pa.array(alive)), vectors


def train_quantiser(plan: SegmentPlan, embeddings: Version, count: int, rows: int) -> FileDigest:
    """Train the quantiser of a kind that trains on a sample, and write it; one that an earlier attempt left is taken.

    Args:
        plan: what all segments will share; its `quantiser` is not known yet.
        embeddings: the table to sample.
        count: vectors of the sample.
        rows: vectors in the largest segment.
    """

    def make() -> dict[str, Any]:
        kind = KINDS[plan.kind]
        data = kind.dumped(kind.trained(sample(embeddings, count), rows=rows))
        told: dict[str, Any] = _FILE.dump_python(share(plan.store, plan.prefix, QUANTISER, data), mode="json")
        return told

    return _FILE.validate_json(_once(plan, "quantiser", make)["json"])


def sample(embeddings: Version, count: int, *, seed: int = 0) -> Vectors:
    """Return `count` vectors of an embedding table, or all where there are fewer, from parts all over it: (n, dim) float32."""
    filled = [entry.name for entry in embeddings.files if embeddings.manifest["rows_by_part"][entry.name]]
    parts = [filled[number] for number in np.unique(np.linspace(0, len(filled) - 1, _SAMPLED_PARTS).round().astype(int))]
    ends = np.cumsum([embeddings.manifest["rows_by_part"][name] for name in parts])
    rows = sample_rows(int(ends[-1]), count, seed=seed)
    begins = np.concatenate([[0], ends[:-1]])
    chosen = [rows[(rows >= begin) & (rows < end)] - begin for begin, end in zip(begins, ends, strict=True)]
    return np.concatenate([_part(embeddings, name)[1][of_part] for name, of_part in zip(parts, chosen, strict=True) if len(of_part)])


def measure(version: Version, manifest: IndexManifest, recall: float) -> tuple[Effort, RecallEstimate | None]:
    """Return the least effort that reaches a recall, and what it reaches, on a sample of the vectors of some segments.

    Args:
        version: as it will be published.
        manifest: its manifest; effort and recall are not known yet.
        recall: share of the true ten nearest that shall be found.
    """
    numbers = np.unique(np.linspace(0, len(manifest.segments) - 1, _TUNED_SEGMENTS).round().astype(int))
    with tempfile.TemporaryDirectory(prefix="rayjobs-") as cache:
        segments = [load_segment(version, manifest.segments[number], manifest, Path(cache)) for number in numbers]
        each = -(-_QUERIES // len(segments))
        queries = [segment.vectors_of(sample_rows(segment.rows, each)) for segment in segments]
        return tuned(manifest.kind, segments, np.concatenate(queries), recall=recall)
