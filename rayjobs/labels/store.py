"""The store of label events of one taxonomy: numbered Parquet segments that are only ever added, whoever writes, from whichever process.

A segment's number is the next one, and it is created only if there is none of that number: so of two writers one is refused, reads what
the other wrote, and tries the number after. All processes see one order, no event is there twice, and what was acknowledged is in the
store; a writer that is killed has written its segment whole or not at all.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayjobs.errors import DamagedError, LabelError, LabelLostError, NotFoundError, PublishConflictError, StorageError
from rayjobs.labels.current import Tally
from rayjobs.labels.events import LabelEvent, read_segment, segment_bytes
from rayjobs.labels.taxonomy import ROOT, Taxonomy, read_taxonomy

if TYPE_CHECKING:
    from rayjobs.storage import Store

_TRIES = 100
"""Times that another writer may be first, before ours is given up."""
_READERS = 16
_COMPACT_EVERY = 500
"""Segments after which all of them are also written as one, for those who open the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """What became of events that were to be added."""

    accepted: int
    """Events that are new."""
    already: int
    """Events that the store held before: delivered again."""


class LabelStore:
    """The events of one taxonomy, followed as they grow. Safe to use from several threads; other processes may write meanwhile."""

    def __init__(self, store: Store, taxonomy: str) -> None:
        """Take a workspace and a taxonomy's name; nothing is read before it is asked for.

        Args:
            store: the workspace.
            taxonomy: its name.
        """
        self._store, self._name, self._lock = store, taxonomy, threading.RLock()
        self._taxonomy: Taxonomy | None = None
        self._tally, self._events, self._ids, self._segments = Tally(), list[LabelEvent](), dict[str, LabelEvent](), 0

    @property
    def name(self) -> str:
        """Name of the taxonomy."""
        return self._name

    def taxonomy(self) -> Taxonomy:
        """Return the newest version. Raises `UnknownTaxonomyError`."""
        with self._lock:
            self._taxonomy = read_taxonomy(self._store, self._name, known=self._taxonomy)
            return self._taxonomy

    def events(self, since: int = 0) -> list[LabelEvent]:
        """Return all events in order but the first `since`, each once."""
        with self._lock:
            self._follow()
            return self._events[since:]

    @contextlib.contextmanager
    def tally(self) -> Iterator[Tally]:
        """Yield what follows from all events, by the newest names of the classes; it does not change for the length of the block."""
        with self._lock:
            yield self._current()

    def _current(self) -> Tally:
        renamed = self.taxonomy().renamed
        self._follow()
        if renamed != self._tally.renamed:
            self._tally = Tally(self._events, renamed=renamed)
        return self._tally

    def append(self, events: Sequence[LabelEvent], *, alone: Collection[str] = ()) -> Appended:
        """Add events, all or none; when this returns they are in the store, and stay. Those that it holds already change nothing.

        Args:
            events: in order; an `undo` may take back one of them.
            alone: ids of events that are refused where somebody else has labelled their tile: pictures that were handed to one person.

        Raises:
            LabelError: a label is no class, or an undo names no event of the same person and tile.
            LabelLostError: somebody else was first at a tile of `alone`.
            PublishConflictError: other writers were first for too long.
            StorageError: storage failed; whether the events arrived is not known, and they may be sent again.
        """
        with self._lock:
            for _ in range(_TRIES):
                tally = self._current()
                fresh = list({event.event_id: event for event in events if event.event_id not in self._ids}.values())
                if not fresh:
                    return Appended(accepted=0, already=len(events))
                self._check(fresh, tally, frozenset(alone))
                with contextlib.suppress(
                    PublishConflictError
                ):  # the winner's segment is read at the next try; it may be ours, arrived late
                    self._store.swap(self._key(self._segments + 1), segment_bytes(fresh), expected=None)
                    self._take(fresh)
                    self._keep_short()
                    return Appended(accepted=len(fresh), already=len(events) - len(fresh))
            raise PublishConflictError(f"other writers kept adding to the labels of {self._name!r}; send the events again")

    def compact(self) -> None:
        """Write all events as one object, which spares those who open the store as many requests; the segments stay."""
        with self._lock:
            self._follow()
            if self._segments:
                with contextlib.suppress(PublishConflictError):
                    self._store.swap(f"{self._prefix}history/{self._segments:09}.parquet", segment_bytes(self._events), expected=None)

    @property
    def _prefix(self) -> str:
        return f"{ROOT}{self._name}/"

    def _key(self, number: int) -> str:
        return f"{self._prefix}events/{number:09}.parquet"

    def _follow(self) -> None:
        """Read what has been added since."""
        if not self._segments:
            self._open()
        while (found := self._store.read_tagged(self._key(self._segments + 1))) is not None:
            self._take(read_segment(found.data, self._store.address(self._key(self._segments + 1))))

    def _open(self) -> None:
        """Read what is there at first: the longest history that is whole, and the segments after it, several at once."""
        for kept in reversed(self._store.list(f"{self._prefix}history/")):
            with contextlib.suppress(DamagedError, NotFoundError):  # the segments say all that a history says
                past = read_segment(self._store.read(kept), self._store.address(kept))
                self._take(past, segments=int(kept.rpartition("/")[2].removesuffix(".parquet")))
                break
        listed = set(self._store.list(f"{self._prefix}events/"))
        # a listing that is no snapshot may hold a segment and not the one before it: what is behind such a gap is left to `_follow`
        later = list(itertools.takewhile(listed.__contains__, map(self._key, itertools.count(self._segments + 1))))
        with ThreadPoolExecutor(_READERS) as readers:
            for key, data in zip(later, readers.map(self._store.read, later), strict=True):
                self._take(read_segment(data, self._store.address(key)))

    def _take(self, events: Sequence[LabelEvent], *, segments: int = 1) -> None:
        self._segments += segments
        for event in events:
            if event.event_id not in self._ids:
                self._ids[event.event_id] = event
                self._events.append(event)
                self._tally.add(event)

    def _check(self, fresh: Sequence[LabelEvent], tally: Tally, alone: Collection[str]) -> None:
        taxonomy, known = self._taxonomy or self.taxonomy(), dict[str, LabelEvent]()
        for event in fresh:
            if event.label is not None:
                taxonomy.check(event.label)
            undone = known.get(event.undoes or "") or self._ids.get(event.undoes or "")
            if event.kind == "undo" and (undone is None or undone.kind == "undo" or _whose(undone) != _whose(event)):
                raise LabelError(f"{event.person} has no event {event.undoes!r} of tile {event.tile_id} to undo; send that event first")
            known[event.event_id] = event
        handed = [event for event in fresh if event.event_id in alone and event.kind != "undo"]
        lost = {event.tile_id: others for event in handed if (others := tally.others(event.tile_id, event.person))}
        if lost:
            tile, others = next(iter(lost.items()))
            raise LabelLostError(f"tile {tile} was labelled by {others[0]} meanwhile; leave it out, and send the others again", lost)

    def _keep_short(self) -> None:
        """Write a history now and then; a failure is no matter, since the segments say all."""
        if self._segments % _COMPACT_EVERY == 0:
            with contextlib.suppress(StorageError):
                self.compact()


def _whose(event: LabelEvent) -> tuple[str, str]:
    return event.person, event.tile_id
