"""The map of queries and hits: one self-contained page, with Leaflet out of the installed package."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely
import xstatic.pkg.leaflet

from rayjobs.rasters.overview import Overview, overview
from rayjobs.rasters.scenes import read_scenes
from rayjobs.tiles.chips import Chip
from rayjobs.tiles.render import picture, png
from rayjobs.tiles.table import read_geoparquet, read_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.experiment import Experiment
    from rayjobs.storage import Version

_SIDE = 1200
_COLOURS = ("#e6550d", "#3182bd", "#31a354")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>rayjobs demo: where the look-alikes lie</title>
<style>{style}</style>
<style>
html, body, #map {{ height: 100%; margin: 0; background: #ddd; font: 14px system-ui, sans-serif; }}
.key {{ background: #fff; padding: 8px 12px; border-radius: 4px; line-height: 1.6; box-shadow: 0 1px 4px #0006; }}
.key i {{ display: inline-block; width: 12px; height: 12px; margin-right: 6px; }}
</style>
</head>
<body>
<div id="map" role="application" aria-label="Map of queries and hits"></div>
<script>{script}</script>
<script>
const scenes = {scenes}, searches = {searches};
const map = L.map("map", {{ attributionControl: false, zoomSnap: 0.25 }});
for (const scene of scenes) L.imageOverlay(scene.url, scene.bounds).addTo(map);
map.fitBounds(L.latLngBounds(scenes.flatMap(scene => scene.bounds)));
for (const search of searches) {{
  for (const hit of search.hits)
    L.geoJSON(hit, {{ style: {{ color: search.colour, weight: 2, fillOpacity: 0.15 }} }})
      .bindTooltip(hit.properties.note).addTo(map);
  L.geoJSON(search.query, {{ style: {{ color: search.colour, weight: 5, fillOpacity: 0 }} }}).bindTooltip("query").addTo(map);
}}
const key = L.control({{ position: "topright" }});
key.onAdd = () => {{
  const box = L.DomUtil.create("div", "key");
  box.innerHTML = searches.map((s, n) => `<div><i style="background:${{s.colour}}"></i>query ${{n + 1}} and its hits</div>`).join("");
  return box;
}};
key.addTo(map);
</script>
</body>
</html>
"""


def write_map(experiment: Experiment, answers: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the page.

    Args:
        experiment: of the demo.
        answers: each the service's answer, with the tile id of its `query`.
        path: where to write.
    """
    source = experiment.open_workspace().set.require("run `rayjobs sample` first")
    folder = Path(xstatic.pkg.leaflet.BASE_DIR)
    page = _PAGE.format(
        style=(folder / "leaflet.css").read_text(encoding="utf-8"),
        script=(folder / "leaflet.js").read_text(encoding="utf-8"),
        scenes=json.dumps(_scenes(source)),
        searches=json.dumps(_searches(source, answers)),
    )
    path.write_text(page, encoding="utf-8")


def _scenes(source: Version) -> list[dict[str, Any]]:
    scenes = read_scenes(read_geoparquet(source.read("scenes.parquet")))
    return [_overlay(overview(scene, source.manifest["bands"], side=_SIDE), source) for scene in scenes]


def _overlay(found: Overview, source: Version) -> dict[str, Any]:
    manifest = source.manifest
    chip = Chip(tile_id="", pixels=found.values, valid=found.valid)
    pixels = picture(chip, manifest["bands"], manifest["band_mean"], manifest["band_std"])
    west, south, east, north = found.bounds
    url = "data:image/png;base64," + base64.b64encode(png(pixels, opacity=found.valid)).decode()
    return {"url": url, "bounds": [[south, west], [north, east]]}


def _searches(source: Version, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    tiles = read_tiles(source.read("tiles.parquet"))
    footprint = dict(zip(tiles["tile_id"].to_pylist(), tiles["geometry"].to_pylist(), strict=True))
    return [
        {
            "colour": colour,
            "query": _geojson(footprint[answer["query"]]),
            "hits": [_noted(rank, hit) for rank, hit in enumerate(answer["features"], 1)],
        }
        for colour, answer in zip(_COLOURS, answers, strict=False)
    ]


def _noted(rank: int, hit: dict[str, Any]) -> dict[str, Any]:
    properties = hit["properties"]
    note = f"hit {rank}, score {properties['score']:.3f}, scene {properties['scene_id']}"
    return {"type": "Feature", "geometry": hit["geometry"], "properties": {"note": note}}


def _geojson(wkb: bytes) -> dict[str, Any]:
    geometry: dict[str, Any] = shapely.geometry.mapping(shapely.from_wkb(wkb))
    return {"type": "Feature", "geometry": geometry, "properties": {}}


def middle(geometry: dict[str, Any]) -> tuple[float, float]:
    """Return longitude and latitude of a footprint's centre."""
    point = shapely.geometry.shape(geometry).centroid
    return float(point.x), float(point.y)
