"""Search spaces: which values of which keys a sweep tries, and how one trial's values are drawn from them.

The same dotted keys as in the experiment file. A list is a choice of its entries; `{uniform: [low, high]}`, `{loguniform: [low, high]}`,
`{integer: [low, high]}` and `{logint: [low, high]}` are ranges; any other value stands for itself. An entry of a list may be a whole
section, whose own values are spaces again: so each kind of loss brings the keys that it alone has. Knows neither Ray nor Optuna.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rayjobs.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Draw = dict[str, int | float]
"""What was drawn of a space, by name: of a choice the number of its entry, of a range the value. `overrides` makes keys of it."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that every trial has."""

    value: Any


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several."""

    options: tuple[Domain, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    log: bool
    """Whether equal ratios, and not equal differences, come equally often."""
    whole: bool
    """Whether it is an integer."""


@dataclass(frozen=True, slots=True)
class Group:
    """Values by key: a section."""

    entries: tuple[tuple[str, Domain], ...]


Domain = Constant | Choice | Range | Group

_RANGES = {
    "uniform": {"log": False, "whole": False},
    "loguniform": {"log": True, "whole": False},
    "integer": {"log": False, "whole": True},
    "logint": {"log": True, "whole": True},
}
_PAIR = 2


@dataclass(frozen=True, slots=True)
class Space:
    """A sweep's space, key by key."""

    entries: tuple[tuple[str, Domain], ...]
    """Dotted key and what it may be."""

    def names(self) -> dict[str, Choice | Range]:
        """Return everything that is drawn, by name: of keys within an entry of a list `loss[1].margin`."""
        return {name: domain for key, entry in self.entries for name, domain in _names(key, entry)}


def parse(raw: Mapping[str, Any]) -> Space:
    """Read a space as the experiment file has it: dotted keys, nested sections, or both.

    Raises:
        ConfigError: there is nothing to draw; an empty list, or a range whose bounds are no two ascending numbers; a key twice.
    """
    entries = tuple(_flat(raw, ""))
    keys = [key for key, _ in entries]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"tune.space has {twice} twice; keep one of the two")
    space = Space(entries)
    if not space.names():
        raise ConfigError(
            "tune.space leaves nothing to choose; give at least one key a list of values, or a range such as {uniform: [0, 1]}"
        )
    return space


def _flat(raw: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Domain]]:
    for key, value in raw.items():
        if isinstance(value, Mapping) and not _is_range(value):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _domain(value, f"{prefix}{key}")


def _is_range(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _RANGES


def _domain(value: Any, name: str) -> Domain:
    if isinstance(value, list | tuple):
        if not value:
            raise ConfigError(f"tune.space.{name} is an empty list; give it values to choose from")
        return Choice(tuple(_option(option, f"{name}[{number}]") for number, option in enumerate(value)))
    if isinstance(value, Mapping):
        if _is_range(value):
            return _range(*next(iter(value.items())), name)
        return Group(tuple((key, _domain(inner, f"{name}.{key}")) for key, inner in value.items()))
    return Constant(value)


def _option(value: Any, name: str) -> Domain:
    """Return an entry of a list; one that is a list itself is a value, such as that of a key which takes lists."""
    return Constant(list(value)) if isinstance(value, list | tuple) else _domain(value, name)


def _range(kind: str, bounds: Any, name: str) -> Range:
    form = _RANGES[kind]
    numbers = isinstance(bounds, list | tuple) and len(bounds) == _PAIR and all(_is_number(bound) for bound in bounds)
    if not numbers or not bounds[0] < bounds[1]:
        raise ConfigError(f"tune.space.{name}: {kind} takes [low, high] with low < high, not {bounds!r}")
    if form["log"] and bounds[0] <= 0:
        raise ConfigError(f"tune.space.{name}: {kind} begins above 0, not at {bounds[0]!r}")
    if form["whole"] and any(bound != int(bound) for bound in bounds):
        raise ConfigError(f"tune.space.{name}: {kind} takes whole numbers, not {bounds!r}")
    return Range(bounds[0], bounds[1], **form)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _names(name: str, domain: Domain) -> Iterator[tuple[str, Choice | Range]]:
    if isinstance(domain, Range):
        yield name, domain
    elif isinstance(domain, Choice):
        yield name, domain
        for number, option in enumerate(domain.options):
            yield from _names(f"{name}[{number}]", option)
    elif isinstance(domain, Group):
        for key, entry in domain.entries:
            yield from _names(f"{name}.{key}", entry)


class Chooser(Protocol):
    """Whatever decides: chance, a search algorithm, or what was decided before."""

    def choose(self, name: str, count: int) -> int:
        """Return a number below `count`."""

    def number(self, name: str, within: Range) -> float:
        """Return a number of a range."""


def overrides(space: Space, chooser: Chooser) -> dict[str, Any]:
    """Return the dotted keys of one trial with their values, each decided by `chooser`."""
    return {key: _value(key, entry, chooser) for key, entry in space.entries}


def _value(name: str, domain: Domain, chooser: Chooser) -> Any:
    if isinstance(domain, Choice):
        number = chooser.choose(name, len(domain.options))
        return _value(f"{name}[{number}]", domain.options[number], chooser)
    if isinstance(domain, Range):
        return chooser.number(name, domain)
    if isinstance(domain, Group):
        return {key: _value(f"{name}.{key}", entry, chooser) for key, entry in domain.entries}
    return domain.value


@dataclass(frozen=True, slots=True)
class Replay:
    """Decides as was decided before."""

    draw: Mapping[str, int | float]

    def choose(self, name: str, count: int) -> int:  # noqa: ARG002  the protocol's
        """Return the number that was chosen."""
        return int(self.draw[name])

    def number(self, name: str, within: Range) -> float:
        """Return the number that was drawn."""
        return int(self.draw[name]) if within.whole else float(self.draw[name])


class Chance:
    """Decides by chance, and remembers."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Take the source of chance."""
        self._rng = rng
        self.draw: Draw = {}

    def choose(self, name: str, count: int) -> int:
        """Return any number below `count`."""
        self.draw[name] = int(self._rng.integers(count))
        return int(self.draw[name])

    def number(self, name: str, within: Range) -> float:
        """Return any number of a range; of a logarithmic one any order of magnitude as often as another."""
        low, high = (math.log(bound) if within.log else bound for bound in (within.low, within.high))
        if within.whole and not within.log:
            drawn: float = int(self._rng.integers(int(within.low), int(within.high), endpoint=True))
        else:
            value = float(self._rng.uniform(low, high))
            drawn = min(max(math.exp(value) if within.log else value, within.low), within.high)
        self.draw[name] = round(drawn) if within.whole else drawn
        return self.draw[name]


def every_draw(space: Space) -> list[Draw]:
    """Return all that can be drawn of a space, the last key changing first.

    Raises:
        ConfigError: a range, of which there is no end.
    """
    for name, domain in space.names().items():
        if isinstance(domain, Range):
            raise ConfigError(
                f"tune.space.{name} is a range, which a grid cannot exhaust; list its values, or set tune.search: random or optuna"
            )
    return list(_product([(key, entry) for key, entry in space.entries]))


def _product(entries: list[tuple[str, Domain]]) -> Iterator[Draw]:
    for parts in itertools.product(*(list(_draws(name, entry)) for name, entry in entries)):
        yield {name: value for part in parts for name, value in part.items()}


def _draws(name: str, domain: Domain) -> Iterator[Draw]:
    if isinstance(domain, Choice):
        for number, option in enumerate(domain.options):
            for inner in _draws(f"{name}[{number}]", option):
                yield {name: number, **inner}
    elif isinstance(domain, Group):
        yield from _product([(f"{name}.{key}", entry) for key, entry in domain.entries])
    else:
        yield {}


def random_draws(space: Space, count: int, rng: np.random.Generator) -> list[Draw]:
    """Return up to `count` different draws by chance; fewer of a space that has no more."""
    drawn: dict[tuple[tuple[str, float], ...], Draw] = {}
    for _ in range(100 * count):
        chance = Chance(rng)
        overrides(space, chance)
        drawn.setdefault(tuple(sorted(chance.draw.items())), chance.draw)
        if len(drawn) == count:
            break
    return list(drawn.values())
