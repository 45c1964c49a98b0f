"""Which versions of a workspace something needs, and why: what is current, young or named by what a run keeps, and all that these name."""

from __future__ import annotations

import datetime
import functools
import json
import posixpath
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rayjobs.errors import ConfigError, DamagedError, IndexCorruptError, NotFoundError
from rayjobs.retrieval.manifest import read_index_manifest
from rayjobs.storage import MANIFEST, REMOVED, Artefact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rayjobs.storage import Store, Version

COLLECTED = ("sets", "features", "embeddings", "indexes", "reports")
"""Kinds of which old versions are removed. Runs and sweeps keep what they can go on from themselves, what people have labelled is never
removed, and the files of fetched imagery may be named by any experiment."""
_OWNERS = ("runs/", "sweeps/")
"""Folders of what is never removed, all of which needs what it names."""
_READERS: dict[str, Callable[[str], Any]] = {
    MANIFEST: json.loads,
    "experiment.yaml": functools.partial(yaml.load, Loader=yaml.CSafeLoader),  # a sweep has hundreds
}
"""Of the files of these that name versions: what they were made of, and begun with."""
_FILE = re.compile(rf"({'|'.join(COLLECTED)})/([^/]+)/([^/]+)/({re.escape(MANIFEST)}|{re.escape(REMOVED)})")
_WORD = re.compile(r"[\w.-]+")
"""What a version is called; it is looked for wherever it stands as a word, alone or in an address. So at worst too much is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A finished version of one of the `COLLECTED` kinds."""

    artefact: Artefact
    version: Version
    current: bool | None
    """None where no version is."""

    @property
    def address(self) -> str:
        """Kind, name and version."""
        return self.version.prefix.rstrip("/")

    @property
    def created(self) -> datetime.datetime | None:
        """When it was made, aware; None where it does not say."""
        try:
            made = datetime.datetime.fromisoformat(self.version.manifest["created"])
        except (KeyError, TypeError, ValueError):
            return None
        return made if made.tzinfo else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What of a workspace is kept, and what is not."""

    unfinished: tuple[Artefact, ...]
    """Those of which a removal was interrupted."""
    kept: Mapping[str, str]
    """Why, by address."""
    removed: tuple[Found, ...]
    bytes: int
    """Of the files that only removed versions name."""


def listed(store: Store) -> list[str]:
    """Return all keys of a workspace. Raises `NotFoundError` where it holds no version of `COLLECTED` kinds."""
    keys = store.list()
    if not any(map(_FILE.fullmatch, keys)):
        raise NotFoundError(f"{store.uri} holds no versions of {', '.join(COLLECTED)}; correct workspace.uri")
    return keys


def planned(store: Store, before: datetime.datetime, keep: Sequence[str] = ()) -> Plan:
    """Return what may be removed of the versions that were made before a moment.

    Args:
        store: the workspace.
        before: aware; younger versions are kept, and what was the newest then, with all that they name.
        keep: names or addresses of versions that are kept, too.

    Raises:
        NotFoundError: there is no version in the workspace.
        ConfigError: there is none of a name that is to be kept.
        DamagedError: a manifest or a pointer cannot be read, so that nobody knows what it names.
        IndexCorruptError: likewise, of a version of an index that is kept.
    """
    keys = listed(store)
    found = list(_survey(store, keys))
    needed = _Needed(found)
    needed.add_roots(list(_roots(found, before, keep)))
    for key in (key for key in keys if key.startswith(_OWNERS) and posixpath.basename(key) in _READERS):
        needed.add_named(_words_of_owner(store, key), posixpath.dirname(key))
    kept = [one for one in found if one.address in needed.why]
    removed = tuple(one for one in found if one.address not in needed.why)
    unfinished = tuple(Artefact(store, kind, name) for kind, name in _versions(keys, REMOVED))
    return Plan(unfinished=unfinished, kept=needed.why, removed=removed, bytes=_bytes(kept, removed))


def _survey(store: Store, keys: Sequence[str]) -> Iterator[Found]:
    """Yield all finished versions."""
    for (kind, name), versions in _versions(keys, MANIFEST).items():
        artefact = Artefact(store, kind, name)
        current = _current(artefact, versions)
        for version in versions:
            yield Found(artefact=artefact, version=artefact.at(version), current=version == current if current else None)


def _versions(keys: Sequence[str], file: str) -> dict[tuple[str, str], list[str]]:
    """Return the versions in whose folders a file lies, by kind and name of their artefact."""
    found = defaultdict[tuple[str, str], list[str]](list)
    for match in filter(None, map(_FILE.fullmatch, keys)):
        kind, name, version, there = match.groups()
        if there == file:
            found[kind, name].append(version)
    return found


def _current(artefact: Artefact, versions: Sequence[str]) -> str | None:
    """Return which of its versions is current. Raises `DamagedError` where the pointer names none of them, or cannot be read."""
    if artefact.store.size(artefact.pointer) is None:
        return None
    current = artefact.leads_to()
    if current not in versions:
        where = artefact.store.address(artefact.pointer)
        raise DamagedError(f"{where} cannot be read or names a version that is not there; make the artefact anew, or remove its folder")
    return current


def _roots(found: Sequence[Found], before: datetime.datetime, keep: Sequence[str]) -> Iterator[tuple[Found, str]]:
    """Yield what is kept whether or not anything names it, and why."""
    if missing := set(keep) - {name for one in found for name in (one.address, one.version.version)}:
        raise ConfigError(f"--keep {min(missing)}: there is no such version; `--dry-run` shows all")
    newest: dict[Artefact, Found] = {}
    for one in found:
        if one.current or one.current is None:
            yield one, "current" if one.current else "beside no current one"
        elif one.version.version in keep or one.address in keep:
            yield one, "--keep"
        elif not _WORD.fullmatch(one.version.version):
            yield one, "of a name that cannot be looked for"
        elif one.created is None or one.created >= before:
            yield one, "young" if one.created else "of unknown age"
        if one.created and one.created < before:
            newest[one.artefact] = max(newest.get(one.artefact, one), one, key=lambda each: (each.created or before, bool(each.current)))
    for one in newest.values():
        # long commands that began with it, and services, may have it still
        yield one, "likely current when the young ones were made"


@dataclass(slots=True)
class _Needed:
    """Grows from what is needed to all that this names."""

    found: Sequence[Found]
    why: dict[str, str] = field(default_factory=dict)
    """By address."""
    _by_version: dict[str, list[Found]] = field(default_factory=lambda: defaultdict(list))
    _sets: dict[str, set[str]] = field(default_factory=dict)
    """Words of the sets of a segment's rows, by the digest of its table."""

    def __post_init__(self) -> None:
        for one in self.found:
            self._by_version[one.version.version].append(one)

    def add_roots(self, roots: Sequence[tuple[Found, str]]) -> None:
        """Keep versions for reasons of their own, which are told rather than that something names them, and what they name."""
        for one, reason in roots:
            self.why.setdefault(one.address, reason)
        for one, _ in roots:
            self.add_named(self._named_by(one), one.address)

    def add(self, one: Found, reason: str) -> None:
        """Keep a version, and what it names."""
        if one.address not in self.why:
            self.why[one.address] = reason
            self.add_named(self._named_by(one), one.address)

    def add_named(self, words: set[str], namer: str) -> None:
        """Keep the versions that some words name."""
        for one in [one for word in words & self._by_version.keys() for one in self._by_version[word]]:
            self.add(one, f"named by {namer}")

    def _named_by(self, one: Found) -> set[str]:
        """Return the words of what a version was made of, and an index shows.

        Of an index's own history that is the version before the current one, which `index rollback` goes back to; if each kept the one
        before it, none would ever go.
        """
        parents = one.version.manifest.get("parents")
        said = dict(parents) if isinstance(parents, dict) else {"": parents}
        if one.artefact.kind == "indexes":
            if not one.current:
                said.pop("index", None)
            return _words(json.dumps(said, ensure_ascii=False)).union(*self._sets_of_rows(one.version))
        return _words(json.dumps(said, ensure_ascii=False))

    def _sets_of_rows(self, version: Version) -> Iterator[set[str]]:
        """Yield the words of the sets whose chips an index's tiles are shown from: one that was appended to has several.

        Raises:
            IndexCorruptError: a segment cannot be read.
        """
        for segment in read_index_manifest(version.manifest, version.store.address(version.prefix)).segments:
            name = f"{segment.name}.parquet"
            digest = version.entry(name).sha256
            if digest not in self._sets:
                self._sets[digest] = _sets_in(version, name)
            yield self._sets[digest]


def _sets_in(version: Version, name: str) -> set[str]:
    data = version.read(name)
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
        texts = table.read(columns=["set"])["set"].unique().to_pylist() if "set" in table.schema_arrow.names else []
    except (pa.ArrowException, OSError) as error:
        where = version.store.address(version.key(name))
        raise IndexCorruptError(f"{where} cannot be read ({error}); roll back, or build the index again") from error
    return _words(" ".join(map(str, texts)))


def _words_of_owner(store: Store, key: str) -> set[str]:
    """Return the words of a document; of one that its owner removed meanwhile, none. Raises `DamagedError` where it is damaged."""
    document = store.read_tagged(key)
    if document is None:
        return set()
    try:
        text = document.data.decode()
        if isinstance(_READERS[posixpath.basename(key)](text), dict):
            return _words(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        pass
    raise DamagedError(f"{store.address(key)} cannot be read, and nobody knows what it names; remove its folder if it is of no use")


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text))


def _bytes(kept: Sequence[Found], removed: Sequence[Found]) -> int:
    staying = {entry.key(one.version.prefix) for one in kept for entry in one.version.files}
    going = {entry.key(one.version.prefix): entry.size for one in removed for entry in one.version.files}
    return sum(size for key, size in going.items() if key not in staying)
