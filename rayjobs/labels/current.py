"""Current labels: what follows from all events for each tile, and how far people agree."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayjobs.labels.events import LabelEvent

_PACE = datetime.timedelta(minutes=10)
"""How far back the pace of a person looks, from the person's last event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What is held of one tile now. Each person's latest event that was not undone is a vote."""

    label: str | None
    """The class with the most votes; None where most are unsure, or two classes, or a class and unsure, have equally many."""
    agreement: float
    """Share of the votes that the most frequent opinion has, above 0 to 1."""
    people: tuple[str, ...]
    """Who voted, sorted."""
    votes: Mapping[str | None, int]
    """Votes of each class; None stands for unsure."""
    at: datetime.datetime
    """Of the latest vote, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How one person gets on."""

    events: int
    """All, undone ones and undoing ones counted."""
    per_minute: float | None
    """Events a minute over the ten minutes before the last; None of a single one."""


class Tally:
    """Current labels that follow events one by one; the order of the events counts, their moments do not."""

    def __init__(self, events: Iterable[LabelEvent] = (), *, renamed: Mapping[str, str] | None = None) -> None:
        """Take events.

        Args:
            events: in order.
            renamed: what former names of classes are now; see `Taxonomy.renamed`.
        """
        self.renamed = dict(renamed or {})
        """What former names of classes are now."""
        self.current: dict[str, Current] = {}
        """Of each tile of which somebody holds anything, by tile id."""
        self.by_class: collections.Counter[str | None] = collections.Counter()
        """Tiles of each current label; None counts the unsure."""
        self._valid: dict[str, dict[str, list[LabelEvent]]] = {}
        """Events that count, of each tile and person, in order."""
        self._counts: collections.Counter[str] = collections.Counter()
        self._moments: dict[str, collections.deque[datetime.datetime]] = {}
        for event in events:
            self.add(event)

    def add(self, event: LabelEvent) -> None:
        """Take the next event."""
        self._counts[event.person] += 1
        moments = self._moments.setdefault(event.person, collections.deque(maxlen=1000))
        moments.append(event.at)
        said = self._valid.setdefault(event.tile_id, {}).setdefault(event.person, [])
        if event.kind == "undo":
            said[:] = [one for one in said if one.event_id != event.undoes]
        else:
            said.append(event)
        self._count(event.tile_id)

    def others(self, tile_id: str, person: str) -> list[str]:
        """Return who else holds anything of a tile, sorted."""
        return sorted(name for name, said in self._valid.get(tile_id, {}).items() if said and name != person)

    def pace(self) -> dict[str, Pace]:
        """Return how each person gets on, by name."""
        return {person: Pace(events=count, per_minute=_per_minute(self._moments[person])) for person, count in sorted(self._counts.items())}

    def _count(self, tile_id: str) -> None:
        before = self.current.pop(tile_id, None)
        if before is not None:
            self.by_class[before.label] -= 1
        latest = {person: said[-1] for person, said in self._valid[tile_id].items() if said}
        if latest:
            found = self.current[tile_id] = self._held(latest)
            self.by_class[found.label] += 1

    def _held(self, latest: Mapping[str, LabelEvent]) -> Current:
        votes = collections.Counter(None if one.label is None else self.renamed.get(one.label, one.label) for one in latest.values())
        most = max(votes.values())
        first = [label for label, count in votes.items() if count == most]
        return Current(
            label=first[0] if len(first) == 1 else None,
            agreement=most / len(latest),
            people=tuple(sorted(latest)),
            votes=dict(votes),
            at=max(one.at for one in latest.values()),
        )


def current_labels(events: Iterable[LabelEvent], *, renamed: Mapping[str, str] | None = None) -> dict[str, Current]:
    """Return what is held of each tile after all events, by tile id; see `Tally`."""
    return Tally(events, renamed=renamed).current


def _per_minute(moments: Iterable[datetime.datetime]) -> float | None:
    ordered = sorted(moments)
    recent = [moment for moment in ordered if moment >= ordered[-1] - _PACE]
    minutes = (recent[-1] - recent[0]).total_seconds() / 60
    return round((len(recent) - 1) / minutes, 2) if minutes > 0 else None
