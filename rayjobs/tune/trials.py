"""What is known of a sweep's trials, and how it is kept in the workspace: one JSON file each, rewritten whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from rayjobs.errors import DamagedError

if TYPE_CHECKING:
    from rayjobs.workspace import Workspace

Ended = Literal["", "finished", "pruned", "failed", "cut off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial: a training run of its own."""

    run: str
    """Name of the run in the workspace."""
    values: dict[str, Any]
    """Its values of the keys of the space, sections as they are."""
    history: dict[int, float] = dataclasses.field(default_factory=dict)
    """The objective on the validation split by the number of epochs done."""
    ended: Ended = ""
    """How it ended; empty while it has not. `pruned`: before its last epoch, since it fell behind; `cut off`:
    by a kill, and not gone on with."""
    mlflow_run: str | None = None
    failure: str = ""

    @property
    def value(self) -> float | None:
        """The objective after its last epoch; None before the first."""
        return self.history[max(self.history)] if self.history else None

    def heard(self, epoch: int, value: float) -> Trial:
        """Return the trial with one epoch more."""
        return dataclasses.replace(self, history={**self.history, epoch: value})


def name_of(sweep: str, values: Mapping[str, Any]) -> str:
    """Return the name of the run that tries some values: the same for the same values, so that none is trained twice."""
    return f"{sweep}-{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]}"


def keep(workspace: Workspace, trial: Trial) -> None:
    """Write down what is known of a trial."""
    workspace.store.write(_key(workspace, trial.run), json.dumps(dataclasses.asdict(trial)).encode())


def known(workspace: Workspace, run: str) -> Trial | None:
    """Return what was written down of a trial.

    Raises:
        DamagedError: it cannot be read.
    """
    key = _key(workspace, run)
    found = workspace.store.read_tagged(key)
    if found is None:
        return None
    try:
        return pydantic.TypeAdapter(Trial).validate_json(found.data)
    except pydantic.ValidationError as error:
        raise DamagedError(f"{workspace.store.address(key)} is no record of a trial; delete it, and the trial is tried again") from error


def all_known(workspace: Workspace) -> list[Trial]:
    """Return what is known of all trials, by name."""
    names = [key.rpartition("/")[2] for key in workspace.store.list(f"{workspace.sweep_folder}trials/") if key.endswith(".json")]
    found = (known(workspace, name.removesuffix(".json")) for name in sorted(names))
    return [trial for trial in found if trial is not None]


def _key(workspace: Workspace, run: str) -> str:
    return f"{workspace.sweep_folder}trials/{run}.json"
