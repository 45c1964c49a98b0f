"""Versioned artefacts: `<kind>/<name>/<version>/` with a manifest written last, and a `CURRENT` pointer beside the versions.

A version is written aside under a name of its own, checked, and made current by one conditional write. Readers follow
`CURRENT`, so they see the old version or the new one, never a half; two writers cannot both win.

Versions named after what they are made of may be written by two commands at once. So no file is ever overwritten: the first
bytes under a name stay there, other bytes for it go under their digest, and of two manifests the first stands.

Large files that many versions have in common lie once, in the folder `shared` beside the versions, under their digest.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayjobs.errors import DamagedError, NotFoundError, PublishConflictError, StorageError
from rayjobs.storage.stores import Tagged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from rayjobs.storage.stores import Store


_DEPTH = 2
"""Parts of a manifest's key below the artefact: the version and the file."""
MANIFEST = "manifest.json"
"""File of a version; without it a version is not finished."""
_SHARED = "shared"
"""Folder beside the versions: no version can have this name."""
_MOST_BYTES = 2**63
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of a version."""

    name: str
    """Relative to the version's folder."""
    sha256: str
    """Hexadecimal."""
    size: int
    """Bytes."""
    path: str = ""
    """Where it lies, relative to the version's folder, if not under its name: see `deposit`."""
    shared: bool = False
    """Whether it lies beside the versions, for all of them: see `share`. Where, its digest and its name say."""

    def __post_init__(self) -> None:
        """Refuse a file that would lie elsewhere: manifests are read from places where others may write."""
        for part in (self.name, self.path or self.name):
            if part != posixpath.normpath(part) or part.startswith(("/", "..")) or part == "." or set(part) & {"\\", "\0"}:
                raise ValueError(f"{part!r} is no name of a file of a version")
        if not isinstance(self.sha256, str) or not isinstance(self.size, int) or not 0 <= self.size < _MOST_BYTES:
            raise ValueError(f"{self.name!r} has no digest or no size")
        if self.shared and (self.path or not _SHA256.fullmatch(self.sha256)):
            raise ValueError(f"{self.name!r} is shared, so that its sha256, and no path, says where it lies")

    @property
    def location(self) -> str:
        """Where it lies, relative to the version's folder."""
        return f"../{_SHARED}/{self.sha256}/{self.name}" if self.shared else self.path or self.name

    def key(self, prefix: str) -> str:
        """Return where it lies in the workspace; `prefix` is the version's folder, ending in `/`."""
        return posixpath.normpath(prefix + self.location)


def digest_of(name: str, data: bytes) -> FileDigest:
    """Return the digest of a file's bytes."""
    return FileDigest(name, hashlib.sha256(data).hexdigest(), len(data))


def keep_first(store: Store, key: str, data: bytes) -> Tagged:
    """Write an object only where there is none, and return what lies there then: `data`, or what another writer put there first.

    For parts that any worker may make, and that are equally good whoever made them: take the answer, not what was offered.

    Raises:
        PublishConflictError: the object of the other writer was removed at once.
    """
    try:
        return Tagged(data, store.swap(key, data, expected=None))
    except PublishConflictError:
        # a refusal may also be the second answer to a write that arrived, whose first answer was lost
        found = store.read_tagged(key)
        if found is None:
            raise
        return found


def deposit(store: Store, prefix: str, name: str, data: bytes) -> FileDigest:
    """Write one file of a version and overwrite nothing: where other bytes have the name, these go under their digest.

    Args:
        store: the workspace.
        prefix: the version's folder, ending in `/`.
        name: relative to that folder.
        data: exactly these bytes, whatever another writer or a broken-off attempt left there.
    """
    entry = digest_of(name, data)
    if keep_first(store, prefix + name, data).data == data:
        return entry
    aside = dataclasses.replace(entry, path=_by_digest(entry))
    store.write(prefix + aside.path, data)
    return aside


def share(store: Store, prefix: str, name: str, data: bytes) -> FileDigest:
    """Write one file beside the versions, where all of them may name it without a copy; `Draft.adopt` does.

    Args:
        store: the workspace.
        prefix: folder of the version that is being written, ending in `/`.
        name: of the file in that version.
        data: its bytes.
    """
    entry = dataclasses.replace(digest_of(name, data), shared=True)
    key = entry.key(prefix)
    if keep_first(store, key, data).data != data:  # what lies under a digest and has another is damaged
        store.write(key, data)
    return entry


def _by_digest(entry: FileDigest) -> str:
    return f"by-digest/{entry.sha256}/{entry.name}"


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

    def key(self, name: str) -> str:
        """Return where a file lies in the workspace. Raises `NotFoundError` where the manifest names no such file."""
        return self.entry(name).key(self.prefix)

    def entry(self, name: str) -> FileDigest:
        """Return what the manifest says of a file.

        Raises:
            NotFoundError: the manifest names no such file.
        """
        entry = next((entry for entry in self.files if entry.name == name), None)
        if entry is None:
            raise NotFoundError(f"{self.store.address(self.prefix)} has no file {name!r}")
        return entry

    def read(self, name: str) -> bytes:
        """Return a file's bytes after comparing them with the manifest.

        Raises:
            NotFoundError: the manifest names no such file, or it is gone.
            DamagedError: the bytes differ from the manifest's digest.
        """
        entry = self.entry(name)
        key = entry.key(self.prefix)
        return verified(self.store.read(key), entry, self.store.address(key))

    def damage(self) -> str | None:
        """Return what is wrong with the files, of which every byte is read; None where all are what the manifest says.

        Raises:
            StorageError: storage cannot be asked, which says nothing of the files.
        """
        for entry in self.files:
            try:
                self.read(entry.name)
            except (NotFoundError, DamagedError) as error:
                return str(error)
        return None

    def holds(self, entry: FileDigest) -> bool:
        """Whether the file of an entry is there, and is what the entry says."""
        found = self.store.read_tagged(entry.key(self.prefix))
        return found is not None and hashlib.sha256(found.data).hexdigest() == entry.sha256


def verified(data: bytes, entry: FileDigest, address: str) -> bytes:
    """Return `data` if it is what the manifest says.

    Raises:
        DamagedError: it is not.
    """
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedError(f"{address} differs from its manifest; it was altered or cut short: publish it again")
    return data


def parsed(store: Store, prefix: str, data: bytes) -> Version | None:
    """Return the version of a manifest's bytes, or None where they are none of a manifest."""
    try:
        manifest = json.loads(data)
        found = Version(store, prefix, manifest)
        _ = found.version, found.files
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return found


def _pointing_to(version: str) -> bytes:
    return json.dumps({"version": version}).encode()


def _pointed_to(data: bytes) -> str | None:
    """Return the version that a pointer's bytes name, or None where they are none of a pointer."""
    try:
        return str(json.loads(data)["version"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _lacking(store: Store, prefix: str, entries: Iterable[FileDigest]) -> str | None:
    """Return which file of a version is gone or of another size; None where there is none."""
    for entry in entries:
        key = entry.key(prefix)
        found = store.size(key)
        if found != entry.size:
            return f"{store.address(key)} has {found} bytes instead of {entry.size}"
    return None


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

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """The files counted in so far, by name."""
        return tuple(self._files[name] for name in sorted(self._files))

    def write(self, name: str, data: bytes) -> FileDigest:
        """Write one file of the version; `deposit` says where."""
        entry = deposit(self.artefact.store, self.prefix, name, data)
        self._files[name] = entry
        return entry

    def upload(self, name: str, path: Path) -> FileDigest:
        """Write one file of the version from a local file, always under its digest, since large files are not written conditionally."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        entry = FileDigest(name, sha256, path.stat().st_size)
        entry = dataclasses.replace(entry, path=_by_digest(entry))
        self.artefact.store.upload(self.prefix + entry.path, path)
        self._files[name] = entry
        return entry

    def share(self, name: str, data: bytes) -> FileDigest:
        """Write one file of the version where later versions can name it, too."""
        entry = share(self.artefact.store, self.prefix, name, data)
        self._files[name] = entry
        return entry

    def add(self, entries: Iterable[FileDigest]) -> None:
        """Count in files that other processes wrote into this version by `keep_first`, `deposit` or `share`."""
        self._files |= {entry.name: entry for entry in entries}

    def adopt(self, parent: Version, names: Iterable[str]) -> None:
        """Count in shared files of another version of the artefact; no byte is copied.

        Raises:
            NotFoundError: the parent has no such file.
            ValueError: it has, but in its own folder; a version names no file in the folder of another.
        """
        entries = [parent.entry(name) for name in names]
        if own := [entry.name for entry in entries if not entry.shared]:
            raise ValueError(f"{parent.prefix} does not share {own}")
        self.add(entries)

    def publish(self, fields: Mapping[str, Any]) -> Version:
        """Check that all files are there, write the manifest, and make this version current.

        A published version never changes. Where another writer published this one first, that stands and is returned, whatever
        `fields` and files were offered here; only if its own files are damaged is it replaced.

        Raises:
            StorageError: a file is missing or of another size.
            PublishConflictError: another version was made current since this draft was begun.
        """
        if lacking := _lacking(self.artefact.store, self.prefix, self._files.values()):
            raise StorageError(f"{lacking}; not published")
        manifest = {
            "kind": self.artefact.kind,
            "name": self.artefact.name,
            "version": self.version,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **fields,
            "files": [dataclasses.asdict(entry) for entry in self.files],
        }
        version = self._settle(json.dumps(manifest, indent=1).encode())
        self._make_current()
        return version

    def _settle(self, manifest: bytes) -> Version:
        """Return the version that stands under this name: with our manifest, or with one that was there and can be read."""
        store, key = self.artefact.store, f"{self.prefix}{MANIFEST}"
        found = keep_first(store, key, manifest)
        standing = parsed(store, self.prefix, found.data)
        # what we wrote or met ourselves need not be read again
        if standing and (
            found.data == manifest or all(entry == self._files.get(entry.name) or standing.holds(entry) for entry in standing.files)
        ):
            return standing
        store.swap(key, manifest, expected=found.tag)
        return Version(store, self.prefix, json.loads(manifest))

    def _make_current(self) -> None:
        store, key = self.artefact.store, self.artefact.pointer
        try:
            store.swap(key, _pointing_to(self.version), expected=self.base)
        except PublishConflictError as error:
            leads_to = self.artefact.leads_to()
            if leads_to != self.version:
                raise PublishConflictError(
                    f"{store.address(key)} was changed to {leads_to} while {self.version} was written, which is whole and stays; "
                    "run the command again to make it current"
                ) from error


@dataclass(frozen=True, slots=True)
class Artefact:
    """All versions of one thing in a workspace."""

    store: Store
    kind: str
    """`sets`, `features`, `embeddings`, `indexes`, or `runs/<run>` for what belongs to a run."""
    name: str

    @property
    def prefix(self) -> str:
        """The folder of all versions, ending in `/`."""
        return f"{self.kind}/{self.name}/"

    @property
    def pointer(self) -> str:
        """The key of the pointer to the current version."""
        return f"{self.prefix}CURRENT"

    def draft(self, version: str, *, after: Version | None = None) -> Draft:
        """Begin, or take up again, the version of that name.

        Args:
            version: its name.
            after: the version that it goes on from, which must be current still.

        Raises:
            PublishConflictError: another one than `after` was made current.
        """
        pointer = self.store.read_tagged(self.pointer)
        leads_to = _pointed_to(pointer.data) if pointer else None
        if after is not None and leads_to != after.version:
            raise PublishConflictError(f"{self.store.address(self.pointer)} was changed to {leads_to}; run the command again")
        return Draft(self, version, pointer.tag if pointer else None)

    def go_back(self, version: str) -> Version:
        """Make a finished version current again, whose files all are there, and return it.

        Raises:
            NotFoundError: there is no such version.
            DamagedError: its manifest cannot be read, or a file is gone or of another size.
            PublishConflictError: another writer was faster.
        """
        pointer = self.store.read_tagged(self.pointer)
        found = self.at(version)
        if lacking := _lacking(self.store, found.prefix, found.files):
            raise DamagedError(f"{lacking}; choose another version")
        self.store.swap(self.pointer, _pointing_to(version), expected=pointer.tag if pointer else None)
        return found

    def sweep(self) -> list[str]:
        """Remove what no finished version names, which killed writers left, and return its keys.

        Only for artefacts whose writers keep each other out by a lease, and only for its holder: the files of a version that is being
        written are such, too.
        """
        keys = [key for key in self.store.list(self.prefix) if "/" in key.removeprefix(self.prefix)]
        versions = [self.at(name) for name in self.finished()]
        kept = {f"{version.prefix}{MANIFEST}" for version in versions}
        kept |= {entry.key(version.prefix) for version in versions for entry in version.files}
        left = [key for key in keys if key not in kept]
        for key in left:
            self.store.delete(key)
        self.store.sweep(self.prefix)
        return left

    def at(self, version: str) -> Version:
        """Return a version by name. Raises `NotFoundError` where it is not finished, `DamagedError` where its manifest cannot be read."""
        prefix = f"{self.prefix}{version}/"
        found = parsed(self.store, prefix, self.store.read(f"{prefix}{MANIFEST}"))
        if found is None or found.version != version:
            raise DamagedError(
                f"{self.store.address(prefix + MANIFEST)} cannot be read; it was altered, copied or cut short: publish it again"
            )
        return found

    def leads_to(self) -> str | None:
        """Return the name of the current version; None before the first, and where the pointer cannot be read."""
        pointer = self.store.read_tagged(self.pointer)
        return _pointed_to(pointer.data) if pointer else None

    def current(self) -> Version | None:
        """Return the current version, or None before the first. Raises `DamagedError` where the pointer cannot be read."""
        pointer = self.store.read_tagged(self.pointer)
        if pointer is None:
            return None
        name = _pointed_to(pointer.data)
        if name is None:
            raise DamagedError(f"{self.store.address(self.pointer)} cannot be read; it was altered or cut short: publish a version again")
        return self.at(name)

    def finished(self) -> list[str]:
        """Return the sorted names of all versions that have a manifest."""
        return self.having(MANIFEST)

    def having(self, file: str) -> list[str]:
        """Return the sorted names of the folders of versions in which a file of that name lies."""
        keys = (key.removeprefix(self.prefix).split("/") for key in self.store.list(self.prefix))
        return sorted(parts[0] for parts in keys if len(parts) == _DEPTH and parts[1] == file)

    def newest_sound(
        self, say: Callable[[str], None], last: str | None = None, *, unfit: Callable[[Version], str | None] = lambda _: None
    ) -> Version | None:
        """Return the last version, in the order of names, whose files all are what its manifest says; None where there is none.

        Damaged and unfit versions after it are said, lose their manifest, so that they can be published again, and are current no more.

        Args:
            say: told of each such version, in one line.
            last: name of the last version that may be returned.
            unfit: asked of each whole version why it cannot be used all the same; None where it can.

        Raises:
            StorageError: storage cannot be asked.
        """
        names = [name for name in self.finished() if last is None or name <= last]
        for name in reversed(names):
            fault = self._fault(name, unfit)
            if fault is None:
                if last is None:
                    self._lead_to(name)
                return self.at(name)
            before = next((other for other in reversed(names) if other < name), None)
            say(f"{self.kind}/{self.name}/{name} {fault}; {f'{before} before it' if before else 'nothing'} is taken")
            self._withdraw(name, before)
        return None

    def _fault(self, name: str, unfit: Callable[[Version], str | None]) -> str | None:
        """Return what is wrong with a version, as the rest of a sentence; None where it can be used."""
        try:
            version = self.at(name)
            damage = version.damage()
            reason = None if damage else unfit(version)
        except (NotFoundError, DamagedError) as error:
            damage, reason = str(error), None
        if damage:
            return f"is damaged ({damage})"
        return f"cannot be used ({reason})" if reason else None

    def _lead_to(self, name: str) -> None:
        """Make a version current where a pointer that was not switched in time, or is damaged, leads elsewhere."""
        pointer = self.store.read_tagged(self.pointer)
        if self.leads_to() != name:
            self.store.swap(self.pointer, _pointing_to(name), expected=pointer.tag if pointer else None)

    def _withdraw(self, name: str, before: str | None) -> None:
        pointer = self.store.read_tagged(self.pointer)
        if pointer and self.leads_to() in {name, None}:
            if before is None:
                self.store.delete(self.pointer)
            else:
                self.store.swap(self.pointer, _pointing_to(before), expected=pointer.tag)
        self.store.delete(f"{self.prefix}{name}/{MANIFEST}")

    def require(self, remedy: str) -> Version:
        """Return the current version; `remedy` says which command makes one.

        Raises:
            NotFoundError: nothing was published yet.
        """
        version = self.current()
        if version is None:
            raise NotFoundError(f"{self.store.address(self.prefix)} holds nothing yet; {remedy}")
        return version
