"""Where a workspace lies and what the artefacts of an experiment are called."""

from __future__ import annotations

import json
import re
from typing import Annotated

import pydantic

from rayjobs.config import section
from rayjobs.storage import Artefact, Store, open_store


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"{name!r} cannot be a name; use letters, digits, '.', '_' and '-', and begin with a letter or a digit")
    return name


ArtefactName = Annotated[str, pydantic.AfterValidator(_checked_name)]
"""Name of an experiment or of an artefact: a folder of the workspace, and a part of addresses."""


@section
class WorkspaceSection:
    """The place of everything that a run makes."""

    uri: str = "workspace"
    """`s3://BUCKET/PREFIX`, `file:/PATH` or a path."""
    shared: bool = False
    """Says that every node of the cluster mounts the folder of a `file:` workspace."""
    set: ArtefactName | None = None
    """Name of the set of tiles; default the experiment's name."""
    run: ArtefactName | None = None
    """Name of the training run; default the experiment's name."""
    sweep: ArtefactName | None = None
    """Name of the sweep; default the experiment's name. Its trials are runs whose names begin so."""
    index: ArtefactName | None = None
    """Name of the embeddings and the index; default the experiment's name."""
    encoder: Annotated[str, pydantic.Field(pattern=r"^models:/[^/:@\s]+(@[^/:@\s]+|/\d+)$")] | None = None
    """Model of MLflow's registry that `embed`, `index` and `serve` take as their encoder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`;
    default the newest checkpoint of the run."""


class Workspace:
    """The artefacts of one experiment, by their part in it."""

    def __init__(self, settings: WorkspaceSection, name: str) -> None:
        """Take the section and the experiment's name, which artefacts without a name of their own bear."""
        self._settings, self._name = settings, name
        self.store: Store = open_store(settings.uri)

    @property
    def shared(self) -> bool:
        """Whether every node sees the folder of a `file:` workspace."""
        return self._settings.shared

    @property
    def run(self) -> str:
        """Name of the training run."""
        return self._settings.run or self._name

    @property
    def pinned(self) -> str:
        """Key of the experiment that the training run was begun with."""
        return f"runs/{self.run}/experiment.yaml"

    @property
    def run_labels(self) -> str:
        """Key of the labels that people had given when the training run began."""
        return f"runs/{self.run}/labels.parquet"

    @property
    def lease(self) -> str:
        """Key of the lease on the training run."""
        return f"runs/{self.run}/lease"

    def mlflow_run(self) -> str | None:
        """Return the id of the training run in MLflow, if it was tracked."""
        found = self.store.read_tagged(self._mlflow)
        return str(json.loads(found.data)["run_id"]) if found else None

    def remember_mlflow_run(self, run_id: str) -> None:
        """Write down the id of the training run in MLflow."""
        self.store.write(self._mlflow, json.dumps({"run_id": run_id}).encode())

    @property
    def _mlflow(self) -> str:
        return f"runs/{self.run}/mlflow.json"

    @property
    def set(self) -> Artefact:
        """The tiles and their chips."""
        return Artefact(self.store, "sets", self._settings.set or self._name)

    def named_set(self, name: str) -> Artefact:
        """The tiles and chips of another set."""
        return Artefact(self.store, "sets", name)

    @property
    def features(self) -> Artefact:
        """The features of the set's tiles by frozen backbones."""
        return Artefact(self.store, "features", self._settings.set or self._name)

    @property
    def checkpoints(self) -> Artefact:
        """The checkpoints of the training run."""
        return Artefact(self.store, f"runs/{self.run}", "checkpoints")

    @property
    def mining(self) -> Artefact:
        """The mining generations of the training run."""
        return Artefact(self.store, f"runs/{self.run}", "mining")

    @property
    def report(self) -> Artefact:
        """The evaluations of the training run."""
        return Artefact(self.store, f"runs/{self.run}", "evaluation")

    @property
    def sweep(self) -> str:
        """Name of the sweep."""
        return self._settings.sweep or self._name

    @property
    def sweep_folder(self) -> str:
        """Prefix of what a sweep keeps beside its reports: what it was begun with, its lease, what is known of its trials."""
        return f"sweeps/{self.sweep}/"

    @property
    def sweep_report(self) -> Artefact:
        """What the sweep has found."""
        return Artefact(self.store, f"sweeps/{self.sweep}", "report")

    @property
    def index(self) -> Artefact:
        """The published index."""
        return Artefact(self.store, "indexes", self._settings.index or self._name)

    @property
    def index_report(self) -> Artefact:
        """What each kind of index would cost, measured on the index's vectors."""
        return Artefact(self.store, "reports", self._settings.index or self._name)

    def embeddings(self, suffix: str = "") -> Artefact:
        """The embedding table of the index, or with a suffix another one."""
        name = self._settings.index or self._name
        return Artefact(self.store, "embeddings", f"{name}-{suffix}" if suffix else name)
