"""Which versions of a workspace something needs, and why: what is current, young or a run's own, and all that these name."""

from __future__ import annotations

import datetime
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from rayjobs.errors import IndexCorruptError, NotFoundError
from rayjobs.retrieval.manifest import read_index_manifest
from rayjobs.storage import Artefact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rayjobs.storage import Store, Version

COLLECTED = ("sets", "features", "embeddings", "indexes", "reports")
"""Kinds of which old versions are removed. Runs and sweeps keep what they can go on from themselves, what people have labelled is never
removed, and the files of fetched imagery may be named by any experiment."""
_KINDS = {"set": "sets", "embeddings": "embeddings", "index": "indexes"}
"""Kinds of what the `parents` of a manifest name, by their keys; others are never removed, or are files."""
_CURRENT, _MANIFEST = "/CURRENT", "/manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A finished version of a workspace."""

    artefact: Artefact
    version: Version
    current: bool

    @property
    def address(self) -> str:
        """Kind, name and version."""
        return self.version.prefix.rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What of a workspace is kept, and what is not."""

    artefacts: tuple[Artefact, ...]
    """All of `COLLECTED` kinds."""
    kept: dict[str, str]
    """Why, by address of a version of these."""
    removed: tuple[Found, ...]
    bytes: int
    """Of the files that only removed versions name."""


def planned(store: Store, before: datetime.datetime) -> Plan:
    """Return what may be removed of the versions that were made before a moment.

    Args:
        store: the workspace.
        before: aware; younger versions are kept, with all that they name.

    Raises:
        NotFoundError: there is nothing in the workspace.
        DamagedError: a manifest or a pointer cannot be read, so that nobody knows what it names.
        IndexCorruptError: likewise, of a version of an index that is kept.
    """
    found = list(_survey(store))
    if not found:
        raise NotFoundError(f"{store.uri} holds no versions; correct workspace.uri")
    why = _needed(found, before)
    collected = [one for one in found if one.artefact.kind in COLLECTED]
    removed = tuple(one for one in collected if one.address not in why)
    kept = {one.address: why[one.address] for one in collected if one.address in why}
    return Plan(
        artefacts=tuple(dict.fromkeys(one.artefact for one in collected)),
        kept=kept,
        removed=removed,
        bytes=_bytes([one for one in found if one.address in why], removed),
    )


def _survey(store: Store) -> Iterator[Found]:
    """Yield all finished versions of artefacts that have a current one."""
    keys = store.list()
    versions = defaultdict[str, list[str]](list)
    for key in keys:
        if key.endswith(_MANIFEST):
            folder, _, version = key.removesuffix(_MANIFEST).rpartition("/")
            versions[folder].append(version)
    for key in keys:
        if key.endswith(_CURRENT):
            kind, _, name = (folder := key.removesuffix(_CURRENT)).rpartition("/")
            artefact = Artefact(store, kind, name)
            current = artefact.current()
            for version in versions[folder]:
                is_current = current is not None and version == current.version
                yield Found(artefact=artefact, version=artefact.at(version), current=is_current)


def _needed(found: Sequence[Found], before: datetime.datetime) -> dict[str, str]:
    """Return why versions are needed, by address."""
    why = {one.address: reason for one in found if (reason := _own_reason(one, before))}
    by_name = defaultdict[str, list[Found]](list)
    for one in found:
        kind, version = one.artefact.kind, one.version.version
        by_name[f"{kind}/{one.artefact.name}/{version}"].append(one)
        by_name[f"{kind}/{version}"].append(one)  # some manifests name the version alone
    waiting = [one for one in found if one.address in why]
    while waiting:
        namer = waiting.pop()
        for named in [one for name in _names(namer) for one in by_name[name] if one.address not in why]:
            why[named.address] = f"named by {namer.address}"
            waiting.append(named)
    return why


def _own_reason(one: Found, before: datetime.datetime) -> str | None:
    """Return why a version is kept whether or not others name it; None where only that would keep it."""
    if one.artefact.kind not in COLLECTED:
        return "kept by its owner"
    if one.current:
        return "current"
    try:
        young = datetime.datetime.fromisoformat(one.version.manifest["created"]) >= before
    except (KeyError, TypeError, ValueError):
        return "of unknown age"
    return "young" if young else None


def _names(one: Found) -> set[str]:
    """Return what a version needs, as kind and version with or without a name between.

    Of an index's own history that is the version before the current one, which `index rollback` goes back to; if each kept the one before
    it, none would ever go.
    """
    parents = one.version.manifest.get("parents")
    is_index = one.artefact.kind == "indexes"
    named = {
        f"{_KINDS[key]}/{value}"
        for key, value in (parents if isinstance(parents, dict) else {}).items()
        if key in _KINDS and isinstance(value, str) and (key != "index" or not is_index or one.current)
    }
    return named | {f"sets/{text}" for text in _sets_of_rows(one.version)} if is_index else named


def _sets_of_rows(version: Version) -> set[str]:
    """Return the sets, as NAME/VERSION, whose chips the tiles of an index are shown from: an index that was appended to has several."""
    found = set[str]()
    for segment in read_index_manifest(version.manifest, version.store.address(version.prefix)).segments:
        name = f"{segment.name}.parquet"
        try:
            table = pq.ParquetFile(pa.BufferReader(version.read(name)))
            if "set" in table.schema_arrow.names:
                found |= set(table.read(columns=["set"])["set"].unique().to_pylist())
        except pa.ArrowException as error:
            where = version.store.address(version.key(name))
            raise IndexCorruptError(f"{where} cannot be read ({error}); roll back, or build the index again") from error
    return found


def _bytes(kept: Sequence[Found], removed: Sequence[Found]) -> int:
    staying = {entry.key(one.version.prefix) for one in kept for entry in one.version.files}
    going = {entry.key(one.version.prefix): entry.size for one in removed for entry in one.version.files}
    return sum(size for key, size in going.items() if key not in staying)
