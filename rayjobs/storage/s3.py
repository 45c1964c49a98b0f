"""`Store` in an S3 bucket, of any endpoint, configured by the usual AWS variables."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
import boto3.exceptions
import botocore.config
import botocore.exceptions

from rayjobs.errors import NotFoundError, PublishConflictError, StorageError
from rayjobs.storage.stores import Tagged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ABSENT = {"NoSuchKey", "404", "NotFound"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"}
_WAITS_S = (0.2, 1.0, 4.0)
"""Before each further try to read an object whose bytes broke off: boto3 tries a request again (after 5xx, throttling, a lost connection),
but not the reading of an answer that had begun."""
_CUT_SHORT = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.ReadTimeoutError,
)
_LOST = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


@functools.lru_cache(maxsize=1)
def _client() -> Any:
    """One client per process; boto3 renews its credentials by itself, and its clients are safe to share between threads."""
    settings = botocore.config.Config(
        # 5xx, SlowDown, timeouts and lost connections; waits double up to 20 s, of which chance takes a share: half a minute in all
        retries={"mode": "standard", "total_max_attempts": 6},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
        # other servers than Amazon's do not all know the newer trailing checksums
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", config=settings)


class S3Store:
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, uri: str) -> None:
        """Take the root; nothing is asked of the bucket until the first read or write."""
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/")
        if not self._bucket:
            raise StorageError(f"{uri!r} names no bucket; write s3://BUCKET/PREFIX")

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def address(self, key: str) -> str:
        """Return the full URI of a key."""
        return f"{self.uri}/{key}"

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def check(self, setting: str = "workspace.uri") -> None:  # noqa: ARG002  a bucket's own errors name it
        """Ask for the bucket."""
        try:
            with self._explained(""):
                _client().head_bucket(Bucket=self._bucket)
        except NotFoundError:
            raise self._no_bucket() from None

    def _no_bucket(self) -> StorageError:
        return StorageError(f"the bucket {self._bucket!r} of {self.uri} does not exist; create it or correct the URI")

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""
        found = self.read_tagged(key)
        if found is None:
            raise NotFoundError(f"there is no {self.address(key)}")
        return found.data

    def read_tagged(self, key: str) -> Tagged | None:
        """Return an object's bytes and its ETag."""
        try:
            with self._explained(key):
                return self._read_whole(key)
        except NotFoundError:
            return None

    def _read_whole(self, key: str) -> Tagged:
        for wait in (*_WAITS_S, None):
            try:
                answer = _client().get_object(Bucket=self._bucket, Key=self._key(key))
                return Tagged(answer["Body"].read(), answer["ETag"])
            except _CUT_SHORT:
                if wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("the last try answers or raises")

    def write(self, key: str, data: bytes) -> None:
        """Put an object."""
        with self._explained(key):
            _client().put_object(Bucket=self._bucket, Key=self._key(key), Body=data)

    def swap(self, key: str, data: bytes, *, expected: str | None) -> str:
        """Put an object under `If-Match` or `If-None-Match`."""
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        with self._explained(key):
            answer = _client().put_object(Bucket=self._bucket, Key=self._key(key), Body=data, **condition)
            return str(answer["ETag"])

    def upload(self, key: str, path: Path) -> None:
        """Upload a file, in parts where it is large."""
        with self._explained(key):
            _client().upload_file(str(path), self._bucket, self._key(key))

    def fetch(self, key: str, directory: Path) -> Path:
        """Download an object into `directory`, under a name that no other address shares.

        What was downloaded before is taken, and of several processes one downloads: they share one copy.
        """
        address = self.address(key)
        target = directory / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{key.rpartition('/')[2]}"
        directory.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # which the kernel drops when its holder dies
            if not target.exists():
                aside = target.with_name(f".{target.name}.partial")
                with self._explained(key):
                    _client().download_file(self._bucket, self._key(key), str(aside))
                aside.replace(target)
        return target

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes."""
        try:
            with self._explained(key):
                return int(_client().head_object(Bucket=self._bucket, Key=self._key(key))["ContentLength"])
        except NotFoundError:
            return None

    def list(self, prefix: str = "") -> list[str]:
        """List keys below the root."""
        strip = len(self._prefix) + 1 if self._prefix else 0
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(prefix))
        with self._explained(prefix):
            return sorted(item["Key"][strip:] for page in pages for item in page.get("Contents", ()))

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._explained(key):
            _client().delete_object(Bucket=self._bucket, Key=self._key(key))

    def sweep(self, prefix: str) -> None:
        """Abort uploads in parts that were not completed."""
        pages = _client().get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._key(prefix))
        with self._explained(prefix):
            for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                _client().abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turn what boto3 raises into our errors, each with its remedy."""
        where = self.address(key)
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise self._meaning(error, where) from error
        except botocore.exceptions.NoCredentialsError as error:
            raise StorageError(f"no credentials for {where}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role") from error
        except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise StorageError(f"cannot reach {where}: {error}; check AWS_ENDPOINT_URL and the network") from error

    def _meaning(self, error: botocore.exceptions.ClientError, where: str) -> StorageError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            return self._no_bucket()
        if code in _ABSENT:
            return NotFoundError(f"there is no {where}")
        if code in _DENIED:
            return StorageError(
                f"access to {where} was refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            )
        if code in _LOST:
            return PublishConflictError(f"{where} was changed by another writer; run the command again")
        return StorageError(f"{where}: {error}")
