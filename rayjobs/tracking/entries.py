"""What MLflow is told of a run, as values that can be kept on disk, and how each is told.

Each bears its own time and can be told twice without harm: MLflow keeps metrics by name, step and time, and a run has a mark of its own.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from rayjobs.storage import Version

FINGERPRINT = "encoder_fingerprint"
"""Tag of runs and of versions of models."""
MODEL_FOLDER = "model"
"""Where among the files of a run what it learned is, as MLflow lays out models."""
RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_MARK = "rayjobs_mark"
_PARAMETER_LIMIT = 6000
_Number = Annotated[float, pydantic.PlainSerializer(str, when_used="json")]
"""JSON has no word for what is not finite."""
_BYTES = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class Begin:
    """A run begins, which gives it its id."""

    kind: Literal["begin"] = "begin"
    experiment: str
    artifacts: str
    """URI below which the files of a new experiment are kept."""
    name: str
    tags: Mapping[str, str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A tag by which it is found where it was made already, and its maker never heard of it."""
    at_ms: int = field(default_factory=_now_ms)

    def begin(self, client: MlflowClient) -> str:
        """Make the run, unless it is there, and return its id."""
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment, self.artifacts)
        known = client.search_runs([experiment], f"tags.{_MARK} = '{self.mark}'") if found else []
        tags = {**self.tags, _MARK: self.mark}
        made = known[0] if known else client.create_run(experiment, start_time=self.at_ms, run_name=self.name, tags=tags)
        return str(made.info.run_id)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of a run."""

    kind: Literal["parameters"] = "parameters"
    values: Mapping[str, str]

    def tell(self, client: MlflowClient, run_id: str) -> None:
        """Log them, long ones cut off."""
        from mlflow.entities import Param  # noqa: PLC0415  it takes seconds to import

        client.log_batch(run_id, params=[Param(name, value[:_PARAMETER_LIMIT]) for name, value in self.values.items()])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a run learns from, or is measured on."""

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    address: str

    @classmethod
    def of(cls, version: Version) -> Dataset:
        """Return what MLflow is told of a published set of tiles."""
        return cls(name=str(version.manifest["name"]), digest=version.version, address=version.store.address(version.prefix))

    def tell(self, client: MlflowClient, run_id: str) -> None:
        """Log it as an input of the run."""
        from mlflow import entities  # noqa: PLC0415  it takes seconds to import

        found = entities.Dataset(name=self.name, digest=self.digest, source_type="rayjobs", source=self.address)
        client.log_inputs(run_id, [entities.DatasetInput(found)])


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics of one step."""

    kind: Literal["metrics"] = "metrics"
    values: Mapping[str, _Number]
    step: int
    at_ms: int = field(default_factory=_now_ms)

    def tell(self, client: MlflowClient, run_id: str) -> None:
        """Log them; MLflow takes no `@` in their names, so that recall@10 is its `recall_at_10`."""
        from mlflow.entities import Metric  # noqa: PLC0415  it takes seconds to import

        metrics = [Metric(name.replace("@", "_at_"), float(value), self.at_ms, self.step) for name, value in self.values.items()]
        client.log_batch(run_id, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Tags of a run."""

    kind: Literal["tags"] = "tags"
    values: Mapping[str, str]

    def tell(self, client: MlflowClient, run_id: str) -> None:
        """Set them."""
        for name, value in self.values.items():
            client.set_tag(run_id, name, value)


@dataclass(frozen=True, kw_only=True, config=_BYTES)
class File:
    """A file of a run."""

    kind: Literal["file"] = "file"
    name: str
    """May have folders."""
    data: bytes

    def tell(self, client: MlflowClient, run_id: str) -> None:
        """Log it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(self.name).name)
            path.write_bytes(self.data)
            client.log_artifact(run_id, str(path), str(Path(self.name).parent) if "/" in self.name else None)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a run learned is a version of a registered model; its files are told before."""

    kind: Literal["model"] = "model"
    name: str
    fingerprint: str
    alias: str | None = None
    """Name that is given to this version, and taken from the one that had it."""

    def tell(self, client: MlflowClient, run_id: str) -> None:
        """Register the run's model, unless it is, and give it its alias."""
        from mlflow import MlflowException  # noqa: PLC0415  it takes seconds to import

        if not client.list_artifacts(run_id, MODEL_FOLDER):
            raise MlflowException.invalid_parameter_value(f"run {run_id} has no files of a model to register")
        version = self._version_of(client, run_id) or self._registered(client, run_id)
        if self.alias:
            client.set_registered_model_alias(self.name, self.alias, version)

    def _version_of(self, client: MlflowClient, run_id: str) -> str | None:
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        ours = (found for found in versions if (found.name, found.tags.get(FINGERPRINT)) == (self.name, self.fingerprint))
        return next((str(found.version) for found in ours), None)

    def _registered(self, client: MlflowClient, run_id: str) -> str:
        if not client.search_registered_models(f"name = '{self.name}'"):
            client.create_registered_model(self.name)
        source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
        return str(client.create_model_version(self.name, source, run_id, tags={FINGERPRINT: self.fingerprint}).version)


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run goes on, or has ended."""

    kind: Literal["status"] = "status"
    status: RunStatus
    at_ms: int = field(default_factory=_now_ms)

    def tell(self, client: MlflowClient, run_id: str) -> None:
        """Set it."""
        if self.status == "RUNNING":
            client.update_run(run_id, status=self.status)
        else:
            client.set_terminated(run_id, self.status, self.at_ms)


Entry = Annotated[Begin | Parameters | Dataset | Metrics | Tags | File | Model | Status, pydantic.Field(discriminator="kind")]
ENTRY: pydantic.TypeAdapter[Entry] = pydantic.TypeAdapter(Entry)
