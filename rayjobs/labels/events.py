"""Label events: who said what of which tile, when; values, and the Parquet in which they are kept."""

from __future__ import annotations

import datetime
import io
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rayjobs.errors import DamagedError, LabelError

Kind = Literal["label", "unsure", "undo"]
Origin = Literal["page", "grid", "search", "import", "oracle"]

ORIGINS: tuple[Origin, ...] = ("page", "grid", "search", "import", "oracle")

SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("person", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("taxonomy_version", pa.int32(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("undoes", pa.string()),
    ]
)
"""Columns of a segment of events."""

_PERSON = re.compile(r"[^\W_][\w .@'-]{0,63}")
PERSON_RULE = "letters, digits and . _ @ ' - or blanks, a letter or digit first"
"""The same in words, as the pages say it."""


def check_person(name: str) -> str:
    """Return a name that may be a person's. Raises `ValueError`."""
    if not _PERSON.fullmatch(name) or name != name.strip():
        raise ValueError(f"{name[:80]!r} cannot be a person's name; use up to 64 {PERSON_RULE}")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelEvent:
    """One thing that one person said of one tile; never changed, only undone by a later one."""

    event_id: str
    """A UUID that its sender made: the same event sent twice is one."""
    tile_id: str
    kind: Kind
    label: str | None = None
    """The class, of kind `label`; else None."""
    person: str
    at: datetime.datetime
    """UTC; when it was taken down."""
    taxonomy_version: int
    """The newest one when it was taken down; the person may have seen the one before."""
    origin: Origin
    """Where it was said."""
    undoes: str | None = None
    """Of kind `undo`, the event that is taken back."""

    def __post_init__(self) -> None:
        """Refuse an event that says nothing, or two things."""
        if (self.kind == "label") != (self.label is not None) or (self.kind == "undo") != (self.undoes is not None):
            raise LabelError(
                f"event {self.event_id[:40]}: kind label needs a label, undo the event that it undoes, and neither has the other's"
            )
        if self.at.tzinfo is None:
            raise LabelError(f"event {self.event_id[:40]}: its moment has no time zone; give it in UTC")


def new_event_id() -> str:
    """Return an id for a new event."""
    return str(uuid.uuid4())


def segment_bytes(events: Sequence[LabelEvent]) -> bytes:
    """Return events as Parquet."""
    columns = {name: [getattr(event, name) for event in events] for name in SCHEMA.names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def read_segment(data: bytes, address: str) -> list[LabelEvent]:
    """Return the events of a segment, in their order. Raises `DamagedError`."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data), schema=SCHEMA).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{address} is no segment of label events ({error}); bring it back from a copy of the workspace") from None
    return [LabelEvent(**row) for row in rows]
