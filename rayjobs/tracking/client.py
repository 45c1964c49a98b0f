"""MLflow's client, and what its failures mean: that it is away, or that it will never take what it is told."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow import MlflowClient

T = TypeVar("T")

_TRIES, _BETWEEN_S = 3, 1.0
"""How often a call is made that fails although MLflow answers, and the seconds between."""
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND"}
_BUSY = "TEMPORARILY_UNAVAILABLE"
_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Without these a call to a server that is gone would take minutes (we try again ourselves), and each file would have its progress bar."""


class AwayError(Exception):
    """MLflow does not answer; it may do so later."""


class RefusedError(Exception):
    """MLflow answers, and will not do what it is asked; nor later."""


class Client:
    """One MLflow. The connection is made with the first call."""

    def __init__(self, uri: str) -> None:
        """Take its tracking URI, which may hold a password."""
        self.uri = uri
        self._made: MlflowClient | None = None

    def ask(self, call: Callable[[MlflowClient], T]) -> T:
        """Return what a call of MLflow's client returns.

        Raises:
            AwayError: it does not answer.
            RefusedError: it does not take the call, whatever it is; or the address is none.
        """
        for _ in range(_TRIES - 1):
            try:
                return call(self._client())
            except Exception as error:  # noqa: BLE001  MLflow's stores raise what they like
                self._judge(error)
                time.sleep(_BETWEEN_S)
        try:
            return call(self._client())
        except Exception as error:
            self._judge(error)
            raise RefusedError(first_line(error)) from error

    def _client(self) -> MlflowClient:
        if self._made is None:
            self._made = connected(self.uri)
        return self._made

    def _judge(self, error: Exception) -> None:
        """Raise what a failure means, unless trying again may tell."""
        code = getattr(error, "error_code", None)
        if code in _REFUSALS or isinstance(error, ImportError) or type(error).__name__.startswith("Unsupported"):
            raise RefusedError(first_line(error)) from error
        if code == _BUSY or not self._answers():
            raise AwayError(first_line(error)) from error

    def _answers(self) -> bool:
        try:
            self._client().search_experiments(max_results=1)
        except Exception:  # noqa: BLE001  as above
            return False
        return True


def connected(uri: str) -> MlflowClient:
    """Return MLflow's own client, with little patience for a server that is gone. Raises what MLflow does for an address that is none."""
    from mlflow import MlflowClient  # noqa: PLC0415  it takes seconds to import

    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    return MlflowClient(uri)


def first_line(error: Exception) -> str:
    """Return what an error says, in short."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
