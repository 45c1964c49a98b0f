"""Imagery: how GDAL is set up, and whether it reads a first block of what an experiment names."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import rasterio
import rasterio.crs
import rasterio.env
import rasterio.io
import rasterio.windows

from rayjobs.doctor.checks import Check, Look, Patient, caution, fault, ok
from rayjobs.doctor.workspace import is_bucket, own_prefix
from rayjobs.errors import first_few
from rayjobs.rasters.gdal import BLOCK_CACHE_BYTES, OPTIONS, environment, open_raster
from rayjobs.rasters.handles import FAULTS, explained
from rayjobs.rasters.sources import SOURCES, searched
from rayjobs.storage import open_store

if TYPE_CHECKING:
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Store

_DRIVERS = ("GTiff", "PNG", "JPEG")
_SIDE, _BLOCK = 1024, 256
_LARGE_BLOCK = 4 * 2**20
"""Pixels of a block above which a small tile costs many times its own bytes."""
_SLOW_S = 5.0


def looks(patient: Patient) -> dict[str, Look]:
    """Return what to look at."""
    asked: dict[str, Look] = {"imagery/gdal": gdal}
    if patient.experiment is None:
        return asked
    store = open_store(patient.experiment.workspace.uri)
    if is_bucket(store):
        asked["imagery/bucket"] = functools.partial(bucket, store)
    return asked | {"imagery/block": functools.partial(first_block, patient.experiment)}


def gdal() -> Check:
    """Compare GDAL's settings with those that `rasters/gdal.py` sets, and see that it knows drivers and projections."""
    with environment():
        wrong = [name for name, wanted in OPTIONS.items() if not _same(rasterio.env.get_gdal_config(name), wanted)]
        drivers = rasterio.env.GDALVersion.runtime(), rasterio.Env().drivers()
        cache = rasterio.env.get_gdal_config("GDAL_CACHEMAX")
    if missing := [name for name in _DRIVERS if name not in drivers[1]]:
        remedy = "unset GDAL_SKIP and GDAL_DRIVER_PATH, or install rasterio anew"
        return fault("imagery/gdal", f"GDAL lacks the drivers {', '.join(missing)}", remedy)
    if wrong or cache != BLOCK_CACHE_BYTES:
        named = first_few(wrong or ["GDAL_CACHEMAX"], between=", ")
        return fault("imagery/gdal", f"GDAL does not take our setting of {named}", "unset those variables, and install rasterio anew")
    if (said := _projections()) is not None:
        remedy = "unset PROJ_LIB, PROJ_DATA and GDAL_DATA: rasterio and pyproj bring their own"
        return fault("imagery/gdal", said, remedy)
    others = sorted(name for name in os.environ if name.startswith(("GDAL_", "CPL_", "VSI_", "PROJ_")))
    told = f"; also set outside: {first_few(others, between=', ')}" if others else ""
    return ok("imagery/gdal", f"GDAL {drivers[0]} of rasterio {rasterio.__version__}: {len(OPTIONS)} settings as ours{told}")


def _same(found: Any, wanted: Any) -> bool:
    """Whether GDAL gives back what was set; rasterio turns YES and ON into True."""
    words = {True: {"YES", "TRUE", "ON"}, False: {"NO", "FALSE", "OFF"}}
    return str(wanted).upper() in words[found] if isinstance(found, bool) else str(found) == str(wanted)


def _projections() -> str | None:
    """Return what is wrong with the tables of projections."""
    try:
        theirs = rasterio.crs.CRS.from_epsg(32631).to_wkt()
        ours = pyproj.CRS.from_epsg(32631)
    except Exception as error:  # noqa: BLE001  each library has errors of its own
        return f"the tables of projections cannot be read ({error})"
    return None if pyproj.CRS.from_wkt(theirs).equals(ours, ignore_axis_order=True) else "rasterio and pyproj tell EPSG:32631 apart"


def bucket(store: Store) -> Check:
    """Write a raster into the workspace, and have GDAL read its last block with the credentials that it finds."""
    values = np.random.default_rng(0).integers(0, 255, (1, _SIDE, _SIDE), np.uint8)
    shape: dict[str, Any] = {"width": _SIDE, "height": _SIDE, "count": 1, "dtype": "uint8", "tiled": True}
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", blockxsize=_BLOCK, blockysize=_BLOCK, **shape, **place) as file:
            file.write(values)
        data = memory.read()
    last = rasterio.windows.Window(_SIDE - _BLOCK, _SIDE - _BLOCK, _BLOCK, _BLOCK)
    with own_prefix(store) as prefix:
        store.write(f"{prefix}raster.tif", data)
        with environment(), open_raster(store.address(f"{prefix}raster.tif")) as file:
            found = file.read(1, window=last)
    if not np.array_equal(found, values[0, -_BLOCK:, -_BLOCK:]):
        return fault(
            "imagery/bucket", "GDAL reads other pixels from the bucket than were written", "see whether a proxy answers ranges rightly"
        )
    return ok("imagery/bucket", "GDAL reads a block in the midst of a raster in the bucket")


def first_block(experiment: Experiment) -> Check:
    """Read a first block of the first file of the first source."""
    source = experiment.rasters.sources[0]
    candidates = SOURCES[source.kind](source, searched(experiment.rasters))
    uri = candidates[0].uris(experiment.rasters.bands)[0]
    begun = time.perf_counter()
    try:
        with environment(), open_raster(uri) as file:
            height, width = file.block_shapes[0]
            file.read(1, window=rasterio.windows.Window(0, 0, min(width, file.width), min(height, file.height)))
            driver = file.driver
    except FAULTS as error:
        remedy = "check rasters.sources and the credentials; replace the file, or leave it out"
        return fault("imagery/block", f"{uri} cannot be read: {explained(error)}", remedy)
    seconds = time.perf_counter() - begun
    said = f"of {len(candidates):,} scenes of the first source, {uri} ({driver}): a block of {height} x {width} read in {seconds:.2f} s"
    if height * width > _LARGE_BLOCK:
        remedy = "store such files in smaller blocks: rio cogeo create, or gdal_translate -of COG"
        return caution("imagery/block", f"{said}; for each tile all of such a block is fetched and decoded", remedy)
    if seconds > _SLOW_S:
        return caution("imagery/block", said, "work nearer to the imagery, or copy it to a bucket near you")
    return ok("imagery/block", said)
