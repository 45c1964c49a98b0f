"""Scenes: one acquisition each, of one or many files; and the table in which they are kept."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from rayjobs.geo import Grid, geoparquet_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """Where one band of a scene lies, and what its values mean."""

    uri: str
    """Local path, `s3://`, `http(s)://`, or `tiles+http(s)://` for a picture that a service hands out in tiles."""
    band_index: int = 1
    """Counted from 1, within the file."""
    scale: float = 1.0
    """Physical value = raw * scale + offset."""
    offset: float = 0.0
    """In physical units."""
    nodata: float | None = None
    """Raw value of missing pixels; None if there is none."""
    palette: int | None = None
    """Component of the file's colour table that a value stands for (0 red, 1 green, 2 blue); None: the value itself."""
    turns: int = 0
    """Quarter turns clockwise, 0 to 3, that bring the file's pixels onto the scene's."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.band_index < 1 or not math.isfinite(self.scale) or self.scale == 0 or not math.isfinite(self.offset):
            raise ValueError(f"{self.uri}: band_index counts from 1, scale is finite and not 0, offset is finite: {self}")
        if self.turns not in range(4):
            raise ValueError(f"{self.uri}: turns are 0 to 3 quarters, not {self.turns}")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLayer:
    """Which pixels of a scene cannot be used; any grid of the scene's CRS, read with the nearest pixel."""

    uri: str
    band_index: int = 1
    """Counted from 1."""
    bits: tuple[int, ...] = ()
    """A pixel with any of these bits set (lowest 0) is not valid."""
    classes: tuple[int, ...] = ()
    """A pixel of one of these values is not valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where the middle of a picture lies whose extent is not known."""

    lon: float
    """Degrees east, in [-180, 180]."""
    lat: float
    """Degrees north."""
    radius_m: float
    """Of the body on which it lies."""

    def __post_init__(self) -> None:
        """Refuse places that are on no sphere."""
        if not (abs(self.lon) <= 180 and abs(self.lat) <= 90 and 0 < self.radius_m < math.inf):  # noqa: PLR2004  degrees
            raise ValueError(f"longitudes lie within [-180, 180], latitudes within [-90, 90], on a sphere of some radius, not {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One acquisition, all bands on one grid."""

    scene_id: str
    """Unique in its set, and independent of where the files lie."""
    assets: Mapping[str, Asset]
    """By band name, in band order."""
    grid: Grid
    block: tuple[int, int]
    """Height and width in pixels of the blocks in which the file is stored."""
    dtype: str
    """numpy name of a dtype that holds all bands exactly."""
    resolution_m: float | None = None
    """Metres per pixel on the ground."""
    datetime: datetime.datetime | None = None
    """Aware, UTC."""
    quality: QualityLayer | None = None
    label: str | None = None
    """Class of an image folder's picture."""
    place: str | None = None
    """Ground that a picture without coordinates shows: equal on all dates."""
    observation: str | None = None
    """What a picture was cut from: those of one observation are not independent of each other."""
    spot: Spot | None = None
    """Of a picture without coordinates of its own."""
    platform: str | None = None
    """Satellite or aircraft."""
    footprint: shapely.Geometry | None = field(default=None, repr=False)
    """WGS 84, cut at the antimeridian; None without CRS."""

    def __post_init__(self) -> None:
        """Check what later stages rely on."""
        if not self.scene_id or not self.assets or min(self.block) < 1:
            raise ValueError(f"a scene needs an id, a band and a block shape: {self}")
        if self.datetime is not None and self.datetime.utcoffset() != datetime.timedelta(0):
            raise ValueError(f"scene {self.scene_id}: datetime must be in UTC, not {self.datetime.isoformat()}")


_ASSET = pa.struct(
    {
        "band": pa.string(),
        "uri": pa.string(),
        "band_index": pa.int32(),
        "scale": pa.float64(),
        "offset": pa.float64(),
        "nodata": pa.float64(),
        "palette": pa.int32(),
        "turns": pa.int32(),
    }
)
_QUALITY = pa.struct({"uri": pa.string(), "band_index": pa.int32(), "bits": pa.list_(pa.int32()), "classes": pa.list_(pa.int32())})
SCHEMA = pa.schema(
    {
        "scene_id": pa.string(),
        "assets": pa.list_(_ASSET),
        "crs": pa.string(),
        "transform": pa.list_(pa.float64(), 6),
        "height": pa.int64(),
        "width": pa.int64(),
        "block_height": pa.int64(),
        "block_width": pa.int64(),
        "dtype": pa.string(),
        "resolution_m": pa.float64(),
        "datetime": pa.timestamp("us", tz="UTC"),
        "quality": _QUALITY,
        "label": pa.string(),
        "place": pa.string(),
        "observation": pa.string(),
        "lon": pa.float64(),
        "lat": pa.float64(),
        "radius_m": pa.float64(),
        "platform": pa.string(),
        "geometry": pa.binary(),
    }
)
"""Columns of `scenes.parquet` (GeoParquet 1.1; `transform` is a, b, c, d, e, f: pixel to CRS; `lon`, `lat` and `radius_m` are the spot)."""


def scenes_table(scenes: list[Scene]) -> pa.Table:
    """Return the scenes as a table, one row each, with the metadata of GeoParquet."""
    table = pa.Table.from_pylist([_row(scene) for scene in scenes], schema=SCHEMA)
    geometries = np.array([scene.footprint for scene in scenes], object)
    return table.replace_schema_metadata({b"geo": geoparquet_metadata(geometries)})


def read_scenes(table: pa.Table) -> list[Scene]:
    """Read back what `scenes_table` wrote."""
    return [_scene(row) for row in table.select(SCHEMA.names).to_pylist()]


def _row(scene: Scene) -> dict[str, Any]:
    fields = Asset.__dataclass_fields__
    quality = scene.quality
    return {
        "scene_id": scene.scene_id,
        "assets": [{"band": band, **{name: getattr(asset, name) for name in fields}} for band, asset in scene.assets.items()],
        "crs": scene.grid.crs,
        "transform": list(scene.grid.transform),
        "height": scene.grid.height,
        "width": scene.grid.width,
        "block_height": scene.block[0],
        "block_width": scene.block[1],
        "dtype": scene.dtype,
        "resolution_m": scene.resolution_m,
        "datetime": scene.datetime,
        "quality": {name: getattr(quality, name) for name in QualityLayer.__dataclass_fields__} if quality else None,
        "label": scene.label,
        "place": scene.place,
        "observation": scene.observation,
        **{name: getattr(scene.spot, name, None) for name in Spot.__dataclass_fields__},
        "platform": scene.platform,
        "geometry": None if scene.footprint is None else shapely.to_wkb(scene.footprint),
    }


def _scene(row: dict[str, Any]) -> Scene:
    quality = row["quality"]
    taken = row["datetime"]
    return Scene(
        scene_id=row["scene_id"],
        assets={entry.pop("band"): Asset(**entry) for entry in row["assets"]},
        grid=Grid(crs=row["crs"], transform=tuple(row["transform"]), height=row["height"], width=row["width"]),
        block=(row["block_height"], row["block_width"]),
        dtype=row["dtype"],
        resolution_m=row["resolution_m"],
        datetime=taken.astimezone(datetime.UTC) if taken else None,
        quality=QualityLayer(**(quality | {"bits": tuple(quality["bits"]), "classes": tuple(quality["classes"])})) if quality else None,
        label=row["label"],
        place=row["place"],
        observation=row["observation"],
        spot=None if row["lon"] is None else Spot(**{name: row[name] for name in Spot.__dataclass_fields__}),
        platform=row["platform"],
        footprint=None if row["geometry"] is None else shapely.from_wkb(row["geometry"]),
    )
