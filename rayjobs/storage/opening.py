"""From a URI that a person wrote to the store or the objects that it names."""

from __future__ import annotations

import fnmatch
import re
import urllib.parse

from rayjobs.errors import NotFoundError, StorageError
from rayjobs.storage.s3 import S3Store
from rayjobs.storage.stores import LocalStore, Store, local_path


def open_store(uri: str) -> Store:
    """Return the store of a URI: `s3://bucket/prefix`, `file:/path` or a plain path.

    Raises:
        StorageError: another scheme.
    """
    scheme = urllib.parse.urlsplit(uri).scheme
    if scheme == "s3":
        return S3Store(uri)
    if scheme in {"", "file"}:
        return LocalStore(uri)
    raise StorageError(f"cannot use {uri!r} as storage; write s3://BUCKET/PREFIX, file:/PATH or a path")


def absolute(uri: str) -> str:
    """Return a URI, or where a plain path leads from here, which it does from anywhere."""
    return uri if urllib.parse.urlsplit(uri).scheme else str(local_path(uri))


def read_uri(uri: str) -> bytes:
    """Return the bytes of one object at a full URI. Raises `NotFoundError`."""
    root, _, name = uri.rpartition("/")
    return open_store(root or ".").read(name)


def expand(uri: str) -> list[str]:
    """Return the full URIs that a file, a folder (all below it) or a glob names, sorted; `http(s)` URIs stand for themselves.

    Raises:
        NotFoundError: nothing is there.
    """
    if urllib.parse.urlsplit(uri).scheme in {"http", "https"}:
        return [uri]
    wild = re.search(r"[*?\[]", uri)
    stem = uri[: wild.start()] if wild else uri.rstrip("/")
    if re.fullmatch(r"s3://[^/]+", stem):
        stem += "/"
    root, _, name = stem.rpartition("/")
    store = open_store(root or ("/" if uri.startswith("/") else "."))
    if wild:
        addresses = [store.address(key) for key in store.list(name)]
        pattern = uri if uri.startswith("s3://") else str(local_path(uri))
        found = [address for address in addresses if fnmatch.fnmatchcase(address, pattern)]
    elif name and store.size(name) is not None:
        found = [store.address(name)]
    else:
        found = [store.address(key) for key in store.list(f"{name}/" if name else "")]
    if not found:
        raise NotFoundError(f"nothing is at {uri}; check the spelling, the bucket and AWS_ENDPOINT_URL")
    return found
