"""What the routes of labels do: tiles of the index handed to people, and what they say of them taken down. Knows neither HTTP nor Ray."""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayjobs.errors import DamagedError, LabelError
from rayjobs.labels.events import LabelEvent
from rayjobs.labels.export import as_csv, as_geojson
from rayjobs.labels.leases import Leases, TileLease
from rayjobs.labels.queue import Queues
from rayjobs.labels.store import LabelStore
from rayjobs.labels.taxonomy import LabelClass, Taxonomy, publish_taxonomy, taxonomy_names
from rayjobs.serve.label_schema import (
    Added,
    Audited,
    Events,
    FullProgress,
    Handed,
    Item,
    NewTaxonomy,
    NextRequest,
    PersonPace,
    Progress,
    SaidEvent,
    Suggested,
    TaxonomyAnswer,
)

if TYPE_CHECKING:
    from rayjobs.labels.queue import Suggestion
    from rayjobs.serve.answers import Answers
    from rayjobs.storage import Store

_LOG = logging.getLogger(__name__)
_MOST_IN_HAND = 1000
"""Tiles that one person may have in hand without having labelled them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What is kept of one taxonomy."""

    labels: LabelStore
    leases: Leases
    queues: Queues
    inside: _Inside


class _Inside:
    """Which tiles the served index holds, asked of it once for each tile."""

    def __init__(self) -> None:
        self._version, self._asked, self._held = "", set[str](), set[str]()

    def of(self, tiles: Collection[str], answers: Answers) -> set[str]:
        """Return those of some tiles that an index version holds; one thread at a time."""
        if answers.version != self._version:
            self._version, self._asked, self._held = answers.version, set(), set()
        new = [tile for tile in tiles if tile not in self._asked]
        self._held.update(answers.known(new))
        self._asked.update(new)
        return self._held.intersection(tiles)


class Labelling:
    """The labels of one workspace. Safe to use from several threads; other processes may serve the same workspace."""

    def __init__(self, store: Store, *, lease_s: float) -> None:
        """Take a workspace, and for how many seconds a tile is handed to one person."""
        self._store, self._lease_s = store, lease_s
        self._rooms: dict[str, _Room] = {}
        self._lock = threading.Lock()

    def taxonomies(self, answers: Answers) -> list[TaxonomyAnswer]:
        """Return all taxonomies with their progress; one that is damaged is left out, and the log says why."""
        found = []
        for name in taxonomy_names(self._store):
            try:
                found.append(self._answer(name, answers))
            except (DamagedError, LabelError):
                _LOG.exception("taxonomy %s is not listed", name)
        return found

    def publish(self, given: NewTaxonomy, answers: Answers) -> TaxonomyAnswer:
        """Make a taxonomy, or the next version of it. Raises `LabelError`, `PublishConflictError`."""
        classes = [LabelClass(**one.model_dump()) for one in given.classes]
        return self._answer(publish_taxonomy(self._store, given.name, classes).name, answers)

    def hand(self, name: str, person: str, asked: NextRequest, answers: Answers) -> Handed:
        """Hand tiles to a person that nobody has labelled and that are in nobody else's hands.

        Raises:
            UnknownTaxonomyError: there is no such taxonomy.
            UnknownTileError: the index does not hold the tile that others should be like.
            LabelError: others should be alike, and no tile is named; the person has too many tiles in hand.
        """
        if asked.order == "similar" and asked.like is None:
            raise LabelError("order similar needs a tile to be similar to; give its id as `like`")
        room = self._room(name)
        taxonomy = room.labels.taxonomy()
        queue, kept, ours = room.queues.current(taxonomy), set(asked.held or ()), set[str]()

        def choose(held: Sequence[TileLease]) -> list[str]:
            own = [one for one in held if one.person == person]
            with room.labels.tally() as tally:
                labelled = set(tally.current)
            renewed = [one.tile_id for one in own if one.lease in kept and one.tile_id not in labelled]
            again = [one.tile_id for one in own if asked.held is not None and one.lease not in kept and one.tile_id not in labelled]
            again, busy = answers.known(again)[: asked.count], labelled.union(one.tile_id for one in held)
            chosen = again + _fresh(asked, queue.tiles, answers, busy, asked.count - len(again))
            in_hand = len({one.tile_id for one in own if one.tile_id not in labelled}.union(chosen))
            if in_hand > _MOST_IN_HAND:
                raise LabelError(f"{person} would have {in_hand} tiles in hand, and may have {_MOST_IN_HAND}; label or release some first")
            ours.clear()
            ours.update(chosen)
            return renewed + chosen

        given = [one for one in room.leases.take(person, choose) if one.tile_id in ours]
        features = answers.features([one.tile_id for one in given])
        items = [
            Item(
                tile_id=one.tile_id,
                lease=one.lease,
                expires=_written(one.expires),
                geometry=feature.geometry,
                datetime=feature.properties.datetime,
                scene_id=feature.properties.scene_id,
                suggestion=_suggested(queue.suggestions.get(one.tile_id), taxonomy),
            )
            for one, feature in zip(given, features, strict=True)
        ]
        return Handed(items=items, progress=self._progress(room, answers))

    def add(self, name: str, person: str, said: Sequence[SaidEvent], answers: Answers) -> Added:
        """Take down what a person says; see `LabelStore.append`."""
        room = self._room(name)
        version, now = room.labels.taxonomy().version, datetime.datetime.now(datetime.UTC)
        events = [
            LabelEvent(
                event_id=str(one.event_id),
                tile_id=one.tile_id,
                kind=one.kind,
                label=one.label,
                person=person,
                at=now,
                taxonomy_version=version,
                origin=one.origin,
                undoes=None if one.undoes is None else str(one.undoes),
            )
            for one in said
        ]
        done = room.labels.append(events, alone={str(one.event_id) for one in said if one.lease is not None})
        return Added(accepted=done.accepted, already=done.already, progress=self._progress(room, answers))

    def release(self, name: str, person: str, leases: Collection[str]) -> int:
        """Let go of leases of a person, and return how many these were."""
        return self._room(name).leases.release(person, set(leases))

    def progress(self, name: str, answers: Answers) -> FullProgress:
        """Tell how far a taxonomy is, by class and by person."""
        room = self._room(name)
        known, classes = self._progress(room, answers), room.labels.taxonomy().classes
        with room.labels.tally() as tally:
            by_class = {one.name: tally.by_class[one.name] for one in classes}
            by_person = {person: PersonPace(events=pace.events, per_minute=pace.per_minute) for person, pace in tally.pace().items()}
        return FullProgress(**known.model_dump(), by_class=by_class, by_person=by_person)

    def audit(self, name: str, since: int, limit: int) -> Events:
        """Return events in order, but the first `since`."""
        found = self._room(name).labels.events(since)
        shown = [Audited.model_validate(event, from_attributes=True) for event in found[:limit]]
        return Events(events=shown, next=since + len(shown), more=len(found) > limit)

    def export(self, name: str, form: str, answers: Answers) -> bytes:
        """Return the current labels as CSV or GeoJSON."""
        with self._room(name).labels.tally() as tally:
            current = dict(tally.current)
        if form == "csv":
            return as_csv(current)
        known = answers.known(sorted(current))
        return as_geojson(current, {feature.id: feature.geometry for feature in answers.features(known)})

    def _room(self, name: str) -> _Room:
        """Return what is kept of a taxonomy. Raises `UnknownTaxonomyError`."""
        with self._lock:
            room = self._rooms.get(name)
        if room is None:
            labels = LabelStore(self._store, name)
            labels.taxonomy()  # what is not there takes no memory
            made = _Room(
                labels=labels, leases=Leases(self._store, name, seconds=self._lease_s), queues=Queues(self._store, name), inside=_Inside()
            )
            with self._lock:
                room = self._rooms.setdefault(name, made)
        return room

    def _answer(self, name: str, answers: Answers) -> TaxonomyAnswer:
        room = self._room(name)
        taxonomy = room.labels.taxonomy()
        return TaxonomyAnswer.model_validate({**_described(taxonomy), "progress": self._progress(room, answers)})

    def _progress(self, room: _Room, answers: Answers) -> Progress:
        """Count tiles of the index; those that were labelled and that it does not hold do not count."""
        leased = {one.tile_id for one in room.leases.live()}
        with room.labels.tally() as tally:
            held = room.inside.of(tally.current, answers)
            waiting = len(room.inside.of(leased - tally.current.keys(), answers))
            labelled = sum(tally.current[tile].label is not None for tile in held)
        total = answers.searcher.rows
        return Progress(labelled=labelled, unsure=len(held) - labelled, leased=waiting, left=total - len(held) - waiting, total=total)


def _fresh(asked: NextRequest, queue: Sequence[str], answers: Answers, busy: Collection[str], count: int) -> list[str]:
    """Return tiles that are not busy, in the order that is asked for; fewer where there are no more."""
    if count < 1:
        return []
    if asked.like is not None and asked.order in {None, "similar"}:
        return answers.alike(asked.like, count, without=busy)
    first = answers.known(_first([tile for tile in queue if tile not in busy], count)) if asked.order != "random" else []
    drawn = answers.drawn(count - len(first), without={*busy, *first})
    return [*first, *drawn]


def _suggested(found: Suggestion | None, taxonomy: Taxonomy) -> Suggested | None:
    """Return what a model takes a tile for, as the class is called now: the queue may be older than its name."""
    return None if found is None else Suggested(label=taxonomy.renamed.get(found.label, found.label), probability=found.probability)


def _first(tiles: Iterable[str], count: int) -> list[str]:
    return list(dict.fromkeys(tiles))[:count]


def _described(taxonomy: Taxonomy) -> Mapping[str, object]:
    return {"name": taxonomy.name, "version": taxonomy.version, "classes": [_class(one) for one in taxonomy.classes]}


def _class(one: LabelClass) -> dict[str, object]:
    return {
        "name": one.name,
        "key": one.key,
        "colour": one.colour,
        "description": one.description,
        "formerly": list(one.formerly),
    }


def _written(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")
