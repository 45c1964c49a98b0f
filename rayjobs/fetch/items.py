"""Fetched scenes as STAC items (STAC 1.0), which a source of kind `stac` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shapely.geometry

from rayjobs.fetch.plan import when
from rayjobs.geo import footprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.fetch.plan import FetchScene
    from rayjobs.storage import FileDigest

_NAMES = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "opacity")}
_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"


def item_collection(scenes: Sequence[FetchScene], files: Mapping[str, FileDigest]) -> dict[str, Any]:
    """Return an ItemCollection of the scenes; addresses are relative to the folder of the version.

    Args:
        scenes: all that are complete.
        files: of each, by id.
    """
    return {"type": "FeatureCollection", "features": [_item(scene, files[scene.scene_id]) for scene in scenes]}


def _item(scene: FetchScene, file: FileDigest) -> dict[str, Any]:
    ground = footprint(scene.image.grid)
    bands = [{"name": name, "common_name": name} for name in _NAMES[scene.image.bands] if name != "opacity"]
    # a band that is alone in its asset has the asset's name
    key = _NAMES[1][0] if scene.image.bands == 1 else "image"
    asset = {"href": file.location, "type": _TYPE, "roles": ["data"], "eo:bands": bands}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/eo/v1.1.0/schema.json"],
        "id": scene.scene_id,
        "geometry": shapely.geometry.mapping(ground),
        "bbox": list(ground.bounds),
        "properties": {"datetime": when(scene)},
        "assets": {key: asset},
        "links": [],
    }
