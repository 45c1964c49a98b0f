"""The seam to storage: `Store`, and its form on a file system."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import urllib.parse
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rayjobs.errors import ConfigError, NotFoundError, PublishConflictError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator


_PARTIAL, _LOCK = ".partial", ".lock"


class Tagged(NamedTuple):
    """An object's bytes and the tag that `Store.swap` compares."""

    data: bytes
    tag: str


class Store(Protocol):
    """Whole objects under a root URI; pickles as its URI, so that it may travel to any worker.

    Keys are relative, `/`-separated. Writing is atomic: a reader sees the old object or the new one.
    """

    @property
    def uri(self) -> str:
        """The root, without a trailing slash."""

    def address(self, key: str) -> str:
        """Return the full URI of a key."""

    def check(self, setting: str = "workspace.uri") -> None:
        """Raise `StorageError` where the bucket is missing or access is refused, `ConfigError` where a file is in the folder's place.

        Asked once, before long work. `setting` is what named the place, and what one corrects.
        """

    def read(self, key: str) -> bytes:
        """Return an object. Raises `NotFoundError`."""

    def read_tagged(self, key: str) -> Tagged | None:
        """Return an object with its tag, or None where there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all."""

    def swap(self, key: str, data: bytes, *, expected: str | None) -> str:
        """Write an object only if its tag is still `expected` (None: only if there is none), and return the new tag.

        Raises `PublishConflictError` if another writer was first.
        """

    def upload(self, key: str, path: Path) -> None:
        """Write a local file as an object, whole or not at all."""

    def fetch(self, key: str, directory: Path) -> Path:
        """Return a local file with the object's bytes: the file itself where it is local, else a copy in `directory`."""

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, or None where there is none."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted keys that begin with `prefix`."""

    def delete(self, key: str) -> None:
        """Remove an object; removing none is not an error."""

    def sweep(self, prefix: str) -> None:
        """Remove what killed writers left half-written below `prefix`, which is no object; only while nobody writes there."""


def local_path(uri: str) -> Path:
    """Return the absolute path of a `file:` URI or of a plain path."""
    parts = urllib.parse.urlsplit(uri)
    return Path(urllib.parse.unquote(parts.path) if parts.scheme == "file" else uri).expanduser().absolute()


class LocalStore:
    """Objects as files below a folder."""

    def __init__(self, uri: str) -> None:
        """Take the root as a `file:` URI or a path; the folder is made by the first write."""
        self._root = local_path(uri)

    @property
    def uri(self) -> str:
        """The root folder's absolute path as a `file:` URI."""
        return f"file:{self._root}"

    def address(self, key: str) -> str:
        """Return the absolute path of a key: what GDAL, pyarrow and people read."""
        return str(self._path(key))

    def _path(self, key: str) -> Path:
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise StorageError(f"the key {key!r} leads out of {self.uri}")
        return self._root / key

    def check(self, setting: str = "workspace.uri") -> None:
        """A folder is made when needed; only something else in its place is in the way. Raises `ConfigError`."""
        taken = next((path for path in (self._root, *self._root.parents) if path.exists()), None)
        if taken is not None and not taken.is_dir():
            raise ConfigError(f"{self.uri} cannot be a folder, since {taken} is a file; choose another {setting}, or move the file")

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"there is no {self.address(key)}") from None
        except OSError as error:
            raise StorageError(f"cannot read {self.address(key)}: {error.strerror}") from error

    def read_tagged(self, key: str) -> Tagged | None:
        """Return a file's bytes and their digest."""
        try:
            data = self.read(key)
        except NotFoundError:
            return None
        return Tagged(data, hashlib.sha256(data).hexdigest())

    def write(self, key: str, data: bytes) -> None:
        """Write aside, flush to disk, rename."""
        with self._aside(key) as aside:
            aside.write_bytes(data)
            _install(aside, self._path(key))

    def upload(self, key: str, path: Path) -> None:
        """Copy a file in, whole or not at all."""
        with self._aside(key) as aside:
            shutil.copyfile(path, aside)
            _install(aside, self._path(key))

    def swap(self, key: str, data: bytes, *, expected: str | None) -> str:
        """Write aside, then compare and rename under a lock that the kernel drops when its holder dies."""
        target = self._path(key)
        with self._aside(key) as aside:
            aside.write_bytes(data)
            _flush(aside)
            with _locked(target.parent):
                if self._is_changed(key, expected):
                    raise PublishConflictError(f"{target} was changed by another writer; run the command again")
                _install(aside, target)
        return hashlib.sha256(data).hexdigest()

    def _is_changed(self, key: str, expected: str | None) -> bool:
        if expected is None:
            return self._path(key).exists()
        found = self.read_tagged(key)
        return found is None or found.tag != expected

    @contextmanager
    def _aside(self, key: str) -> Iterator[Path]:
        """Yield a fresh file beside the key's, and remove it if it was not renamed."""
        target = self._path(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", suffix=_PARTIAL, dir=target.parent)
            os.close(handle)
            try:
                yield Path(name)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error.strerror}") from error

    def fetch(self, key: str, directory: Path) -> Path:  # noqa: ARG002  the file is local already
        """Return the file itself."""
        path = self._path(key)
        if not path.is_file():
            raise NotFoundError(f"there is no {path}")
        return path

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes."""
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def list(self, prefix: str = "") -> list[str]:
        """List files below the root, through links too; unfinished and lock files are not objects."""
        start = self._root / prefix.rpartition("/")[0]
        keys = (path.relative_to(self._root).as_posix() for path in _files_below(start) if not path.name.startswith("."))
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove a file."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {self.address(key)}: {error.strerror}") from error

    def sweep(self, prefix: str) -> None:
        """Remove files that were not renamed, and folders that hold nothing, the one named too."""
        root = self._path(prefix)
        for path in sorted([root, *root.rglob("*")], reverse=True):  # what a folder holds comes before it
            if path.name.startswith(".") and path.name.endswith(_PARTIAL):
                path.unlink(missing_ok=True)
            elif path.is_dir() and {child.name for child in path.iterdir()} <= {_LOCK}:
                shutil.rmtree(path, ignore_errors=True)


def _files_below(start: Path) -> Iterator[Path]:
    """Yield all files below a folder. Raises `StorageError` where one cannot be looked into: to pass it over would say that it is empty."""

    def refused(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # removed meanwhile, or never there
            raise StorageError(f"cannot list {error.filename}: {error.strerror}") from error

    for folder, inner, names in os.walk(start, onerror=refused, followlinks=True):
        inner[:] = [name for name in inner if not _leads_back(Path(folder), name)]
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def _leads_back(folder: Path, name: str) -> bool:
    """Whether an entry of a folder is a link to one on the way to it."""
    path = folder / name
    return path.is_symlink() and path.resolve() in {way.resolve() for way in (folder, *folder.parents)}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other conditional writers out of a folder: one lock for all its files, or each chip shard would leave one behind."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(aside: Path, target: Path) -> None:
    _flush(aside)
    aside.replace(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
