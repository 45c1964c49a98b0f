"""Versioned artefacts: `<kind>/<name>/<version>/` with a manifest written last, and a `CURRENT` pointer beside the versions.

A version is written aside under a name of its own, checked, and made current by one conditional write. Readers follow
`CURRENT`, so they see the old version or the new one, never a half; two writers cannot both win.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayjobs.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rayjobs.storage.stores import Store


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of a version."""

    name: str
    """Relative to the version's folder."""
    sha256: str
    """Hexadecimal."""
    size: int
    """Bytes."""


def digest_of(name: str, data: bytes) -> FileDigest:
    """Return the digest of a file's bytes."""
    return FileDigest(name, hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True, slots=True)
class Version:
    """A published version: where it lies and what its manifest says."""

    store: Store
    """The workspace."""
    prefix: str
    """The version's folder in the workspace, ending in `/`."""
    manifest: Mapping[str, Any]
    """`kind`, `name`, `version`, `created`, `files`, and what the writer added: `parents`, `counts`, ..."""

    @property
    def version(self) -> str:
        """The version's name."""
        return str(self.manifest["version"])

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """The files of this version, in the order of the manifest."""
        return tuple(FileDigest(**entry) for entry in self.manifest["files"])

    def read(self, name: str) -> bytes:
        """Return a file's bytes after comparing them with the manifest.

        Raises:
            NotFoundError: the manifest names no such file.
            StorageError: the bytes differ from the manifest's digest.
        """
        entry = next((entry for entry in self.files if entry.name == name), None)
        if entry is None:
            raise NotFoundError(f"{self.store.address(self.prefix)} has no file {name!r}")
        return verified(self.store.read(self.prefix + name), entry, self.store.address(self.prefix + name))


def verified(data: bytes, entry: FileDigest, address: str) -> bytes:
    """Return `data` if it is what the manifest says.

    Raises:
        StorageError: it is not.
    """
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise StorageError(f"{address} differs from its manifest; it was altered or cut short: publish it again")
    return data


@dataclass(slots=True)
class Draft:
    """A version being written. Nothing reads it until `publish`."""

    artefact: Artefact
    version: str
    base: str | None
    """Tag of `CURRENT` when this draft was begun: what `publish` expects to find still."""
    _files: dict[str, FileDigest] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The version's folder in the workspace, ending in `/`."""
        return f"{self.artefact.prefix}{self.version}/"

    def write(self, name: str, data: bytes) -> FileDigest:
        """Write one file of the version."""
        self.artefact.store.write(self.prefix + name, data)
        entry = digest_of(name, data)
        self._files[name] = entry
        return entry

    def upload(self, name: str, path: Path) -> FileDigest:
        """Write one file of the version from a local file."""
        self.artefact.store.upload(self.prefix + name, path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        entry = FileDigest(name, sha256, path.stat().st_size)
        self._files[name] = entry
        return entry

    def add(self, entries: Iterable[FileDigest]) -> None:
        """Count in files that other processes wrote into this version."""
        self._files |= {entry.name: entry for entry in entries}

    def publish(self, fields: Mapping[str, Any]) -> Version:
        """Check that all files are there, write the manifest, and make this version current.

        Raises:
            StorageError: a file is missing or of another size.
            PublishConflictError: another writer published since this draft was begun.
        """
        store = self.artefact.store
        for entry in self._files.values():
            found = store.size(self.prefix + entry.name)
            if found != entry.size:
                raise StorageError(f"{store.address(self.prefix + entry.name)} has {found} bytes instead of {entry.size}; not published")
        manifest = {
            "kind": self.artefact.kind,
            "name": self.artefact.name,
            "version": self.version,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **fields,
            "files": [dataclasses.asdict(self._files[name]) for name in sorted(self._files)],
        }
        store.write(f"{self.prefix}manifest.json", json.dumps(manifest, indent=1).encode())
        store.swap(self.artefact.pointer, json.dumps({"version": self.version}).encode(), expected=self.base)
        return Version(store, self.prefix, manifest)


@dataclass(frozen=True, slots=True)
class Artefact:
    """All versions of one thing in a workspace."""

    store: Store
    kind: str
    """`sets`, `embeddings`, `indexes`, or `runs/<run>` for what belongs to a run."""
    name: str

    @property
    def prefix(self) -> str:
        """The folder of all versions, ending in `/`."""
        return f"{self.kind}/{self.name}/"

    @property
    def pointer(self) -> str:
        """The key of the pointer to the current version."""
        return f"{self.prefix}CURRENT"

    def draft(self, version: str) -> Draft:
        """Begin, or take up again, the version of that name."""
        pointer = self.store.read_tagged(self.pointer)
        return Draft(self, version, pointer.tag if pointer else None)

    def at(self, version: str) -> Version:
        """Return a version by name. Raises `NotFoundError` where it is not finished."""
        prefix = f"{self.prefix}{version}/"
        return Version(self.store, prefix, json.loads(self.store.read(f"{prefix}manifest.json")))

    def current(self) -> Version | None:
        """Return the current version, or None before the first."""
        pointer = self.store.read_tagged(self.pointer)
        return self.at(json.loads(pointer.data)["version"]) if pointer else None

    def require(self, remedy: str) -> Version:
        """Return the current version; `remedy` says which command makes one.

        Raises:
            NotFoundError: nothing was published yet.
        """
        version = self.current()
        if version is None:
            raise NotFoundError(f"{self.store.address(self.prefix)} holds nothing yet; {remedy}")
        return version
