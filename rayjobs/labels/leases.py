"""Leases: which tiles are in whose hands now. One object of the workspace, changed by conditional writes alone: no process owns it.

A tile is handed to one person until the lease on it expires; a service that is killed or started anew changes nothing. Whoever chooses
tiles reads the leases first and the events second: a tile whose lease is gone by then was labelled before, or let go.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rayjobs.errors import PublishConflictError
from rayjobs.labels.taxonomy import ROOT

if TYPE_CHECKING:
    from rayjobs.storage import Store, Tagged

_TRIES = 100
_LONGEST_PAUSE_S = 0.05
"""Between two tries, when another process was first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLease:
    """One tile in the hands of one person."""

    lease: str
    """Its id: 16 bytes, hexadecimal."""
    tile_id: str
    person: str
    expires: float
    """Unix time."""


class Leases:
    """The leases on tiles of one taxonomy. Safe to use from several threads and processes."""

    def __init__(self, store: Store, taxonomy: str, *, seconds: float = 300.0, clock: Callable[[], float] = time.time) -> None:
        """Take a workspace and a taxonomy's name.

        Args:
            store: the workspace.
            taxonomy: its name.
            seconds: how long a lease holds; clocks of different machines should not differ by as much.
            clock: Unix time.
        """
        self._store, self._key, self._seconds, self._clock = store, f"{ROOT}{taxonomy}/leases/current.json", seconds, clock
        self._one_at_a_time = threading.Lock()

    def live(self) -> list[TileLease]:
        """Return the leases that hold now."""
        return self._holding(self._store.read_tagged(self._key))

    def take(self, person: str, choose: Callable[[Sequence[TileLease]], Sequence[str]]) -> list[TileLease]:
        """Hand tiles to a person.

        Args:
            person: who is to have them. Leases of this person on the chosen tiles are renewed.
            choose: from the leases that hold to the ids of tiles, of which none is in somebody else's hands; called again where another
                process was first. It must look for what is labelled by itself, each time.

        Returns:
            A lease on each tile, in the order of `choose`.

        Raises:
            PublishConflictError: other processes were first for too long.
            ValueError: a chosen tile is in somebody else's hands.
        """

        def changed(held: Sequence[TileLease]) -> tuple[list[TileLease], list[TileLease]]:
            own = {one.tile_id: one.lease for one in held if one.person == person}
            taken = {one.tile_id for one in held if one.person != person}
            chosen, expires = list(dict.fromkeys(choose(held))), self._clock() + self._seconds
            if doubles := taken.intersection(chosen):
                raise ValueError(f"tile {min(doubles)} is in somebody else's hands")
            given = [TileLease(lease=own.get(tile) or uuid.uuid4().hex, tile_id=tile, person=person, expires=expires) for tile in chosen]
            return [one for one in held if one.tile_id not in set(chosen)] + given, given

        return self._change(changed)

    def release(self, person: str, leases: Collection[str]) -> int:
        """Let go of leases that a person holds, and return how many these were; others are none of the person's business."""

        def changed(held: Sequence[TileLease]) -> tuple[list[TileLease], list[TileLease]]:
            gone = [one for one in held if one.person == person and one.lease in leases]
            return [one for one in held if one not in gone], gone

        return len(self._change(changed))

    def _change(self, changed: Callable[[Sequence[TileLease]], tuple[list[TileLease], list[TileLease]]]) -> list[TileLease]:
        """Write what becomes of the leases that hold, and return what `changed` says of it; again where another process was first."""
        data: bytes | None = None
        wanted: list[TileLease] = []
        with self._one_at_a_time:
            for _ in range(_TRIES):
                found = self._store.read_tagged(self._key)
                if found is not None and found.data == data:  # the refusal was the second answer to a write that arrived
                    return wanted
                after, wanted = changed(self._holding(found))
                if not wanted:
                    return []
                data = json.dumps([asdict(one) for one in after]).encode()
                try:
                    self._store.swap(self._key, data, expected=found.tag if found else None)
                except PublishConflictError:
                    time.sleep(random.uniform(0, _LONGEST_PAUSE_S))  # noqa: S311  keeps two writers from keeping step
                    continue
                return wanted
        raise PublishConflictError(f"{self._store.address(self._key)}: other processes kept changing the leases; ask again")

    def _holding(self, found: Tagged | None) -> list[TileLease]:
        """Return the leases that hold; none where they cannot be read: the next change writes them anew, and no label hangs on them."""
        now = self._clock()
        try:
            return [one for one in (TileLease(**fields) for fields in json.loads(found.data)) if one.expires > now] if found else []
        except (ValueError, TypeError):
            return []
