"""How GDAL is set up: tuned for object storage, with fresh credentials, and silent but for Python's loggers."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import urllib.parse
import warnings
from typing import TYPE_CHECKING, Any

import rasterio
import rasterio.env
import rasterio.errors
import rasterio.session

from rayjobs.rasters import tiled
from rayjobs.storage.stores import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_CACHE_BYTES = 256 * 2**20
"""Decoded blocks that GDAL keeps per process. Its default, a share of the machine's memory, is too much for many workers on one node."""
CREDENTIALS_SECONDS = 300.0
"""How long credentials are used before boto3 is asked again; it renews those that are about to expire."""

OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing of a bucket for side files
    "GDAL_INGESTED_BYTES_AT_OPEN": 32768,  # most headers in one request
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_MAX_RETRY": 5,
    "GDAL_HTTP_RETRY_DELAY": 0.2,
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_LOW_SPEED_TIME": 30,  # a connection that delivers less than this many bytes a second for so long is given up
    "GDAL_HTTP_LOW_SPEED_LIMIT": 100,
    "VSI_CACHE": "FALSE",  # each block is fetched once, so that a second copy of its bytes only costs time
}
"""GDAL's settings within `environment`."""

_REMOTE = {"s3": "/vsis3/", "http": "/vsicurl/http://", "https": "/vsicurl/https://"}


class _S3Session(rasterio.session.Session):  # type: ignore[misc]
    """Hands GDAL options over as they are; rasterio's own session asks boto3 anew on every entry, which takes 30 ms."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options

    @classmethod
    def hascreds(cls, config: dict[str, Any]) -> bool:
        return "AWS_ACCESS_KEY_ID" in config or "AWS_NO_SIGN_REQUEST" in config

    def get_credential_options(self) -> dict[str, str]:
        return dict(self._options)


def is_remote(uri: str) -> bool:
    """Tell whether an address is read over the network."""
    return urllib.parse.urlsplit(uri.removeprefix(tiled.SCHEME)).scheme in _REMOTE


def gdal_path(uri: str) -> str:
    """Return the name by which GDAL opens an address: `/vsis3/...`, `/vsicurl/...`, a path, or what describes a picture in tiles."""
    if uri.startswith(tiled.SCHEME):
        return tiled.TiledImage.from_uri(uri).gdal_xml()
    scheme, _, rest = uri.partition("://")
    if scheme in _REMOTE and rest:
        return _REMOTE[scheme] + rest
    return str(local_path(uri))


def uri_of(path: str) -> str:
    """Return the address of a name by which GDAL opens a file: what `gdal_path` undoes; other virtual files keep GDAL's name."""
    for scheme, prefix in _REMOTE.items():
        if path.startswith(prefix):
            return f"{scheme}://{path.removeprefix(prefix)}"
    return path


@contextlib.contextmanager
def environment(*, s3: bool = False) -> Iterator[None]:
    """Set GDAL up in this thread for as long as the block lasts; enter it in every thread.

    Args:
        s3: give credentials for `/vsis3/` to whatever opens rasters by itself in the block; `open_raster` needs none.
    """
    _bound_block_cache()
    _quiet_plain_images()
    session = _s3_session() if s3 else rasterio.session.DummySession()
    with rasterio.Env(session, **OPTIONS):
        yield


def _s3_session() -> _S3Session:
    return _S3Session(_s3_options(int(time.monotonic() // CREDENTIALS_SECONDS)))


@functools.lru_cache(maxsize=1)
def _s3_options(period: int) -> dict[str, str]:  # noqa: ARG001  the period makes the cache forget
    """Return GDAL's options for S3 from the usual AWS variables, profiles and roles, as boto3 finds them."""
    import boto3  # noqa: PLC0415  takes a while to import

    session = boto3.Session()
    found = session.get_credentials()
    options: dict[str, str] = {"AWS_NO_SIGN_REQUEST": "YES"}
    if found is not None:
        frozen = found.get_frozen_credentials()
        options = {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
        if frozen.token:
            options["AWS_SESSION_TOKEN"] = frozen.token
    if session.region_name:
        options["AWS_REGION"] = session.region_name
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        parts = urllib.parse.urlsplit(endpoint)
        options["AWS_S3_ENDPOINT"] = parts.netloc + parts.path.rstrip("/")
        options["AWS_HTTPS"] = "NO" if parts.scheme == "http" else "YES"
        options["AWS_VIRTUAL_HOSTING"] = "FALSE"
    return options


_bounded = threading.Event()


def _bound_block_cache() -> None:
    # rasterio resets this process-wide limit whenever an environment that names it is left, so it is set once and apart
    if not _bounded.is_set():
        rasterio.env.set_gdal_config("GDAL_CACHEMAX", BLOCK_CACHE_BYTES)
        _bounded.set()


def _quiet_plain_images() -> None:
    """Ignore rasterio's warning that a picture has no coordinates: with us that is a kind of scene.

    `warnings.catch_warnings` round each open would not be safe between threads.
    """
    category = rasterio.errors.NotGeoreferencedWarning
    if not any(action == "ignore" and kind is category for action, _, kind, *_ in warnings.filters):
        warnings.simplefilter("ignore", category)


def open_raster(uri: str, *, fresh: bool = False) -> Any:
    """Open a raster for one thread alone, inside `environment`.

    Args:
        uri: local, `s3://`, `http(s)://`, or that of a picture in tiles.
        fresh: forget cached credentials and what GDAL has cached of a remote file; after a failed read they may be the fault.

    Raises:
        rasterio.errors.RasterioIOError: it cannot be opened.
    """
    path = gdal_path(uri)
    options: dict[str, Any] = {}
    session = rasterio.session.DummySession()
    if fresh and not uri.startswith(tiled.SCHEME):
        _s3_options.cache_clear()
        options["CPL_VSIL_CURL_NON_CACHED"] = path
    if uri.startswith("s3://"):
        session = _s3_session()
    elif not is_remote(uri):
        # on a file system, side files such as ENVI headers are looked for one by one
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = "TRUE"
    with rasterio.Env(session, **options):
        return rasterio.open(path, sharing=False)
