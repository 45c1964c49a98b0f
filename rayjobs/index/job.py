"""The driver's side of `rayjobs index`: embed the set, build segments in parallel, publish the version."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from rayjobs.cluster.session import joined, wants_gpu
from rayjobs.embed import job as embed_job
from rayjobs.embed.encoder import chosen_encoder, tell_encoder
from rayjobs.embed.job import embed
from rayjobs.errors import DamagedError, NotFoundError, NoTilesError
from rayjobs.index.build import BuiltSegment, SegmentPlan, built, measure, segment_of_parts, train_quantiser
from rayjobs.index.versions import (
    ENCODER,
    FORMAT,
    Contents,
    Published,
    Result,
    as_drafted,
    made_of,
    name_of,
    publish,
    segment_name,
    writing,
)
from rayjobs.index.workers import OnRay, Workers
from rayjobs.models.checkpoint import from_files
from rayjobs.models.spec import ModelSpec
from rayjobs.retrieval.choice import choose
from rayjobs.retrieval.kinds import KINDS, Effort, sample_size
from rayjobs.retrieval.manifest import IndexManifest
from rayjobs.storage import Artefact, Draft, Lease, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.index.section import IndexSection
    from rayjobs.retrieval.choice import Choice


def preview(experiment: Experiment) -> dict[str, Any]:
    """Return what indexing will take."""
    cost = embed_job.preview(experiment)
    workspace, settings = experiment.open_workspace(), experiment.index
    segments = -(-cost["tiles"] // settings.rows_per_segment)
    table, current = workspace.embeddings().current(), workspace.index.current()
    done = cost["published_already"] and table and current and current.manifest.get("build") == _version_name(settings, table)
    spec = ModelSpec.from_json(chosen_encoder(experiment).read()["model_json"])
    choice = chosen_kind(settings, cost["tiles"], spec)
    return {
        **cost,
        "published_already": bool(done),
        "kind": choice.kind,
        "why": choice.why,
        "segments": segments,
        "memory_per_segment_bytes": 3 * cost["table_bytes"] // max(1, segments),
    }


def run(experiment: Experiment, console: Console) -> Result:
    """Embed the set with the experiment's encoder and publish an index of it."""
    workspace, settings = experiment.open_workspace(), experiment.index
    workspace.store.check()
    source = workspace.set.require("run `rayjobs sample` first")
    chosen = chosen_encoder(experiment)
    tell_encoder(chosen, console, "index")
    if left_out := unassigned(source, settings.splits):
        console.say(f"index            {left_out:,} tiles of no split (astride blocks of several) are left out by index.splits")
    encoder = chosen.read()
    with joined(experiment.ray, workspace=workspace.store.uri, shared=workspace.shared, say=console.say):
        gpu = wants_gpu(experiment.ray)
        table = embed(source, encoder, workspace.embeddings(), console, gpu=gpu, splits=settings.splits, stage="index/embed")
        with writing(workspace.index) as lease:
            done = standing(workspace.index, _version_name(settings, table), console)
            if done is not None:
                return done.result("build", fresh=False)
            building = Building(workspace.index, settings, OnRay(gpu=gpu), console)
            return building.publish(table, encoder, experiment, lease).result("build", fresh=True)


def unassigned(source: Version, splits: Sequence[str] | None) -> int:
    """Return how many tiles of a set are in no split at all, so that an index of some splits (None: of all tiles) lacks them."""
    return 0 if splits is None else int(source.manifest["counts"]["by_split"].get("none", 0))


def _version_name(settings: IndexSection, embeddings: Version) -> str:
    kind = (settings.kind, settings.recall, settings.bytes_per_vector, settings.training_rows)
    return name_of(FORMAT, embeddings.version, settings.rows_per_segment, *kind)


def chosen_kind(settings: IndexSection, rows: int, spec: ModelSpec) -> Choice:
    """Return the kind of index that so many vectors of an encoder want, or that the settings name."""
    kind, recall, most = settings.kind, settings.recall, settings.bytes_per_vector
    return choose(rows, spec.dim, codes=spec.gives_codes, kind=kind, recall=recall, bytes_per_vector=most)


def standing(index: Artefact, build: str, console: Console) -> Published | None:
    """Return the version that a finished build, of the name `build`, has become; make it current if another build is.

    None where there is no such build, or it is damaged.
    """
    current = index.current()
    if current is not None and current.manifest.get("build") == build:
        console.say(f"index            {index.name} {build} of this set and this encoder is published already")
        if current.version != build and build in index.finished():
            console.say(
                f"index            current is {current.version}, which goes on from it; `rayjobs index rollback --to {build}` goes back"
            )
        return Published.of(current)
    try:
        found = Published.of(index.go_back(build))
    except (NotFoundError, DamagedError):
        return None
    console.say(f"index            {index.name} {build} of this set and this encoder was published before, and is current again")
    return found


class Building:
    """Segments of an embedding table, built wherever there are workers, and the version that they make."""

    def __init__(self, index: Artefact, settings: IndexSection, workers: Workers, console: Console) -> None:
        """Name the index, how it is laid out, and who does the work."""
        self._index, self._settings, self._workers, self._console = index, settings, workers, console

    def publish(self, table: Version, encoder: Mapping[str, bytes], experiment: Experiment, lease: Lease) -> Published:
        """Build and publish an index anew.

        Args:
            table: the embeddings.
            encoder: `model_json` and `tensors` of what made them.
            experiment: kept beside it.
            lease: on writing the index.
        """
        draft = self._index.draft(_version_name(self._settings, table))
        groups = list(grouped(table, self._settings.rows_per_segment))
        spec = ModelSpec.from_json(encoder["model_json"])
        choice = chosen_kind(self._settings, sum(group["rows"] for group in groups), spec)
        self._console.say(f"index            kind {choice.kind}: {choice.why}")
        for name, data in zip(ENCODER, (encoder["model_json"], encoder["tensors"]), strict=True):
            draft.share(name, data)
        plan = self._trained(draft, choice.kind, table, max(group["rows"] for group in groups))
        segments = self.segments(draft, functools.partial(segment_of_parts, plan=plan, embeddings=table), groups)
        drawn = IndexManifest(
            encoder_uri="encoder",
            encoder_fingerprint=from_files(**encoder).fingerprint,
            distance="cosine",
            dimension=spec.dim,
            kind=choice.kind,
            why=choice.why,
            effort=Effort(),
            recall=None,
            quantiser=plan.quantiser.sha256 if plan.quantiser else None,
            segments=tuple(segment.entry for segment in segments),
            deleted=0,
        )
        manifest = self.measured(draft, drawn)
        parent = self._index.leads_to()
        parents = {**made_of(table), "index": parent}
        contents = Contents(action="build", manifest=manifest, spec=spec, parents=parents, build=draft.version)
        return publish(draft, contents, experiment, lease, self._console)

    def _trained(self, draft: Draft, kind: str, table: Version, rows: int) -> SegmentPlan:
        """Return what the segments have in common, with the quantiser trained where the kind has one."""
        plan = SegmentPlan(store=draft.artefact.store, prefix=draft.prefix, kind=kind, quantiser=None)
        if not KINDS[kind].trains:
            return plan
        count = self._settings.training_rows or sample_size(rows)
        self._console.say(f"index/train      on a sample of {min(count, table.manifest['counts']['rows']):,} vectors")
        quantiser = self._workers.call(train_quantiser, plan, table, count, rows)
        draft.add([quantiser])
        return dataclasses.replace(plan, quantiser=quantiser)

    def segments(
        self, draft: Draft, make: Callable[[Mapping[str, Any]], dict[str, Any]], rows: Sequence[dict[str, Any]]
    ) -> list[BuiltSegment]:
        """Have one segment made of each row, count its files in, and return them sorted by name."""
        found: list[BuiltSegment] = []
        if not rows:
            return found
        with self._console.stage("index/build", len(rows), "segments") as stage:
            for row in self._workers.map(make, rows):
                segment = built(row)
                found.append(segment)
                draft.add(segment.files)
                stage.advance(1, rows=sum(segment.entry.rows for segment in found))
        return sorted(found, key=lambda segment: segment.entry.name)

    def measured(self, draft: Draft, manifest: IndexManifest) -> IndexManifest:
        """Return a manifest with the effort that reaches the wanted recall, and the estimate of what it reaches."""
        if KINDS[manifest.kind].exact:
            return manifest
        self._console.say(f"index/measure    how hard a search has to try for a recall of {self._settings.recall:g}")
        effort, recall = self._workers.call(measure, as_drafted(draft), manifest, self._settings.recall)
        if recall is not None:
            self._console.say(f"index/measure    recall@{recall.at} {recall.value:.3f} on {recall.queries:,} sample queries")
        return dataclasses.replace(manifest, effort=effort, recall=recall)


def grouped(embeddings: Version, rows_per_segment: int, *, first: int = 0) -> Iterator[dict[str, Any]]:
    """Put consecutive parts of a table together until a segment is full.

    Yields the `name` of each segment, the `parts` that it is made of and its `rows`; names count from `first`.

    Raises:
        NoTilesError: the table is empty.
    """
    counts = [(entry.name, int(embeddings.manifest["rows_by_part"][entry.name])) for entry in embeddings.files]
    groups: list[list[tuple[str, int]]] = []
    for part, rows in ((part, rows) for part, rows in counts if rows):
        if not groups or sum(count for _, count in groups[-1]) + rows > rows_per_segment:
            groups.append([])
        groups[-1].append((part, rows))
    if not groups:
        raise NoTilesError("there is nothing to index: no tile of the set is in index.splits")
    for number, group in enumerate(groups, start=first):
        yield {"name": segment_name(number), "parts": [part for part, _ in group], "rows": sum(rows for _, rows in group)}
