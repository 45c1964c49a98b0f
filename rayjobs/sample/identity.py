"""Which set a plan gives: a digest of all that decides the set's bytes, and of nothing else.

Imagery counts by what its files hold (see `rayjobs.rasters.stamps`), never by where they lie: a set outlives the move of its bucket, and
files that were replaced in place give another set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from rayjobs.rasters.scenes import scenes_table
from rayjobs.rasters.stamps import stamps
from rayjobs.tiles.table import geoparquet_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rayjobs.rasters.label_map import LabelMap
    from rayjobs.rasters.scenes import Scene
    from rayjobs.sample.plan import SetPlan
    from rayjobs.tiles.section import TilesSection

_FORMAT = 3
"""Raised when the same plan would give other bytes."""


def set_version(plan: SetPlan, section: TilesSection, label_map: LabelMap | None) -> str:
    """Return the name of the version that a plan gives: 16 hexadecimal digits.

    Args:
        plan: its scenes, their files, and its tiles.
        section: thresholds that tiles must reach.
        label_map: where labels come from.

    Raises:
        StorageError: a file of a scene cannot be read.
        LabelMapError: the label map cannot be opened.
    """
    used = {uri: plan.files[uri] for scene in plan.scenes for uri in _addresses(scene)}
    labels = {label_map.uri: label_map.files()} if label_map else {}
    stamp = stamps(used | labels)
    decided = {
        "format": _FORMAT,
        "physical": plan.physical,
        "dtype": plan.dtype,
        "tile_size": section.size,
        "min_valid_fraction": section.min_valid_fraction,
        "labels": _labels(label_map, stamp[label_map.uri], section) if label_map else None,
    }
    digest = hashlib.sha256(json.dumps(decided).encode())
    digest.update(geoparquet_bytes(scenes_table([_placeless(scene, stamp) for scene in plan.scenes])))
    digest.update(geoparquet_bytes(plan.tiles))
    return digest.hexdigest()[:16]


def _addresses(scene: Scene) -> list[str]:
    quality = [scene.quality.uri] if scene.quality else []
    return [*(asset.uri for asset in scene.assets.values()), *quality]


def _placeless(scene: Scene, stamp: Mapping[str, str]) -> Scene:
    """Return a scene whose files are named by their stamps."""
    assets = {band: dataclasses.replace(asset, uri=stamp[asset.uri]) for band, asset in scene.assets.items()}
    quality = dataclasses.replace(scene.quality, uri=stamp[scene.quality.uri]) if scene.quality else None
    return dataclasses.replace(scene, assets=assets, quality=quality)


def _labels(label_map: LabelMap, stamp: str, section: TilesSection) -> dict[str, Any]:
    if label_map.classes is not None:
        legend: dict[str, Any] = {"classes": list(label_map.classes.items())}
    else:
        legend = {"palette": list((label_map.palette or {}).items()), "tolerance": label_map.tolerance}
    return {
        "stamp": stamp,
        **legend,
        "nodata": label_map.nodata,
        "min_purity": section.min_label_purity,
        "min_coverage": section.min_label_coverage,
    }
