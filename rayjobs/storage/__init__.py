"""Bytes under one URI, on a file system or in S3, and the versioned artefacts made of them.

Knows nothing of imagery, models or Ray. Every other room reads and writes through these names.
"""

from rayjobs.storage.artefacts import MANIFEST, Artefact, Draft, FileDigest, Version, deposit, digest_of, keep_first, share, verified
from rayjobs.storage.lease import Lease
from rayjobs.storage.opening import absolute, expand, open_store, read_uri
from rayjobs.storage.removal import REMOVED, remove
from rayjobs.storage.s3 import S3Store
from rayjobs.storage.stores import LocalStore, Store, Tagged

__all__ = [
    "MANIFEST",
    "REMOVED",
    "Artefact",
    "Draft",
    "FileDigest",
    "Lease",
    "LocalStore",
    "S3Store",
    "Store",
    "Tagged",
    "Version",
    "absolute",
    "deposit",
    "digest_of",
    "expand",
    "keep_first",
    "open_store",
    "read_uri",
    "remove",
    "share",
    "verified",
]
