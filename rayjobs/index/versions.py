"""What all that writes an index does: keep others out, go on from the current version, publish the next one, sweep."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayjobs.errors import IndexCorruptError, StorageError
from rayjobs.index import stac
from rayjobs.index.build import MADE
from rayjobs.models.spec import ModelSpec
from rayjobs.retrieval.manifest import QUANTISER, TOMBSTONES, IndexManifest, read_index_manifest, read_tombstones, tombstone_bytes
from rayjobs.storage import Artefact, Draft, Lease, Version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.retrieval.manifest import SegmentEntry

ENCODER = ("encoder/model.json", "encoder/model.safetensors")
"""Files of a version, shared by all that have this encoder."""
REMOVED = "removed.parquet"
"""File of a version after compaction: ids of tiles that were deleted and are in no segment any more. `append` does not bring them back."""
FORMAT = 3
"""Raised when the same embeddings, or the same action on the same version, would give another version."""
_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an action on an index tells at its end."""

    action: str
    index: str
    version: str
    """The current version now."""
    parent: str | None
    """The version that it goes on from."""
    kind: str
    encoder_fingerprint: str
    rows: int
    """Tiles that can be found."""
    deleted: int
    """Tiles that are in segments still, and cannot be found."""
    segments: int
    fresh: bool
    """False where nothing had to be done."""
    told: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the action counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A version of an index, and what it says of itself."""

    version: Version
    manifest: IndexManifest

    @classmethod
    def of(cls, version: Version) -> Published:
        """Read the manifest. Raises `IndexCorruptError` where it is not as we write it."""
        address, said = version.store.address(version.prefix), version.manifest
        if not (isinstance(said.get("parents"), dict) and all(isinstance(said.get(key), str) for key in ("name", "build", "created"))):
            raise IndexCorruptError(f"{address} does not say what it was made of; publish the index again with `rayjobs index`")
        return cls(version=version, manifest=read_index_manifest(said, address))

    @property
    def tombstones(self) -> tuple[str, ...]:
        """Ids of deleted tiles that are in segments, sorted."""
        return read_tombstones(self.version, self.manifest)

    @property
    def removed(self) -> tuple[str, ...]:
        """Ids of deleted tiles that compaction took out of the segments, sorted."""
        if all(entry.name != REMOVED for entry in self.version.files):
            return ()
        return tuple(self._ids(REMOVED).to_pylist())

    def ids_of(self, segment: SegmentEntry) -> pa.ChunkedArray:
        """Return the ids of a segment's tiles, deleted ones too: (rows,) text, sorted. Raises `IndexCorruptError`."""
        return self._ids(f"{segment.name}.parquet")

    def _ids(self, name: str) -> pa.ChunkedArray:
        data = self.version.read(name)
        try:
            return pq.read_table(io.BytesIO(data), columns=["tile_id"])["tile_id"].cast(pa.string())
        except (pa.ArrowException, OSError, KeyError) as error:
            raise IndexCorruptError(f"{self.version.store.address(self.version.key(name))} cannot be read ({error}); roll back") from error

    @property
    def spec(self) -> ModelSpec:
        """What the encoder is."""
        return ModelSpec.from_json(self.version.read(ENCODER[0]))

    def shared(self) -> list[str]:
        """Return the names of the files that the next version takes over whatever it changes: the encoder, the quantiser."""
        return [*ENCODER, *([QUANTISER] if self.manifest.quantiser else [])]

    def files_of(self, segments: Sequence[SegmentEntry]) -> list[str]:
        """Return the names of the files of some segments."""
        names = tuple(f"{entry.name}." for entry in segments)
        return [entry.name for entry in self.version.files if entry.name.startswith(names)]

    def result(self, action: str, *, fresh: bool, **told: Any) -> Result:
        """Return what an action that leaves this version current tells."""
        return Result(
            action=action,
            index=str(self.version.manifest["name"]),
            version=self.version.version,
            parent=self.version.manifest["parents"].get("index"),
            kind=self.manifest.kind,
            encoder_fingerprint=self.manifest.encoder_fingerprint,
            rows=self.manifest.stored - self.manifest.deleted,
            deleted=self.manifest.deleted,
            segments=len(self.manifest.segments),
            fresh=fresh,
            told=told,
        )


def newest(index: Artefact) -> Published:
    """Return the current version. Raises `NotFoundError` where there is none yet, `IndexCorruptError` where it is not as we write it."""
    return Published.of(index.require("run `rayjobs index` first"))


@contextmanager
def writing(index: Artefact) -> Iterator[Lease]:
    """Keep other writers of an index out. Raises `PublishConflictError` where a live one holds the lease."""
    with Lease(index.store, f"{index.prefix}lease") as lease:
        yield lease


def name_of(*parts: Any) -> str:
    """Return the name of a version: a digest of all that decides what it holds."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:_DIGITS]


def made_of(table: Version) -> dict[str, str]:
    """Return the `parents` of what is made of an embedding table: `embeddings` and its `set`, both NAME/VERSION."""
    return {"set": table.manifest["parents"]["set"], "embeddings": f"{table.manifest['name']}/{table.version}"}


def as_drafted(draft: Draft) -> Version:
    """Return a version that is being written as its readers will have it."""
    return Version(
        draft.artefact.store, draft.prefix, {"version": draft.version, "files": [dataclasses.asdict(file) for file in draft.files]}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a version holds beside its segments' files."""

    action: str
    """`build`, `append`, `delete` or `compact`."""
    manifest: IndexManifest
    spec: ModelSpec
    """What its encoder is."""
    parents: Mapping[str, Any]
    """`set` and `embeddings` (NAME/VERSION) and `index` (VERSION) that it was made of."""
    build: str
    """Name of the version that was built anew, from which this one descends by the other actions."""
    tombstones: Sequence[str] = ()
    removed: Sequence[str] = ()


def publish(draft: Draft, contents: Contents, experiment: Experiment, lease: Lease, console: Console) -> Published:
    """Write what a version holds beside its segments, make it current, and sweep.

    Args:
        draft: with all segments, the encoder and the quantiser counted in.
        contents: the rest.
        experiment: kept beside it.
        lease: on writing the index.
        console: told where sweeping failed, which is no failure of the action.

    Raises:
        PublishConflictError: another writer made a version current since the draft was begun, or took the lease over.
        StorageError: a file is missing.
    """
    draft.write("experiment.yaml", experiment.to_yaml().encode())
    if contents.tombstones:
        draft.write(TOMBSTONES, tombstone_bytes(contents.tombstones))
    if contents.removed:
        draft.write(REMOVED, tombstone_bytes(contents.removed))
    for name, data in stac.documents(draft, contents.manifest, contents.spec, contents.parents, experiment.tiles).items():
        draft.write(name, data)
    lease.check()
    counts = {"rows": contents.manifest.stored - contents.manifest.deleted, "deleted": contents.manifest.deleted}
    fields = {"parents": dict(contents.parents), "action": contents.action, "build": contents.build, "counts": counts}
    version = draft.publish({**fields, **contents.manifest.fields()})
    sweep(draft.artefact, console)
    return Published.of(version)


def sweep(index: Artefact, console: Console) -> None:
    """Remove what killed writers left; only for the holder of the lease."""
    try:
        left = [key for key in index.sweep() if f"/{MADE}/" not in key]
    except StorageError as error:
        console.say(f"index            caution: files that no version names could not be removed ({error})")
    else:
        if left:
            console.say(f"index            {len(left)} files that an action left that did not come to its end were removed")


def next_segment(manifest: IndexManifest) -> int:
    """Return the number of a segment that is added to a version: one above its greatest.

    No segment of that version has the name, but one of another version may: of one that was rolled back, or of one whose last segment
    compaction dropped.
    """
    return 1 + max(int(entry.name.rpartition("-")[2]) for entry in manifest.segments)


def segment_name(number: int) -> str:
    """Return the name of a segment."""
    return f"segment-{number:05d}"
