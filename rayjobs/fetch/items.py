"""Fetched scenes as STAC items (STAC 1.0), which a source of kind `stac` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shapely.geometry

from rayjobs.fetch.plan import when
from rayjobs.geo import footprint
from rayjobs.rasters import dates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.fetch.plan import FetchScene
    from rayjobs.storage import FileDigest

_COLOURS = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
_BANDS: dict[int, list[dict[str, str]]] = {1: [{"name": "grey"}], 3: _COLOURS, 4: _COLOURS}
"""What the extension `eo` says of each band but opacity, by how many there are; it has no common name for grey."""
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
    bands = _BANDS[scene.image.bands]
    # a band that is alone in its asset has the asset's name
    key = bands[0]["name"] if len(bands) == 1 else "image"
    asset = {"href": file.location, "type": _TYPE, "roles": ["data"], "eo:bands": bands}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/eo/v1.1.0/schema.json"],
        "id": scene.scene_id,
        # a picture may reach beyond the ground, such as one of a whole disk seen from space
        **({"geometry": None} if ground is None else {"geometry": shapely.geometry.mapping(ground), "bbox": list(ground.bounds)}),
        "properties": _taken(scene),
        "assets": {key: asset},
        "links": [],
    }


def _taken(scene: FetchScene) -> dict[str, str | None]:
    """Return the properties that say when a scene was taken: a span that leaves it open, where nobody knows (STAC wants one then)."""
    known = when(scene)
    if known is not None:
        return {"datetime": known}
    start, end = map(dates.written, dates.ANY_TIME)
    return {"datetime": None, "start_datetime": start, "end_datetime": end}
