"""The queue: tiles that somebody thinks should be labelled first, such as a round of active learning, and what a model takes them for."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from rayjobs.labels.taxonomy import BINARY, ROOT, Taxonomy
from rayjobs.storage import Artefact

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.storage import Store, Version

FILE = "queue.parquet"
"""Of a version of the queue: `tile_id`, `rank` (from 0, the first to be labelled), and where a model has looked, `probability` and `label`.
Without `label`, and with a binary taxonomy, `probability` is that of `positive`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What a model takes a tile for."""

    label: str
    """As the class was called when the queue was made; see `Taxonomy.renamed`."""
    probability: float
    """Of the label, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One version of the queue."""

    tiles: Sequence[str] = ()
    """Tile ids, the first to be labelled first."""
    suggestions: Mapping[str, Suggestion]
    """By tile id, where there is one."""


def queue_of(store: Store, taxonomy: str) -> Artefact:
    """Return where the queue of a taxonomy lies."""
    return Artefact(store, f"{ROOT}{taxonomy}", "queue")


class Queues:
    """The queue of one taxonomy as it is published anew. Safe to use from several threads."""

    def __init__(self, store: Store, taxonomy: str) -> None:
        """Take a workspace and a taxonomy's name."""
        self._artefact, self._lock = queue_of(store, taxonomy), threading.Lock()
        self._version, self._queue = "", Queue(suggestions={})

    def current(self, taxonomy: Taxonomy) -> Queue:
        """Return the current queue; an empty one where none was published."""
        with self._lock:
            version = self._artefact.current()
            if version is not None and version.version != self._version:
                self._queue, self._version = _read(version, taxonomy), version.version
            return self._queue


def _read(version: Version, taxonomy: Taxonomy) -> Queue:
    table = pq.read_table(io.BytesIO(version.read(FILE))).sort_by("rank")
    tiles: list[str] = table["tile_id"].to_pylist()
    return Queue(tiles=tiles, suggestions=_suggestions(table, tiles, taxonomy))


def _suggestions(table: pa.Table, tiles: Sequence[str], taxonomy: Taxonomy) -> dict[str, Suggestion]:
    if "probability" not in table.column_names:
        return {}
    probabilities = table["probability"].to_pylist()
    if "label" in table.column_names:
        labels, sure = table["label"].to_pylist(), probabilities
    elif taxonomy.binary:
        labels = [BINARY[0] if (value or 0) >= 1 / 2 else BINARY[1] for value in probabilities]
        sure = [None if value is None else max(value, 1 - value) for value in probabilities]
    else:
        return {}
    return {
        tile: Suggestion(label=label, probability=value)
        for tile, label, value in zip(tiles, labels, sure, strict=True)
        if label is not None and value is not None
    }
