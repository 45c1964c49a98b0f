"""Population based training: a trial that takes up the weights and, changed a little, the values of another goes on as a run of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.tune

from rayjobs.errors import ConfigError
from rayjobs.tune.space import Choice, Constant, Range, Space

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayjobs.experiment import Experiment
    from rayjobs.storage import Artefact, Version

CHANGED = frozenset(
    {
        "train.learning_rate",
        "train.backbone_rate",
        "train.weight_decay",
        *(
            f"loss.{key}"
            for key in ("margin", "second_margin", "pos_margin", "neg_margin", "temperature", "alpha", "beta", "base", "gamma")
        ),
        *(f"miner.{key}" for key in ("margin", "epsilon", "cutoff", "farthest")),
        *(f"train.augment.{key}" for key in ("rotate_degrees", "brightness", "jitter", "band_dropout")),
        "memory.weight",
        "mining.share",
    }
)
"""Numbers that may change while a run learns; others decide the shape of what a checkpoint holds, or how long is trained."""
_FILE = "run.json"
_OF_THE_VERSION = ("kind", "name", "version", "created", "files")
"""What a manifest says of itself, and not of what it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a trial stands: what Ray Tune keeps as its checkpoint. The weights lie in the workspace."""

    trial: str
    """Ray Tune's name of the trial."""
    run: str
    version: str
    """Of its checkpoint."""

    def lineage(self, trial: str) -> str:
        """Name the run of another trial that begins here."""
        return hashlib.sha256(f"{self.run} {self.version} {trial}".encode()).hexdigest()[:8]


def mutations(space: Space) -> dict[str, Any]:
    """Return what may change while trials learn, and how it is drawn anew, as Ray Tune's scheduler takes it.

    Raises:
        ConfigError: nothing may.
    """
    found = {key: drawn for key, entry in space.entries if key in CHANGED and (drawn := _drawn(entry)) is not None}
    if not found:
        raise ConfigError(
            "tune.scheduler.kind pbt changes numbers while trials learn, and tune.space has none that can; give a key of "
            f"{', '.join(sorted(CHANGED))} a range or a list of numbers"
        )
    return found


def _drawn(entry: Any) -> Any:
    if isinstance(entry, Range):
        if entry.whole:
            return (ray.tune.lograndint if entry.log else ray.tune.randint)(int(entry.low), int(entry.high) + 1)
        return (ray.tune.loguniform if entry.log else ray.tune.uniform)(entry.low, entry.high)
    if isinstance(entry, Choice) and all(isinstance(option, Constant) and _is_number(option.value) for option in entry.options):
        return list(range(len(entry.options)))
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def within(space: Space, draw: Mapping[str, float]) -> dict[str, float]:
    """Return a draw whose numbers lie in their ranges: the scheduler multiplies them, and asks nobody."""
    ranges = {name: domain for name, domain in space.names().items() if isinstance(domain, Range)}
    return {name: min(max(value, ranges[name].low), ranges[name].high) if name in ranges else value for name, value in draw.items()}


def report(metrics: dict[str, Any], place: Place) -> None:
    """Tell Ray Tune the metrics of a trial and where it stands."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _FILE).write_text(json.dumps(dataclasses.asdict(place)))
        ray.tune.report(metrics, checkpoint=ray.tune.Checkpoint.from_directory(folder))


def place_of(checkpoint: ray.tune.Checkpoint | None) -> Place | None:
    """Return the place that Ray Tune kept for a trial; None where it kept none."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Place(**json.loads(Path(folder, _FILE).read_text()))


def begin_at(place: Place, experiment: Experiment) -> None:
    """Copy the checkpoint of a place, and the mining generation that it names, into a run that begins there; nothing if it has."""
    workspace = experiment.open_workspace()
    if workspace.checkpoints.current() is not None:
        return
    donor = dataclasses.replace(experiment, workspace=dataclasses.replace(experiment.workspace, run=place.run)).open_workspace()
    version = donor.checkpoints.at(place.version)
    generation = version.manifest["parents"].get("mining")
    if generation:
        _copy(donor.mining.at(generation), workspace.mining)
    _copy(version, workspace.checkpoints)


def _copy(version: Version, target: Artefact) -> None:
    draft = target.draft(version.version)
    for entry in version.files:
        draft.write(entry.name, version.read(entry.name))
    draft.publish({name: value for name, value in version.manifest.items() if name not in _OF_THE_VERSION})
