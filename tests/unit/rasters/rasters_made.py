"""Small rasters made at run time for the tests of this room."""

from __future__ import annotations

import warnings
from pathlib import Path

import affine
import numpy as np
import rasterio
import rasterio.errors

from rayjobs.config import build
from rayjobs.rasters.section import RastersSection
from rayjobs.rasters.sources import Discovery, discover

UTM = "EPSG:32631"


def write(
    path, values, *, crs=UTM, origin=(500_000, 5_000_000), pixel=10.0, tags=None, mask=None, colours=None, names=None, **profile
) -> str:
    """Write (bands, h, w) values as a GeoTIFF (or what `driver` says) and return the path."""
    bands, height, width = values.shape
    place = {"crs": crs, "transform": affine.Affine(pixel, 0, origin[0], 0, -pixel, origin[1])} if crs else {}
    settings = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype, **place, **profile}
    internal = {"GDAL_TIFF_INTERNAL_MASK": True} if mask is not None else {}
    with warnings.catch_warnings(), rasterio.Env(**internal):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **settings) as file:
            if colours:
                file.write_colormap(1, colours)
            for index, name in enumerate(names or (), start=1):
                file.set_band_description(index, name)
            file.update_tags(**(tags or {}))
            file.write(values)
            if mask is not None:
                file.write_mask(mask)
    return str(path)


def noise(*shape: int, dtype: str = "uint8", seed: int = 0, low: int = 1, high: int = 250) -> np.ndarray:
    """Whole numbers in [low, high)."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def found(*sources: dict, **keys) -> Discovery:
    """Discover the scenes of sources written as in an experiment file."""
    return discover(build(RastersSection, {"sources": list(sources), **keys}))


def files(*uris: str | Path, **keys) -> dict:
    """A source of files."""
    return {"kind": "files", "uris": [str(uri) for uri in uris], **keys}
