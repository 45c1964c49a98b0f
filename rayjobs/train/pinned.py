"""The experiment that a run, or a sweep of runs, was begun with: another one under the same name is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from rayjobs.config import changed_keys, to_dict
from rayjobs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rayjobs.experiment import Experiment
    from rayjobs.storage import Store, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What is written down where something begins, and compared where it goes on."""

    store: Store
    key: str
    """Where it is written down."""
    what: str
    """Is begun, such as `run 'coast'`."""
    option: str
    """Gives it another name."""
    decided: Mapping[str, Any]
    """The keys that decide what comes of it, by section, as `decided` returns them."""
    resolved: Mapping[str, Any]
    """The whole experiment, for those who read the file."""

    def begun(self) -> bool:
        """Whether it was begun, and with this experiment.

        Raises:
            ConfigError: it was begun with another one; names the keys that changed.
        """
        found = self.store.read_tagged(self.key)
        if found is None:
            return False
        changed = changed_keys(yaml.safe_load(found.data)["decided"], json.loads(json.dumps(self.decided)))
        if changed:
            raise ConfigError(
                f"{self.what} was begun with another experiment ({'; '.join(changed)}); "
                f"give this one another name ({self.option}), or restore the keys"
            )
        return True

    def begin(self) -> None:
        """Write it down the first time; later, refuse another experiment. Raises `ConfigError`."""
        if not self.begun():
            text = yaml.safe_dump({"decided": self.decided, "resolved": self.resolved}, sort_keys=False)
            self.store.swap(self.key, text.encode(), expected=None)


def decided(experiment: Experiment, source: Version, sections: Iterable[str], free: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Return the sections that decide, without those of their keys that are `free` to change, and the set's version."""
    found: dict[str, Any] = {name: to_dict(getattr(experiment, name)) for name in sections}
    for name, keys in free.items():
        found[name] = {key: value for key, value in found[name].items() if key not in set(keys)}
    return {**found, "set_version": source.version}
