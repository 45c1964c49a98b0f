"""The `tracking` section of the experiment file, and which MLflow it means."""

from __future__ import annotations

import os
from pathlib import Path

from rayjobs.config import section
from rayjobs.workspace import ArtefactName


@section
class TrackingSection:
    """Where runs are logged."""

    enabled: bool = True
    """False logs nothing to MLflow."""
    uri: str | None = None
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else SQLite: in a `file:` workspace, or in ~/.cache/rayjobs."""
    experiment: str = "rayjobs"
    """Name of the MLflow experiment that holds the runs."""
    model: ArtefactName | None = None
    """Name under which MLflow's registry keeps what was learned: each finished `train` adds a version, and each `tune` one with the alias
    `champion`. Default: nothing is registered."""


def tracking_uri(settings: TrackingSection, workspace: str, *, make: bool = True) -> str:
    """Return the MLflow tracking URI that holds for a workspace; the folder of a database of ours is made, unless `make` is False."""
    if chosen := settings.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return chosen
    folder = Path(workspace.removeprefix("file:")) if workspace.startswith("file:") else cache_folder()
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.absolute()}/mlflow.db"


def cache_folder() -> Path:
    """Return the folder of this machine where what belongs to no workspace is kept."""
    return Path("~/.cache/rayjobs").expanduser()
