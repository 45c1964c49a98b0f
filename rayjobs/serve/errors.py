"""Which HTTP status each of our errors has, and how it is put as problem JSON (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from rayjobs import errors

STATUS: dict[type[errors.RayjobsError], HTTPStatus] = {
    errors.UploadTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UploadError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.PinnedVersionError: HTTPStatus.CONFLICT,
    errors.QueryError: HTTPStatus.BAD_REQUEST,
    errors.UnknownTileError: HTTPStatus.NOT_FOUND,
    errors.UnknownTaxonomyError: HTTPStatus.NOT_FOUND,
    errors.LabelLostError: HTTPStatus.CONFLICT,
    errors.LabelError: HTTPStatus.BAD_REQUEST,
    errors.FingerprintError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.IndexCorruptError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RetrievalError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.CheckpointError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ConfigError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ImageryError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.TrainingError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ClusterError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ServiceError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DemoError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""An error has the status of its nearest ancestor here."""


def status_of(kind: type[BaseException]) -> HTTPStatus:
    """Return the status of an error's class."""
    return next((STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)


def problem(status: HTTPStatus, detail: str, **further: Any) -> dict[str, Any]:
    """Return the body of an error's answer."""
    return {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail, **further}
