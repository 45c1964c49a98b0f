"""The JSON of the service: what a request may say and what an answer says."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic

Longitude = Annotated[float, pydantic.Field(ge=-180, le=180, allow_inf_nan=False)]
Latitude = Annotated[float, pydantic.Field(ge=-90, le=90, allow_inf_nan=False)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


def _checked_tile_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{20}", text):
        raise ValueError(f"{text[:40]!r} is no tile id; these have 20 digits and letters from a to f, such as 0123456789abcdef0123")
    return text


TileId = Annotated[str, pydantic.AfterValidator(_checked_tile_id), pydantic.Field(json_schema_extra={"pattern": "^[0-9a-f]{20}$"})]

Interval = Annotated[str, pydantic.Field(max_length=100)]
Word = Annotated[str, pydantic.Field(max_length=500)]
Value = bool | int | Finite | Word | None

_MOST_EXAMPLES = 64
_LARGEST_DIMENSION = 8192
_MOST_WORDS = 100
_MOST_COLUMNS = 20
_MOST_POSITIONS = 20_000
"""Of a ring; a polygon has no more vertices either, which is checked where it is used."""
_MOST_RINGS = _MOST_POSITIONS // 4
_FURTHEST = 10_000
_HALF_ROUND_M = 20_100_000.0
"""No two places of the Earth lie further apart."""


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


def _no_more_than(given: Any, most: int) -> Any:
    """Refuse an object by its size, before each of its entries becomes a fault of its own."""
    if isinstance(given, dict) and len(given) > most:
        raise ValueError(f"has {len(given):,} fields, of which no more than {most} can be known")
    return given


class _Asked(_Strict):
    """A part of a request. What is wrong with one makes few faults, however large it is: lists end at the first."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        return _no_more_than(given, len(cls.model_fields))


class Point(_Asked):
    """A place, in degrees of WGS 84."""

    lon: Longitude
    lat: Latitude
    datetime: Interval | None = None
    """Only tiles of this instant or interval are taken to show the place."""


class Example(_Asked):
    """One thing to search for: exactly one of a tile, a place, or an embedding."""

    tile_id: TileId | None = None
    point: Point | None = None
    embedding: Annotated[list[Finite], pydantic.Field(min_length=1, max_length=_LARGEST_DIMENSION, fail_fast=True)] | None = None
    """As `/v1/embed` returns it, or another of the index's dimension; any length but zero."""
    encoder_fingerprint: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """Of the encoder that made the embedding, or its first digits: refused where it is not the index's."""

    @pydantic.model_validator(mode="after")
    def _one_of_three(self) -> Example:
        if sum(value is not None for value in (self.tile_id, self.point, self.embedding)) != 1:
            raise ValueError("give exactly one of tile_id, point and embedding")
        if self.encoder_fingerprint is not None and self.embedding is None:
            raise ValueError("encoder_fingerprint says which encoder made an embedding; give it with one")
        return self


Position = Annotated[list[Finite], pydantic.Field(min_length=2, max_length=4, fail_fast=True)]
Ring = Annotated[list[Position], pydantic.Field(min_length=4, max_length=_MOST_POSITIONS, fail_fast=True)]
Rings = Annotated[list[Ring], pydantic.Field(min_length=1, max_length=_MOST_RINGS, fail_fast=True)]
Bounds = Annotated[list[Finite], pydantic.Field(min_length=4, max_length=4, fail_fast=True)]
"""west, south, east, north in degrees."""
Words = Annotated[list[Word], pydantic.Field(max_length=_MOST_WORDS, fail_fast=True)]
Values = Annotated[list[Value], pydantic.Field(max_length=_MOST_WORDS, fail_fast=True)]


def _few_columns(given: Any) -> Any:
    return _no_more_than(given, _MOST_COLUMNS)


Columns = Annotated[dict[Word, Value | Values], pydantic.BeforeValidator(_few_columns), pydantic.Field(max_length=_MOST_COLUMNS)]


class Polygon(pydantic.BaseModel):
    """A GeoJSON Polygon; longitudes past 180 degrees, and edges longer than half a turn, cross the antimeridian."""

    type: Literal["Polygon"]
    coordinates: Rings


class MultiPolygon(pydantic.BaseModel):
    """A GeoJSON MultiPolygon."""

    type: Literal["MultiPolygon"]
    coordinates: Annotated[list[Rings], pydantic.Field(min_length=1, max_length=_MOST_RINGS, fail_fast=True)]


class Ground(_Asked):
    """Which tiles may be answered by where and when they are, in the words of STAC."""

    bbox: Bounds | None = None
    """west, south, east, north in degrees; west greater than east crosses the antimeridian."""
    intersects: Annotated[Polygon | MultiPolygon, pydantic.Field(discriminator="type")] | None = None
    """Tiles whose footprint meets this ground pass."""
    datetime: Interval | None = None
    """An instant or an interval `FROM/TO` of RFC 3339; `..` leaves an end open."""


class Page(_Asked):
    """Which part of an answer is wanted."""

    limit: Annotated[int, pydantic.Field(ge=1)] = 10
    """Most features."""
    offset: Annotated[int, pydantic.Field(ge=0, le=_FURTHEST)] = 0
    """Features that are left out before the first."""
    index_version: Annotated[str, pydantic.Field(max_length=100)] | None = None
    """Answer from this index version or not at all."""


class Filters(Ground, Page):
    """Which tiles may be answered, and how they are searched."""

    labels: Words = []
    """Tiles that have one of these labels pass; empty lets all pass."""
    scenes: Words = []
    """Tiles of one of these scenes pass; empty lets all pass."""
    where: Columns = {}
    """Columns of the metadata, each with the value or the values that tiles may have there; null stands for none."""
    threshold: Annotated[float, pydantic.Field(ge=-1, le=1)] | None = None
    """Least score of a hit."""
    spread_m: Annotated[float, pydantic.Field(gt=0, le=_HALF_ROUND_M)] | None = None
    """No two hits have their middles nearer than this, metres; of those that have, the better one stays."""
    exact: bool | None = None
    """True compares the query with every tile that passes; default: as the planner sees fit."""


class SearchRequest(Filters):
    """A search by examples."""

    positives: Annotated[list[Example], pydantic.Field(min_length=1, max_length=_MOST_EXAMPLES, fail_fast=True)]
    """What the hits should look like; the first is the query that the others refine."""
    negatives: Annotated[list[Example], pydantic.Field(max_length=_MOST_EXAMPLES, fail_fast=True)] = []
    """What they should not look like."""
    method: Literal["mean", "rocchio", "linear"] | None = None
    """How examples become one query; default `rocchio` where there are negatives, else `mean`."""


class BatchRequest(_Asked):
    """Several searches, answered from one index version."""

    searches: Annotated[list[SearchRequest], pydantic.Field(min_length=1, max_length=256, fail_fast=True)]


class ChangesRequest(Page):
    """Two times to compare."""

    before: Annotated[Interval, pydantic.Field(alias="from")]
    """When places were seen first, as `datetime` of a search."""
    after: Annotated[Interval, pydantic.Field(alias="to")]
    """When they were seen again."""
    bbox: Bounds | None = None
    """As in a search."""
    intersects: Annotated[Polygon | MultiPolygon, pydantic.Field(discriminator="type")] | None = None
    """As in a search."""


class Window(_Strict):
    """A tile's place in its scene, in pixels."""

    row: int | None
    col: int | None
    height: int | None
    width: int | None


class Properties(_Strict):
    """What is known of a tile."""

    tile_id: str
    scene_id: str
    datetime: str | None
    label: str | None
    window: Window
    place_id: str | None = None
    """Equal for tiles that look at the same ground."""
    score: float | None = None
    """Cosine similarity to the query; higher is better. Absent where there was no query."""


class Feature(_Strict):
    """One tile as GeoJSON; `geometry` is null for images without a place."""

    type: Literal["Feature"] = "Feature"
    id: str
    geometry: dict[str, Any] | None
    properties: Properties


class _Answer(_Strict):
    """A GeoJSON FeatureCollection in WGS 84, and where it comes from."""

    type: Literal["FeatureCollection"] = "FeatureCollection"
    index_version: str
    encoder_fingerprint: str
    exact: bool
    """Whether these are provably the first of all candidates."""
    candidates: int
    """Features that the filters left, of which these are a part."""


class SearchAnswer(_Answer):
    """Tiles: hits best first, or without a query in order of their ids."""

    features: list[Feature]


class BatchAnswer(_Strict):
    """An answer for each search, in their order."""

    answers: list[SearchAnswer]


class ChangeProperties(_Strict):
    """How a place looked twice."""

    change: float
    """Cosine distance of the two embeddings: 0 where they are equal, 2 at most."""
    place_id: str
    from_tile_id: str
    to_tile_id: str
    from_datetime: str | None
    to_datetime: str | None
    from_scene_id: str
    to_scene_id: str


class Change(_Strict):
    """A place as GeoJSON; id and geometry are the later tile's."""

    type: Literal["Feature"] = "Feature"
    id: str
    geometry: dict[str, Any] | None
    properties: ChangeProperties


class ChangesAnswer(_Answer):
    """Places that were seen twice, the one that changed most first."""

    features: list[Change]


class Embedding(_Strict):
    """What the encoder makes of an image."""

    embedding: list[float]
    encoder_fingerprint: str
    index_version: str


class Problem(pydantic.BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    """What was wrong, with which item, and what to do about it."""


class Health(_Strict):
    """Whether the service answers, and from what."""

    status: Literal["ok"] = "ok"
    index_version: str
    last_error: str | None = None
    """Why a later version was not taken up."""


class Recall(_Strict):
    """A share of the true nearest tiles."""

    at: int
    """Hits per query."""
    value: float
    queries: int


class Info(_Strict):
    """What the service serves."""

    name: str
    index_version: str
    encoder_fingerprint: str
    rows: int
    dimension: int
    distance: str
    bands: list[str]
    dtype: str
    """Of the pixels that the encoder takes."""
    tile_size: int
    kind: str
    """How vectors are compressed for approximate searches."""
    why: str
    """Why that kind was chosen."""
    recall: Recall | None
    """What approximate searches without a filter find, estimated when the index was built."""
    segments: int
    deleted: int
    mapped_bytes: int
    """Size of the files that searches map into memory, shared by the processes of a machine."""
    columns: list[str]
    """Of the metadata, that `where` takes."""
    bounds: list[float] | None
    """west, south, east, north of all tiles."""
    dates: list[str] | None
    """First and last datetime."""
    versions: list[str] = []
    """Index versions that a request may pin, the current one first."""
    last_error: str | None = None
    """Why a later version was not taken up."""
