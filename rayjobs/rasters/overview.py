"""A small picture of a scene as a web map shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import calculate_default_transform, transform_bounds

from rayjobs.rasters.gdal import environment, open_raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.rasters.scenes import Scene

_WEB_MERCATOR = "EPSG:3857"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A scene in web Mercator."""

    values: np.ndarray[Any, np.dtype[np.float32]]
    """(bands, height, width)."""
    valid: np.ndarray[Any, np.dtype[np.bool_]]
    """(height, width), True means valid."""
    bounds: tuple[float, float, float, float]
    """west, south, east, north in degrees."""


def overview(scene: Scene, bands: Sequence[str], *, side: int) -> Overview:
    """Read a scene at a coarse resolution, warped to web Mercator.

    Args:
        scene: with a CRS.
        bands: which of its bands.
        side: pixels along the longer side.
    """
    with environment():
        layers = [_warped(scene, band, side) for band in bands]
    values = np.stack([values for values, _, _ in layers])
    valid = np.logical_and.reduce([valid for _, valid, _ in layers])
    return Overview(values=values, valid=valid, bounds=layers[0][2])


def _warped(scene: Scene, band: str, side: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[float, float, float, float]]:
    asset = scene.assets[band]
    with open_raster(asset.uri) as source:
        transform, width, height = calculate_default_transform(source.crs, _WEB_MERCATOR, source.width, source.height, *source.bounds)
        shrink = max(width, height) / side
        size = {"width": max(1, round(width / shrink)), "height": max(1, round(height / shrink))}
        scaled = transform * transform.scale(width / size["width"], height / size["height"])
        options = {"src_nodata": asset.nodata, "nodata": asset.nodata} if asset.nodata is not None else {"add_alpha": True}
        with WarpedVRT(source, crs=_WEB_MERCATOR, transform=scaled, resampling=Resampling.average, **size, **options) as warped:
            values = warped.read(asset.band_index).astype(np.float32)
            valid = warped.dataset_mask() > 0
            west, south, east, north = transform_bounds(_WEB_MERCATOR, "EPSG:4326", *warped.bounds)
    return values, valid, (west, south, east, north)
