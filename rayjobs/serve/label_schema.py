"""The JSON of labels: what a request may say and what an answer says."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import pydantic

from rayjobs.labels.events import Kind, Origin
from rayjobs.serve.schema import TileId, _Asked, _Strict

_MOST_EVENTS = 1000
_MOST_LEASES = 1000
_MOST_CLASSES = 100
_LONGEST = 500
_COLOUR = r"^#[0-9a-f]{6}$"
_TAXONOMY = r"^[a-z0-9][a-z0-9_-]{0,63}$"

ClassName = Annotated[str, pydantic.Field(min_length=1, max_length=64)]
LeaseId = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{32}$")]
LeaseIds = Annotated[list[LeaseId], pydantic.Field(max_length=_MOST_LEASES, fail_fast=True)]


class GivenClass(_Asked):
    """A class of a taxonomy that is to be made."""

    name: ClassName
    key: Annotated[str, pydantic.Field(max_length=1)] = ""
    """The key that gives it in the page; default the first that is free."""
    colour: Annotated[str, pydantic.Field(pattern=_COLOUR)] | Literal[""] = ""
    """Default the next of a palette."""
    description: Annotated[str, pydantic.Field(max_length=_LONGEST)] = ""
    formerly: Annotated[list[ClassName], pydantic.Field(max_length=_MOST_CLASSES, fail_fast=True)] = pydantic.Field([])
    """Names that it had in earlier versions."""

    @pydantic.field_serializer("formerly")
    def _unchanging(self, names: list[str]) -> tuple[str, ...]:
        return tuple(names)


class NewTaxonomy(_Asked):
    """A taxonomy, or the next version of one."""

    name: Annotated[str, pydantic.Field(pattern=_TAXONOMY)]
    classes: Annotated[list[GivenClass], pydantic.Field(min_length=2, max_length=_MOST_CLASSES, fail_fast=True)]
    """A next version names all classes of the one before, those too that are renamed (`formerly`)."""


class Progress(_Strict):
    """How far a taxonomy is: tiles of the index that is served. The first four add up to the fifth."""

    labelled: int
    """Tiles with a class."""
    unsure: int
    """Tiles of which people are unsure, or do not agree."""
    leased: int
    """Tiles in somebody's hands that are neither."""
    left: int
    """All others."""
    total: int


class ClassAnswer(_Strict):
    """A class of a taxonomy."""

    name: str
    key: str
    colour: str
    description: str
    formerly: list[str]
    """Names that it had in earlier versions."""


class TaxonomyAnswer(_Strict):
    """A taxonomy's newest version."""

    name: str
    version: int
    classes: list[ClassAnswer]
    progress: Progress


class Taxonomies(_Strict):
    """All taxonomies of the workspace, by name."""

    taxonomies: list[TaxonomyAnswer]
    person: str | None
    """Whose token the asker's is; null where the token has no name, so that the header must say one."""


class NextRequest(_Asked):
    """What is wanted to be labelled next."""

    count: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """Most tiles."""
    like: TileId | None = None
    """Tiles like this one come first, the most alike first."""
    order: Literal["queue", "random", "similar"] | None = None
    """`queue`: those that active learning put first, then any; `random`: any; `similar`: as `like` says. Default: `similar` with
    `like`, else `queue`."""
    held: LeaseIds | None = None
    """Leases that the asker has at hand: they are renewed, and others of the same person, which a page that was loaded anew has lost, are
    handed out again first. Default: neither."""


class Suggested(_Strict):
    """What a model takes a tile for."""

    label: str
    probability: float


class Item(_Strict):
    """A tile in the asker's hands."""

    tile_id: str
    lease: str
    """Goes with the event that labels it."""
    expires: str
    """When the tile may be handed to somebody else, RFC 3339."""
    geometry: dict[str, Any] | None
    """Footprint as GeoJSON, in WGS 84."""
    datetime: str | None
    scene_id: str
    suggestion: Suggested | None = None


class Handed(_Strict):
    """Tiles to be labelled; fewer than wanted where no more are left."""

    items: list[Item]
    progress: Progress


class SaidEvent(_Asked):
    """What somebody says of a tile."""

    event_id: UUID
    """Made by the sender: an event that is sent again counts once."""
    tile_id: TileId
    kind: Kind
    label: ClassName | None = None
    """The class, of kind `label` alone."""
    lease: LeaseId | None = None
    """Under which the tile was handed out: the event is refused where somebody else has labelled it since; without one it is one more
    vote."""
    undoes: UUID | None = None
    """The event of the same person and tile that is taken back, of kind `undo` alone."""
    origin: Origin = "page"


class SaidEvents(_Asked):
    """What somebody says of some tiles; all is taken down or nothing."""

    events: Annotated[list[SaidEvent], pydantic.Field(min_length=1, max_length=_MOST_EVENTS, fail_fast=True)]


class Added(_Strict):
    """What became of events."""

    accepted: int
    already: int
    """Events that were there before."""
    progress: Progress


class ReleaseRequest(_Asked):
    """Leases to let go of."""

    leases: LeaseIds


class Released(_Strict):
    """How many leases were let go of."""

    released: int


class PersonPace(_Strict):
    """How one person gets on."""

    events: int
    per_minute: float | None
    """Over the last ten minutes of the person's work; null of a single event."""


class FullProgress(Progress):
    """How far a taxonomy is, by class and by person."""

    by_class: dict[str, int]
    """Tiles of each class, those too that the index does not hold."""
    by_person: dict[str, PersonPace]


class Audited(_Strict):
    """An event as it was taken down."""

    event_id: str
    tile_id: str
    kind: Kind
    label: str | None
    person: str
    at: datetime.datetime
    taxonomy_version: int
    origin: Origin
    undoes: str | None


class Events(_Strict):
    """Events in the order in which they were taken down."""

    events: list[Audited]
    next: int
    """What to give as `since` for those after these."""
    more: bool
    """Whether there are some already."""
