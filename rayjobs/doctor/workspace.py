"""The workspace of an experiment: what every verb asks of it, asked with objects of our own, which are removed again."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import functools
import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import httpx

from rayjobs.doctor.checks import Check, Look, Patient, caution, fault, looked, ok
from rayjobs.doctor.machine import disk
from rayjobs.errors import PublishConflictError
from rayjobs.storage import open_store
from rayjobs.storage.stores import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayjobs.storage import Store

LARGE = 9 * 2**20
"""Bytes of an object that is written in parts and read by ranges: boto3 does so above 8 MiB."""
_LEAST = b"rayjobs doctor"
_LATE_S, _REFUSED_S = 30, 900
"""Seconds of a clock that is off which are said; and for which S3 refuses what is signed."""


def looks(patient: Patient) -> dict[str, Look]:
    """Return what to look at: that the workspace can be reached, and, where it can, all else."""
    if patient.experiment is None:
        return {}
    return {"workspace/address": functools.partial(workspace, patient.experiment.workspace.uri, patient.folder)}


def workspace(uri: str, folder: Path) -> list[Check]:
    """Look at a workspace by its URI; `folder` takes copies."""
    store = open_store(uri)
    store.check()
    asked: dict[str, Look] = {
        "workspace/write": functools.partial(written, store),
        "workspace/conditional": functools.partial(conditional, store),
        "workspace/list": functools.partial(listed, store),
    }
    if is_bucket(store):
        asked |= {"workspace/ranges": functools.partial(ranges, store, folder), "workspace/clock": clock}
    else:
        asked["workspace/space"] = functools.partial(_space, store)
    return [ok("workspace/address", f"{store.uri} is there" if is_bucket(store) else f"{store.uri} is or can be a folder"), *looked(asked)]


def is_bucket(store: Store) -> bool:
    """Whether a store is a bucket, and not a folder."""
    return not store.uri.startswith("file:")


@contextlib.contextmanager
def own_prefix(store: Store) -> Iterator[str]:
    """Yield a prefix that nobody has, ending in `/`; what is written below it is removed at the end, and folders that were made for it."""
    prefix = f"doctor-{uuid.uuid4().hex}/"
    root = None if is_bucket(store) else local_path(store.uri)
    absent = [] if root is None else [path for path in (root, *root.parents) if not path.exists()]
    try:
        yield prefix
    finally:
        for key in store.list(prefix):
            store.delete(key)
        if root is not None:
            shutil.rmtree(root / prefix, ignore_errors=True)  # empty, but for the lock of conditional writes
        with contextlib.suppress(OSError):  # somebody else has begun to use it
            for path in absent:
                path.rmdir()


def written(store: Store) -> Check:
    """Write an object, and read it."""
    begun = time.perf_counter()
    with own_prefix(store) as prefix:
        store.write(f"{prefix}object", _LEAST)
        if store.read(f"{prefix}object") != _LEAST or store.size(f"{prefix}object") != len(_LEAST):
            return fault("workspace/write", f"{store.uri} does not give back what was written", "take another store: this one loses data")
        store.delete(f"{prefix}object")
        if store.size(f"{prefix}object") is not None:
            return fault(
                "workspace/write", f"{store.uri} still has what was removed", "allow removal (s3:DeleteObject), or take another store"
            )
    return ok("workspace/write", f"written, read and removed in {time.perf_counter() - begun:.2f} s")


def conditional(store: Store) -> Check:
    """Write under conditions, which publishing and leases rest on."""
    with own_prefix(store) as prefix:
        key = f"{prefix}pointer"
        first = store.swap(key, b"1", expected=None)
        store.swap(key, b"2", expected=first)
        for expected, header in ((None, "If-None-Match"), (first, "If-Match")):
            if not _refused(store, key, expected):
                remedy = (
                    "take a store that honours conditional writes (Amazon S3, MinIO, SeaweedFS): two commands could overwrite each other"
                )
                return fault("workspace/conditional", f"{store.uri} does not honour {header}", remedy)
    return ok("workspace/conditional", "only the first of two writers is let through")


def _refused(store: Store, key: str, expected: str | None) -> bool:
    try:
        store.swap(key, b"3", expected=expected)
    except PublishConflictError:
        return True
    return False


def listed(store: Store) -> Check:
    """List objects just after they were written."""
    with own_prefix(store) as prefix:
        keys = [f"{prefix}{name}" for name in ("a/1", "a/2", "b")]
        for key in keys:
            store.write(key, _LEAST)
        found = store.list(prefix)
    if found != keys:
        remedy = "allow listing (s3:ListBucket), and take a store whose lists are up to date"
        return fault("workspace/list", f"{store.uri} lists {len(found)} of {len(keys)} objects just written", remedy)
    return ok("workspace/list", "what was written is listed at once")


def ranges(store: Store, folder: Path) -> Check:
    """Write an object in parts and read it by ranges, as large files and rasters are."""
    data = os.urandom(LARGE)
    source = folder / "large"
    source.write_bytes(data)
    begun = time.perf_counter()
    with own_prefix(store) as prefix:
        store.upload(f"{prefix}large", source)
        sent = time.perf_counter()
        with store.fetch(f"{prefix}large", folder / "fetched").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != hashlib.sha256(data).hexdigest():
        remedy = "take a store, or a proxy before it, that answers requests with `Range` by just that range"
        return fault("workspace/ranges", f"{LARGE / 2**20:.0f} MiB read by ranges from {store.uri} are not what was written", remedy)
    up, down = (LARGE / 2**20 / seconds for seconds in (sent - begun, time.perf_counter() - sent))
    return ok("workspace/ranges", f"{LARGE / 2**20:.0f} MiB written in parts at {up:.0f} MiB/s, read by ranges at {down:.0f} MiB/s")


def clock() -> Check:
    """Compare the clock with the one of the S3 server."""
    endpoint = str(boto3.session.Session().client("s3").meta.endpoint_url)
    before = time.time()
    answer = httpx.head(endpoint, timeout=10)
    after = time.time()
    said = answer.headers.get("date")
    if said is None:
        return ok("workspace/clock", "the S3 server does not tell its time")
    return clock_judged(before, after, email.utils.parsedate_to_datetime(said))


def clock_judged(before: float, after: float, theirs: datetime.datetime) -> Check:
    """Judge by the Unix times before and after a question and what was answered, in whole seconds."""
    here = datetime.datetime.fromtimestamp((before + after) / 2, datetime.UTC)
    off = abs((here - theirs).total_seconds())
    said = f"this clock and the S3 server's differ by {off:.0f} s"
    if off > _REFUSED_S:
        return fault("workspace/clock", f"{said}: S3 refuses what is signed so wrongly", "set the clock, or have chrony or ntpd keep it")
    if off > _LATE_S:
        return caution("workspace/clock", said, "set the clock, or have chrony or ntpd keep it")
    return ok("workspace/clock", said)


def _space(store: Store) -> Check:
    root = local_path(store.uri)
    return disk("workspace/space", next(path for path in (root, *root.parents) if path.is_dir()))
