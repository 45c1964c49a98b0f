"""Events for tests."""

from __future__ import annotations

import datetime
import itertools

from rayjobs.labels.events import LabelEvent, new_event_id
from rayjobs.labels.taxonomy import LabelClass, publish_taxonomy

_BEGUN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_SECONDS = itertools.count()
LAND = ("field", "forest", "water")


def land(store, *, classes=LAND, name="land"):
    return publish_taxonomy(store, name, [LabelClass(name=one) for one in classes])


def said(person, tile, label=None, *, undoes=None, event_id=None, at=None, origin="page"):
    """An event: a label, without one unsure, or the undoing of another."""
    kind = "undo" if undoes else "unsure" if label is None else "label"
    return LabelEvent(
        event_id=event_id or new_event_id(), tile_id=tile, kind=kind, label=label, person=person, taxonomy_version=1, origin=origin,
        at=at or _BEGUN + datetime.timedelta(seconds=next(_SECONDS)), undoes=undoes.event_id if undoes else None,
    )  # fmt: skip
