"""The whole experiment file, composed of the sections that each room declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayjobs import config
from rayjobs.cluster.section import RaySection
from rayjobs.config import section
from rayjobs.evaluate.section import EvaluateSection
from rayjobs.fetch.section import FetchSection
from rayjobs.index.section import IndexSection
from rayjobs.label.section import LabelSection
from rayjobs.metric.section import (
    ClusteringSection,
    HashingSection,
    InterclassSection,
    LossSection,
    MemorySection,
    MinerSection,
    MiningSection,
    ProjectorSection,
    SemiHardMiner,
    TripletLossSection,
)
from rayjobs.models.section import ModelSection
from rayjobs.rasters.section import RastersSection
from rayjobs.serve.section import ServeSection
from rayjobs.storage import absolute
from rayjobs.tiles.section import TilesSection
from rayjobs.tracking import TrackingSection
from rayjobs.train.section import AdaptationSection, TrainSection
from rayjobs.tune.section import TuneSection
from rayjobs.workspace import ArtefactName, Workspace, WorkspaceSection

if TYPE_CHECKING:
    from collections.abc import Sequence


@section
class Experiment:
    """One experiment: what to look at, what to learn, what to measure and where to keep it."""

    name: ArtefactName
    """Name of the set, the run and the index, unless `workspace` names them apart."""
    workspace: WorkspaceSection = WorkspaceSection()
    rasters: RastersSection
    fetch: FetchSection = FetchSection()
    tiles: TilesSection = TilesSection()
    model: ModelSection = ModelSection()
    loss: LossSection = TripletLossSection()
    hashing: HashingSection = HashingSection()
    interclass: InterclassSection = InterclassSection()
    projector: ProjectorSection = ProjectorSection()
    miner: MinerSection = SemiHardMiner()
    memory: MemorySection = MemorySection()
    clustering: ClusteringSection = ClusteringSection()
    mining: MiningSection = MiningSection()
    train: TrainSection = TrainSection()
    adaptation: AdaptationSection = AdaptationSection()
    tune: TuneSection = TuneSection()
    evaluate: EvaluateSection = EvaluateSection()
    index: IndexSection = IndexSection()
    label: LabelSection = LabelSection()
    serve: ServeSection = ServeSection()
    tracking: TrackingSection = TrackingSection()
    ray: RaySection = RaySection()

    def open_workspace(self) -> Workspace:
        """Return the experiment's workspace."""
        return Workspace(self.workspace, self.name)

    def with_weights(self) -> Experiment:
        """Return the experiment with a `model.pretrained` that can be read, where it names another run.

        Raises:
            NotFoundError: that run has learned nothing yet.
        """
        return replace(self, model=replace(self.model, pretrained=self.open_workspace().weights(self.model.pretrained)))

    def to_yaml(self) -> str:
        """Return the resolved experiment, every default written out."""
        return config.to_yaml(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved experiment as plain values."""
        return config.to_dict(self)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and the overrides of a command line.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or a value is wrong.
    """
    return made(config.read_yaml(Path(path)), overrides)


def made(raw: dict[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of plain values, as a file has them, and of the overrides of a command line.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    return _located(config.build(Experiment, config.apply_overrides(raw, config.parse_overrides(overrides))))


def _located(experiment: Experiment) -> Experiment:
    """Return an experiment whose workspace and weights are found from any directory: Ray Train's workers have one of their own."""
    workspace, model = experiment.workspace, experiment.model
    weights = absolute(model.pretrained) if model.pretrained.endswith(".safetensors") else model.pretrained
    return replace(experiment, workspace=replace(workspace, uri=absolute(workspace.uri)), model=replace(model, pretrained=weights))
