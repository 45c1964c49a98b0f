"""Stamps: what raster files hold, told from a few of their bytes, wherever the files lie.

A stamp is the digest of a file's size, its first and last 64 KiB and three pieces of 16 KiB between them; files up to 256 KiB are read
whole. Neither address nor time of writing is in it, so that a copy has the stamp of its original, on a disk as in a bucket. The price: an
uncompressed file in which only pixels between the pieces were changed in place keeps its stamp. A compressed one hardly can, since blocks
of other sizes change the file's directory and its size. A picture that a service hands out in tiles is told by its address alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rayjobs.errors import StorageError
from rayjobs.rasters import tiled
from rayjobs.rasters.gdal import is_remote
from rayjobs.storage.stores import local_path

_EDGE_BYTES = 2**16
_PIECE_BYTES = 2**14
_PIECES = 3
_WHOLE_BYTES = 4 * _EDGE_BYTES
_THREADS = 16
_TIMEOUT_SECONDS = 30.0
_WAITS_SECONDS = (0.1, 0.5, 2.0)
"""Before a remote file is asked again."""


def stamps(files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the stamps of rasters.

    Args:
        files: the addresses of all files that hold each raster's pixels, its own first, as `Header.files`; by the raster's address.

    Returns:
        By the raster's address, hexadecimal.

    Raises:
        StorageError: a file cannot be read.
    """
    distinct = list(dict.fromkeys(uri for parts in files.values() for uri in parts))
    if not distinct:
        return {}
    workers = min(_THREADS, len(distinct))
    with contextlib.closing(_Ranges()) as ranges, ThreadPoolExecutor(workers, thread_name_prefix="stamps") as pool:
        of_file = dict(zip(distinct, pool.map(functools.partial(_stamp, ranges=ranges), distinct), strict=True))
    return {uri: _joined([of_file[part] for part in parts]) for uri, parts in files.items()}


def _joined(parts: Sequence[str]) -> str:
    """Return one stamp for a raster; the order of its further files may differ between places."""
    own, *further = parts
    return hashlib.sha256(" ".join([own, *sorted(further)]).encode()).hexdigest() if further else own


def _stamp(uri: str, *, ranges: _Ranges) -> str:
    # a file within another, which a VRT names: only GDAL could read it; or a picture in tiles, of which nobody could read all
    if uri.startswith(("/vsi", tiled.SCHEME)):
        return hashlib.sha256(uri.encode()).hexdigest()
    first, size = ranges.read(uri, 0, _EDGE_BYTES)
    digest = hashlib.sha256(b"%d\n" % size + first)
    for start, stop in _further(size):
        digest.update(ranges.read(uri, start, stop)[0])
    return digest.hexdigest()


def _further(size: int) -> list[tuple[int, int]]:
    """Return the ranges to read after the first one."""
    if size <= _EDGE_BYTES:
        return []
    if size <= _WHOLE_BYTES:
        return [(_EDGE_BYTES, size)]
    starts = [size * number // (_PIECES + 1) for number in range(1, _PIECES + 1)]
    return [*((start, start + _PIECE_BYTES) for start in starts), (size - _EDGE_BYTES, size)]


class _Ranges:
    """Reads ranges of bytes of local and remote files, from any thread."""

    def close(self) -> None:
        """Let go of connections."""
        for name in ("_bucket_client", "_web_client"):
            if name in self.__dict__:  # made when first needed
                self.__dict__[name].close()

    def read(self, uri: str, start: int, stop: int) -> tuple[bytes, int]:
        """Return the bytes from `start` to `stop`, or to the end if that comes first, and the size of the whole file."""
        sources = {"s3": self._from_bucket, "http": self._from_web, "https": self._from_web}
        source = sources.get(urllib.parse.urlsplit(uri).scheme, _from_disk)
        for wait in (*(_WAITS_SECONDS if is_remote(uri) else ()), None):
            try:
                return source(uri, start, stop)
            except OSError as error:
                if wait is None:
                    raise StorageError(f"cannot read {uri}: {error}; put the file back, or check the network and run again") from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    @functools.cached_property
    def _bucket_client(self) -> Any:
        import boto3  # noqa: PLC0415  takes a while to import
        import botocore.config  # noqa: PLC0415  likewise

        settings = botocore.config.Config(
            retries={"mode": "standard", "total_max_attempts": 6},
            max_pool_connections=_THREADS,
            response_checksum_validation="when_required",
        )
        return boto3.session.Session().client("s3", config=settings)

    @functools.cached_property
    def _web_client(self) -> Any:
        import httpx  # noqa: PLC0415  takes a while to import

        return httpx.Client(follow_redirects=True, timeout=_TIMEOUT_SECONDS)

    def _from_bucket(self, uri: str, start: int, stop: int) -> tuple[bytes, int]:
        import botocore.exceptions  # noqa: PLC0415  as above

        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            answer = self._bucket_client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
            return answer["Body"].read(), int(answer["ContentRange"].rpartition("/")[2])
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise OSError(str(error)) from error

    def _from_web(self, uri: str, start: int, stop: int) -> tuple[bytes, int]:
        import httpx  # noqa: PLC0415  as above

        try:
            # encoded answers would not be the file's bytes
            answer = self._web_client.get(uri, headers={"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"})
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise OSError(str(error)) from error
        if answer.status_code == httpx.codes.OK:  # a server that knows no ranges sends everything
            return answer.content[start:stop], len(answer.content)
        return answer.content, int(answer.headers["Content-Range"].rpartition("/")[2])


def _from_disk(uri: str, start: int, stop: int) -> tuple[bytes, int]:
    with local_path(uri).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(start)
        return file.read(stop - start), size
