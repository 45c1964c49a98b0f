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

_MOST_EXAMPLES = 16
_LARGEST_DIMENSION = 8192


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Point(_Strict):
    """A place, in degrees of WGS 84."""

    lon: Longitude
    lat: Latitude


class Example(_Strict):
    """One thing to search for: exactly one of a tile, a place, or an embedding."""

    tile_id: TileId | None = None
    point: Point | None = None
    embedding: Annotated[list[Finite], pydantic.Field(min_length=1, max_length=_LARGEST_DIMENSION)] | None = None

    @pydantic.model_validator(mode="after")
    def _one_of_three(self) -> Example:
        if sum(value is not None for value in (self.tile_id, self.point, self.embedding)) != 1:
            raise ValueError("give exactly one of tile_id, point and embedding")
        return self


class Filters(_Strict):
    """Which tiles may be answered, in the words of STAC."""

    limit: Annotated[int, pydantic.Field(ge=1)] = 10
    """Most hits."""
    bbox: Annotated[list[Finite], pydantic.Field(min_length=4, max_length=4)] | None = None
    """west, south, east, north in degrees; west greater than east crosses the antimeridian."""
    datetime: Annotated[str, pydantic.Field(max_length=100)] | None = None
    """An instant or an interval `FROM/TO` of RFC 3339; `..` leaves an end open."""


class SearchRequest(Filters):
    """A search by examples; several are averaged."""

    positives: Annotated[list[Example], pydantic.Field(min_length=1, max_length=_MOST_EXAMPLES)]
    """What the hits should look like."""


class Window(_Strict):
    """A tile's place in its scene, in pixels."""

    row: int
    col: int
    height: int
    width: int


class Properties(_Strict):
    """What is known of a tile."""

    tile_id: str
    scene_id: str
    datetime: str | None
    label: str | None
    window: Window
    score: float | None = None
    """Cosine similarity to the query; higher is better. Absent where there was no query."""


class Feature(_Strict):
    """One tile as GeoJSON; `geometry` is null for images without a place."""

    type: Literal["Feature"] = "Feature"
    id: str
    geometry: dict[str, Any] | None
    properties: Properties


class SearchAnswer(_Strict):
    """Hits as a GeoJSON FeatureCollection in WGS 84, best first, and how they were found."""

    type: Literal["FeatureCollection"] = "FeatureCollection"
    features: list[Feature]
    index_version: str
    encoder_fingerprint: str
    exact: bool
    """Whether these are provably the nearest of all candidates."""
    candidates: int
    """Tiles that the filters left."""


class Health(_Strict):
    """Whether the service answers, and from what."""

    status: Literal["ok"] = "ok"
    index_version: str
    last_error: str | None = None
    """Why a later version was not taken up."""


class Info(_Strict):
    """What the service serves."""

    name: str
    index_version: str
    encoder_fingerprint: str
    rows: int
    dimension: int
    distance: str
    bands: list[str]
    tile_size: int
    bounds: list[float] | None
    """west, south, east, north of all tiles."""
    dates: list[str] | None
    """First and last datetime."""
    versions: list[str] = []
    """Index versions that a request may pin, the current one first."""
    last_error: str | None = None
    """Why a later version was not taken up."""
