"""What files say of themselves, read without their pixels, many at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import rasterio.enums

from rayjobs.errors import ImageryError
from rayjobs.geo import Grid, footprint
from rayjobs.rasters import dates
from rayjobs.rasters.gdal import environment, gdal_path, is_remote, open_raster, uri_of
from rayjobs.rasters.handles import FAULTS, explained, grid_of

if TYPE_CHECKING:
    import datetime

_THREADS = 16
_WITHOUT_PIXELS = (".aux.xml", ".ovr")
"""Side files that decide no pixel that is read: statistics, which programs write when they show a file, and overviews."""
_NAME = re.compile(r"[A-Za-z][\w.-]{0,31}")
_COLOURS = {
    rasterio.enums.ColorInterp.red: "red",
    rasterio.enums.ColorInterp.green: "green",
    rasterio.enums.ColorInterp.blue: "blue",
    rasterio.enums.ColorInterp.alpha: "alpha",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a raster file says of itself."""

    uri: str
    files: tuple[str, ...]
    """Addresses of all files that its pixels lie in, its own first: a mask beside it, or what a VRT is made of."""
    grid: Grid
    footprint: Any
    """shapely geometry, WGS 84; None without CRS."""
    block: tuple[int, int]
    """Height and width of the stored blocks."""
    dtypes: tuple[str, ...]
    """numpy name of each band's dtype; this and what follows in the order of the file."""
    names: tuple[str, ...]
    """Descriptions or colours of the bands where they tell them apart, else b1, b2, ..."""
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    alpha: tuple[int, ...]
    """Bands (from 1) that hold opacity."""
    paletted: bool
    """Whether the first band holds codes of a colour table."""
    datetime: datetime.datetime | None
    """When it was taken, by its tags; UTC."""


def read_headers(uris: Iterable[str]) -> dict[str, Header | str]:
    """Return the header of each file, or the reason why there is none."""
    distinct = list(dict.fromkeys(uris))
    if not distinct:
        return {}
    with ThreadPoolExecutor(min(_THREADS, len(distinct)), thread_name_prefix="headers") as pool:
        return dict(zip(distinct, pool.map(_header_or_reason, distinct), strict=True))


def _header_or_reason(uri: str) -> Header | str:
    for fresh in (False, True) if is_remote(uri) else (False,):
        try:
            with environment(), open_raster(uri, fresh=fresh) as dataset:
                return read_header(uri, dataset)
        except FAULTS as error:
            reason = f"cannot be opened: {explained(error)}"
        except (ImageryError, ValueError) as error:  # a grid or CRS that leads nowhere
            return str(error)
    return reason


def read_header(uri: str, dataset: Any) -> Header:
    """Return the header of an open dataset.

    Raises:
        ValueError: its transform does not map pixels to the ground one to one.
        ImageryError: its CRS is not tied to the ground.
    """
    grid = grid_of(dataset)
    kinds = dataset.colorinterp
    return Header(
        uri=uri,
        files=(uri, *_further_files(uri, dataset)),
        grid=grid,
        footprint=footprint(grid),
        block=tuple(dataset.block_shapes[0]),
        dtypes=tuple(dataset.dtypes),
        names=_names(dataset),
        nodata=tuple(None if value is None else float(value) for value in dataset.nodatavals),
        scales=tuple(dataset.scales),
        offsets=tuple(dataset.offsets),
        alpha=tuple(band for band, kind in enumerate(kinds, start=1) if kind is rasterio.enums.ColorInterp.alpha),
        paletted=kinds[0] is rasterio.enums.ColorInterp.palette,
        datetime=dates.from_tags({**dataset.tags(ns="IMAGERY"), **dataset.tags()}),
    )


def _further_files(uri: str, dataset: Any) -> list[str]:
    """Return the addresses of a dataset's files but its own; GDAL names the parts of a VRT, yet not what VRTs among them are made of."""
    found: dict[str, None] = {}
    for name in dataset.files:
        if name == gdal_path(uri) or name.endswith(_WITHOUT_PIXELS):
            continue
        found[uri_of(name)] = None
        if name.endswith(".vrt"):
            with open_raster(uri_of(name)) as part:
                found |= dict.fromkeys(_further_files(uri_of(name), part))
    return list(found)


def _names(dataset: Any) -> tuple[str, ...]:
    names = [
        description if description and _NAME.fullmatch(description) else _COLOURS.get(kind, f"b{band}")
        for band, (description, kind) in enumerate(zip(dataset.descriptions, dataset.colorinterp, strict=True), start=1)
    ]
    return tuple(names) if len(set(names)) == len(names) else tuple(f"b{band}" for band in dataset.indexes)
