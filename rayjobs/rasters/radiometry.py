"""What pixel values mean: scale and offset, and a check that Sentinel-2 pixels carry the offset that is declared for them."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rayjobs.errors import RadiometryError, UnreadableTileError
from rayjobs.geo import IntArray
from rayjobs.rasters.reader import RasterReader, Reader
from rayjobs.rasters.scenes import Asset, Scene

_SENTINEL2 = re.compile(r"(?i)sentinel-?2|(?:^|[^a-z0-9])S2[ABCD]_|_MSIL(?:1C|2A)_")
_ADDED = 1000.0
"""Counts that processing baseline 04.00 and later (25 January 2022) adds to every pixel, and declares as offset -0.1 at scale 0.0001."""
_SINCE = datetime.datetime(2022, 1, 25, tzinfo=datetime.UTC)
_LOW_PERCENT = 1.0
"""The darkest pixels, but for a few that may be defects."""
_MARGIN = 150.0
"""Counts by which the darkest ground of a scene may go below the added ones (negative reflectance after correction)."""
_BRIGHT = 2500.0
"""Darkest pixels above this are cloud, snow or sand: they tell nothing."""
_PROBES = 4
_PROBE_PIXELS = 128
_MIN_PIXELS = 1000
_HALF = 0.5


def physical(values: np.ndarray[Any, Any], assets: Sequence[Asset]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return values * scale + offset.

    Args:
        values: (bands, h, w) raw.
        assets: of the bands, in the same order.

    Returns:
        (bands, h, w) float32, in physical units (for Sentinel-2 reflectance, 0 to about 1).
    """
    result = np.empty(values.shape, np.float32)
    for band, asset in enumerate(assets):  # one at a time, since each takes float64 on the way
        result[band] = values[band] * np.float64(asset.scale) + asset.offset
    return result


def is_sentinel2(scene: Scene) -> bool:
    """Whether platform, id or addresses say that a scene is of Sentinel-2."""
    texts = (scene.platform or "", scene.scene_id, *(asset.uri for asset in scene.assets.values()))
    return any(_SENTINEL2.search(text) for text in texts)


def check_sentinel2_scenes(scenes: Sequence[Scene], action: Literal["error", "warn", "off"]) -> list[str]:
    """Check every Sentinel-2 scene among `scenes`; others are passed over.

    Returns:
        Where `action` is "warn", what is wrong with each scene that contradicts its declared offset.

    Raises:
        RadiometryError: a scene contradicts its declared offset, and `action` is "error".
    """
    wanted = [scene for scene in scenes if is_sentinel2(scene)] if action != "off" else []
    warnings = []
    with RasterReader() as reader:
        for scene in wanted:
            try:
                check_sentinel2(scene, reader)
            except RadiometryError as error:
                if action == "error":
                    raise
                warnings.append(str(error))
    return warnings


def check_sentinel2(scene: Scene, reader: Reader) -> None:
    """Compare the darkest pixels of a Sentinel-2 scene with the offset declared for it, since catalogues are often wrong about it.

    Products of processing baseline 04.00 and later hold reflectance * 10000 + 1000. The darkest ground of nearly any scene is close to
    reflectance 0, so that its counts tell whether the 1000 are in them; a scene that is bright everywhere tells nothing and passes.

    Args:
        scene: of Sentinel-2; others pass.
        reader: to read a few small windows with.

    Raises:
        RadiometryError: the pixels contradict the declared offset.
    """
    if not is_sentinel2(scene):
        return
    darkest = _darkest(scene, reader)
    for (name, asset), low in zip(scene.assets.items(), darkest, strict=True):
        declared = -asset.offset / asset.scale
        if np.isfinite(low) and declared > _ADDED * _HALF and low < declared - _MARGIN:
            raise RadiometryError(
                f"scene {scene.scene_id}, band {name}: offset {asset.offset:g} is declared, but 1 % of the pixels are below {low:.0f}, so "
                "nothing was added to them (reflectance would be negative); set `offset: 0` in the source, or rasters.sentinel2_check: warn"
            )
    least = float(np.nanmin(darkest)) if np.isfinite(darkest).any() else np.nan
    undeclared = all(abs(asset.offset) < _ADDED * _HALF * abs(asset.scale) for asset in scene.assets.values())
    recent = scene.datetime is None or scene.datetime >= _SINCE or _baseline(scene) >= 4.0  # noqa: PLR2004  baseline 04.00
    if undeclared and recent and _ADDED - _MARGIN <= least <= _BRIGHT:
        raise RadiometryError(
            f"scene {scene.scene_id}: no offset is declared, but the darkest 1 % of its pixels still reach {least:.0f}, so 1000 were "
            "added to all of them (processing baseline 04.00 and later); set `scale: 0.0001` and `offset: -0.1` in the source with "
            "rasters.radiometry: physical, or rasters.sentinel2_check: warn where the ground is bright"
        )


def _baseline(scene: Scene) -> float:
    """Return the processing baseline that a product's name states (`_N0509_`: 5.09), else 0."""
    found = re.search(r"_N(\d\d)(\d\d)_", " ".join([scene.scene_id, *(asset.uri for asset in scene.assets.values())]))
    return int(found[1]) + int(found[2]) / 100 if found else 0.0


def _darkest(scene: Scene, reader: Reader) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return (bands,) counts that 1 % of the valid pixels lie below, in windows spread over the scene; NaN where there are too few."""
    found = [answer for answer in reader.read_many(scene, _spread(scene)) if not isinstance(answer, UnreadableTileError)]
    dark = []
    for band in range(len(scene.assets)):
        values = np.concatenate([pixels.values[band][pixels.valid] for pixels in found]) if found else np.empty(0)
        values = values[values != 0]  # 0 is Sentinel-2's nodata even where no one declares it
        dark.append(np.percentile(values, _LOW_PERCENT) if len(values) >= _MIN_PIXELS else np.nan)
    return np.array(dark, np.float64)


def _spread(scene: Scene) -> IntArray:
    """Return windows on a regular lattice, each within few blocks: cheaper than a decimated read of a file without overviews."""
    height, width = min(_PROBE_PIXELS, scene.grid.height), min(_PROBE_PIXELS, scene.grid.width)
    rows = np.unique(np.linspace(0, scene.grid.height - height, _PROBES).astype(np.int64))
    cols = np.unique(np.linspace(0, scene.grid.width - width, _PROBES).astype(np.int64))
    corners = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.concatenate([corners, np.broadcast_to([height, width], corners.shape)], axis=1)
