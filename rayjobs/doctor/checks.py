"""Checks as values: what was looked at, what was found, and what to do about it. No check hinders another, and none tells a secret."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rayjobs.cluster.failures import own_error

if TYPE_CHECKING:
    from pathlib import Path

    from rayjobs.cluster.section import RaySection
    from rayjobs.experiment import Experiment
    from rayjobs.tracking import TrackingSection

State = Literal["ok", "caution", "fault"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """`family/thing`."""
    state: State
    """`fault`: something will fail, or what it gives is wrong. `caution`: it may, or it costs."""
    finding: str
    remedy: str
    """What to do, in one line; empty where there is nothing to do."""


Look = Callable[[], Check | Iterable[Check]]
"""Looks at something; may raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What is looked at."""

    experiment: Experiment | None
    """None: only what needs no experiment."""
    ray: RaySection
    tracking: TrackingSection
    folder: Path
    """Empty folder for what is needed meanwhile; removed at the end."""
    say: Callable[[str], None]
    """Told before what takes long."""


def ok(name: str, finding: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name=name, state="ok", finding=finding, remedy="")


def caution(name: str, finding: str, remedy: str) -> Check:
    """Return a check that found what may go wrong."""
    return Check(name=name, state="caution", finding=finding, remedy=remedy)


def fault(name: str, finding: str, remedy: str) -> Check:
    """Return a check that found what is wrong."""
    return Check(name=name, state="fault", finding=finding, remedy=remedy)


_LOOK_CLOSER = "run the command again with --verbose, which shows what the libraries say"


def looked(looks: Mapping[str, Look]) -> Iterator[Check]:
    """Look at each thing, by name; what raises is a fault of that name, and the others are looked at all the same."""
    for name, look in looks.items():
        try:
            found = look()
            checks = [found] if isinstance(found, Check) else list(found)
        except Exception as error:  # noqa: BLE001  whatever is wrong, the rest is looked at
            checks = [_failed(name, error)]
        yield from (_clean(check) for check in checks)


def _failed(name: str, error: Exception) -> Check:
    ours = own_error(error)
    if ours is not None:  # our messages end with what to do
        finding, _, remedy = str(ours).rpartition("; ")
        return fault(name, finding or remedy, remedy if finding else _LOOK_CLOSER)
    told = str(error).strip().partition("\n")[0]
    return fault(name, f"{type(error).__name__}: {told}" if told else type(error).__name__, _LOOK_CLOSER)


_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(\b[a-z][a-z0-9+]*://[^\s?]+)\?\S+")
"""Of an address: signatures of signed ones stand there."""
_SECRET_NAMES = ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY")
_SHORTEST_SECRET = 6


def without_secrets(text: str) -> str:
    """Return a text without passwords and signatures of addresses, and without the values of variables that hold secrets."""
    text = _QUERY.sub(r"\1?...", _PASSWORD.sub("***@", text))
    secrets = (value for name, value in os.environ.items() if any(part in name.upper() for part in _SECRET_NAMES))
    for secret in sorted((value for value in secrets if len(value) >= _SHORTEST_SECRET), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _clean(check: Check) -> Check:
    one_line = (" ".join(without_secrets(text).split()) for text in (check.finding, check.remedy))
    finding, remedy = one_line
    return Check(name=check.name, state=check.state, finding=finding, remedy=remedy)


def table(checks: Sequence[Check], *, columns: int) -> list[str]:
    """Return checks as aligned lines of at most `columns` characters; what to do stands below what was found."""
    width = max((len(check.name) for check in checks), default=0)
    return [line for check in checks for line in _rows(check, width, max(columns, width + 50))]


def _rows(check: Check, width: int, columns: int) -> list[str]:
    left = f"{check.state:<7}  {check.name:<{width}}  "
    indent = " " * len(left)
    lines = textwrap.wrap(check.finding, columns, initial_indent=left, subsequent_indent=indent, break_on_hyphens=False)
    advice = textwrap.wrap(check.remedy, columns, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   ", break_on_hyphens=False)
    return [*(lines or [left.rstrip()]), *advice]
