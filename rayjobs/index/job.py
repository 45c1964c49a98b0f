"""The driver's side of `rayjobs index`: embed the set, build segments in parallel, publish the version."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray.data

from rayjobs.cluster.session import joined, wants_gpu
from rayjobs.embed import job as embed_job
from rayjobs.embed.job import embed, encoder_files, newest_checkpoint, tell_encoder
from rayjobs.errors import NoTilesError
from rayjobs.index.build import BuildPlan, write_segment
from rayjobs.models.checkpoint import from_files
from rayjobs.retrieval.manifest import IndexManifest, SegmentEntry
from rayjobs.storage import FileDigest, Version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment

_FORMAT = 1
"""Raised when the same embeddings would give another index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs index` tells at its end."""

    index: str
    version: str
    encoder_fingerprint: str
    rows: int
    segments: int
    fresh: bool
    """False where the version was published already."""


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what indexing will take."""
    cost = embed_job.preview(experiment)
    workspace = experiment.open_workspace()
    segments = -(-cost["tiles"] // experiment.index.rows_per_segment)
    table, current = workspace.embeddings().current(), workspace.index.current()
    done = cost["published_already"] and table and current and current.version == _version_name(experiment, table)
    return {
        **cost,
        "published_already": bool(done),
        "segments": segments,
        "memory_per_segment_bytes": 2 * cost["table_bytes"] // max(1, segments),
    }


def run(experiment: Experiment, console: Console) -> Result:
    """Embed the set with the newest checkpoint and publish an index of it."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    checkpoint = newest_checkpoint(experiment)
    encoder = encoder_files(checkpoint)
    tell_encoder(experiment, checkpoint, console, "index")
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
        gpu = wants_gpu(experiment.ray)
        embeddings = embed(source, encoder, workspace.embeddings(), console, gpu=gpu, splits=experiment.index.splits, stage="index/embed")
        digest = _version_name(experiment, embeddings)
        current = workspace.index.current()
        if current and current.version == digest:
            console.say(f"index            {workspace.index.name} {digest} of this set and this checkpoint is published already")
            return _result(current, fresh=False)
        version = _build(experiment, embeddings, encoder, digest, console)
    return _result(version, fresh=True)


def _version_name(experiment: Experiment, embeddings: Version) -> str:
    return hashlib.sha256(f"{_FORMAT} {embeddings.version} {experiment.index.rows_per_segment}".encode()).hexdigest()[:16]


def _build(experiment: Experiment, embeddings: Version, encoder: Mapping[str, bytes], digest: str, console: Console) -> Version:
    workspace = experiment.open_workspace()
    draft = workspace.index.draft(digest)
    plan = BuildPlan(store=workspace.store, prefix=draft.prefix, embeddings=embeddings)
    groups = list(_groups(embeddings, experiment.index.rows_per_segment))
    segments: list[SegmentEntry] = []
    with console.stage("index/build", len(groups), "segments") as stage:
        building = ray.data.from_items(groups, override_num_blocks=len(groups)).map(functools.partial(write_segment, plan=plan), num_cpus=1)
        for report in building.iter_rows():
            segments.append(SegmentEntry(**report["entry"]))
            draft.add(FileDigest(**entry) for entry in report["digests"])
            stage.advance(1, rows=sum(segment.rows for segment in segments))
    loaded = from_files(**encoder)
    draft.write("encoder/model.json", encoder["model_json"])
    draft.write("encoder/model.safetensors", encoder["tensors"])
    draft.write("experiment.yaml", experiment.to_yaml().encode())
    manifest = IndexManifest(
        encoder_uri="encoder",
        encoder_fingerprint=loaded.fingerprint,
        distance="cosine",
        dimension=loaded.spec.dim,
        quantiser=None,
        segments=tuple(sorted(segments, key=lambda segment: segment.name)),
        tombstones=(),
    )
    parents = {"set": embeddings.manifest["parents"]["set"], "embeddings": embeddings.version, "index": _parent(workspace.index.current())}
    return draft.publish({"parents": parents, "counts": {"rows": sum(segment.rows for segment in segments)}, **manifest.fields()})


def _parent(current: Version | None) -> str | None:
    return current.version if current else None


def _groups(embeddings: Version, rows_per_segment: int) -> Iterator[dict[str, Any]]:
    """Put consecutive parts together until a segment is full."""
    parts: list[str] = []
    rows = number = 0
    for entry in embeddings.files:
        count = embeddings.manifest["rows_by_part"][entry.name]
        if count == 0:
            continue
        if parts and rows + count > rows_per_segment:
            yield {"name": f"segment-{number:05d}", "parts": parts}
            parts, rows, number = [], 0, number + 1
        parts, rows = [*parts, entry.name], rows + count
    if not parts:
        raise NoTilesError("there is nothing to index: no tile of the set is in index.splits")
    yield {"name": f"segment-{number:05d}", "parts": parts}


def _result(version: Version, *, fresh: bool) -> Result:
    index = version.manifest["index"]
    return Result(
        index=version.manifest["name"],
        version=version.version,
        encoder_fingerprint=index["encoder_fingerprint"],
        rows=version.manifest["counts"]["rows"],
        segments=len(index["segments"]),
        fresh=fresh,
    )
