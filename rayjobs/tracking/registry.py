"""Models that MLflow's registry keeps, by what people call them: `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayjobs.errors import ConfigError, NotFoundError
from rayjobs.tracking.client import AwayError, Client, RefusedError, first_line
from rayjobs.tracking.entries import FINGERPRINT
from rayjobs.tracking.section import tracking_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from rayjobs.tracking.section import TrackingSection

_MODEL = re.compile(r"models:/(?P<name>[^/:@\s]+)(@(?P<alias>[^/:@\s]+)|/(?P<version>\d+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One version of a registered model."""

    name: str
    version: str
    fingerprint: str
    """Of the encoder, as its tag says; what is read must be compared with it."""
    source: str
    """MLflow's address of its files."""
    uri: str
    """Of the MLflow that knows it; may hold a password."""

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return files of the model by name, a name with folders.

        Raises:
            NotFoundError: they cannot be had.
        """
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415  it takes seconds to import

        with tempfile.TemporaryDirectory() as folder:
            try:
                paths = {
                    name: download_artifacts(artifact_uri=f"{self.source}/{name}", dst_path=folder, tracking_uri=self.uri) for name in names
                }
            except Exception as error:  # MLflow's stores raise what they like
                raise NotFoundError(
                    f"the files of version {self.version} of model {self.name} cannot be read from {self.source} ({first_line(error)}); "
                    "see whether MLflow's artefacts are still there, or name another version in workspace.encoder"
                ) from error
            return {name: Path(path).read_bytes() for name, path in paths.items()}


def _version(client: MlflowClient, asked: re.Match[str]) -> ModelVersion:
    if asked["alias"]:
        return client.get_model_version_by_alias(asked["name"], asked["alias"])
    return client.get_model_version(asked["name"], asked["version"])


def registered(settings: TrackingSection, *, workspace: str, model: str) -> Registered:
    """Ask MLflow's registry for a model.

    Args:
        settings: the experiment's tracking section.
        workspace: the workspace's URI.
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ConfigError: the name is none.
        NotFoundError: the registry does not know it, or does not answer.
    """
    found = _MODEL.fullmatch(model)
    if found is None:
        raise ConfigError(f"{model!r} names no model of MLflow's registry; write models:/NAME@ALIAS or models:/NAME/VERSION")
    uri = tracking_uri(settings, workspace)
    try:
        version = Client(uri).ask(lambda client: _version(client, found))
    except (AwayError, RefusedError) as error:
        raise NotFoundError(
            f"{model} is not to be had from MLflow ({first_line(error)}); register one with tracking.model and `rayjobs tune`, give a "
            "version the alias on MLflow's page, or correct tracking.uri"
        ) from error
    if FINGERPRINT not in version.tags:
        raise NotFoundError(f"{model} is version {version.version}, which rayjobs did not register; name another in workspace.encoder")
    return Registered(
        name=found["name"], version=str(version.version), fingerprint=version.tags[FINGERPRINT], source=str(version.source), uri=uri
    )
