"""The tile table: which windows of which scenes a set looks at, before and after their pixels are read."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from rayjobs.errors import ImageryError, NoTilesError, StorageError
from rayjobs.geo import (
    FloatArray,
    GeometryArray,
    Grid,
    IntArray,
    Window,
    bboxes,
    cells,
    footprints,
    geoparquet_metadata,
    ground_size_m,
    lonlat,
    window_array,
)
from rayjobs.tiles.samplers import SAMPLERS, Sampled, places, scene_rng, share_out
from rayjobs.tiles.section import SPLITS, ClusterSampler, GridSampler, RandomSampler, TilesSection, WalkSampler
from rayjobs.tiles.splits import assign_splits, cell_names, check_splits

if TYPE_CHECKING:
    from rayjobs.rasters.scenes import Scene

SCHEMA = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("scene_id", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("col", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("place_id", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("block_id", pa.string(), nullable=False),
        pa.field("valid_fraction", pa.float32()),
        pa.field("crs", pa.string()),
        pa.field("geometry", pa.binary()),
        pa.field("datetime", pa.timestamp("us", tz="UTC")),
        pa.field("place", pa.string()),
        pa.field("observation", pa.string()),
        pa.field("lon", pa.float64()),
        pa.field("lat", pa.float64()),
        pa.field("radius_m", pa.float64()),
        pa.field("cluster_id", pa.string()),
        pa.field("label", pa.string()),
        pa.field("label_purity", pa.float32()),
        pa.field("label_coverage", pa.float32()),
        pa.field("label_fractions", pa.list_(pa.float32())),
    ]
)
"""Columns of `tiles.parquet`. Windows are pixels of the scene's own grid; `place_id` is equal for tiles that look at the same ground, on
any date; `split` is null for tiles that touch the ground of several; `geometry` is the footprint as WKB in WGS 84. Of plain images `place`
and `observation` are what their source says, where it does, and `lon` and `lat` (degrees, on a sphere of `radius_m`) where the middle of
the whole image lies. `valid_fraction` and
the label columns are null until pixels are read, and stay so without a label map, but for the `label` of an image folder's scene.
`label_coverage` is the share of the tile's pixels that have a class; `label_fractions` are the shares of the classes among those, in the
order of the set's label map, and `label_purity` is the greatest of them."""

_UNKNOWN = ("valid_fraction", "label_purity", "label_coverage", "label_fractions")
_ROWS_PER_GROUP = 2**16
_ID_DIGITS = 20
"""80 bits: among a billion tiles two share an id with a probability of 4 in 10 million."""


def tile_id(scene_id: str, window: Window) -> str:
    """Return the id of a tile: of its scene's name and its window, never of where the file lies."""
    return tile_ids(scene_id, window_array([window]))[0]


def tile_ids(scene_id: str, windows: IntArray) -> list[str]:
    """Return the ids of windows (n, 4) of one scene."""
    of_scene = hashlib.sha256(scene_id.encode() + b"\n")
    ids = []
    for row, col, height, width in zip(*windows.T.tolist(), strict=True):  # four flat lists: the collector walks nested ones
        digest = of_scene.copy()
        digest.update(b"%d %d %d %d" % (row, col, height, width))
        ids.append(digest.hexdigest()[:_ID_DIGITS])
    return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """The tiles of one scene."""

    scene: Scene
    windows: IntArray
    """(n, 4)."""
    cluster: IntArray | None
    """(n,)."""
    geometry: GeometryArray
    """(n,) shapely; None for plain images."""
    centres: FloatArray
    """(n, 2) degrees; NaN for plain images."""


def plan_tiles(scenes: Sequence[Scene], section: TilesSection, area: Any | None = None) -> pa.Table:
    """Choose the tiles of a set from what is known of its scenes; reads no pixel.

    The same scenes and section give the same table, whatever their order and whoever asks. Windows that do not lie wholly on the ground
    (the rim of a full-disk image) are left out, and so are those that do not meet the area of interest, if there is one; it does not change
    the others.

    Args:
        scenes: their ids differ.
        section: how tiles are chosen.
        area: shapely geometry, WGS 84, cut at the antimeridian; None: all is of interest.

    Returns:
        A table of `SCHEMA` sorted by `tile_id`, with `valid_fraction` and the label columns null, except for the label of an image folder's
        scene.

    Raises:
        NoTilesError: no window fits any scene or meets the area, or a split that has a share has no tile.
        ConfigError: splits are by class or by observation, and a scene has none.
        ImageryError: two scenes have one id, or a CRS cannot be used.
    """
    scenes = sorted(scenes, key=lambda scene: scene.scene_id)
    _refuse_doubles(scenes)
    wanted = _wanted(scenes, section)
    placed = [_place(scene, _sample(scene, section, count)) for scene, count in zip(scenes, wanted, strict=True)]
    candidates = sum(len(entry.windows) for entry in placed)
    if not candidates:
        raise NoTilesError(_none_fits(scenes, section))
    placed = [entry for entry in (_meeting(entry, area) for entry in placed) if len(entry.windows)]
    if not placed:
        raise NoTilesError(
            f"none of {candidates} windows on {len(scenes)} scenes meets the area rasters.aoi; "
            "widen the area, place more windows, or set tiles.sampler: {kind: grid}"
        )
    table = _table(placed, section)
    check_splits(table, section.splits)
    return table.take(pc.sort_indices(table, [("tile_id", "ascending")]))


def _refuse_doubles(scenes: Sequence[Scene]) -> None:
    for before, after in itertools.pairwise(scenes):
        if before.scene_id == after.scene_id:
            raise ImageryError(f"two scenes are called {after.scene_id!r}; give the sources names that tell them apart")


def _none_fits(scenes: Sequence[Scene], section: TilesSection) -> str:
    if not scenes:
        return "there is no scene to take tiles from"
    widest = max(scenes, key=lambda scene: min(scene.grid.height, scene.grid.width))
    largest = f"{widest.scene_id} has {widest.grid.height} x {widest.grid.width} px"
    return f"no tile of {section.size} px fits on any of {len(scenes)} scenes (the largest, {largest}); lower tiles.size"


def _wanted(scenes: Sequence[Scene], section: TilesSection) -> list[int]:
    """Return how many windows, clusters or walks each scene contributes."""
    if section.size is None or isinstance(section.sampler, GridSampler):
        return [0] * len(scenes)
    match section.sampler:
        case RandomSampler(count=total) | ClusterSampler(clusters=total) | WalkSampler(walks=total):
            pass
    fits = [min(places(scene.grid, section.size)) > 0 for scene in scenes]
    return share_out(total, [scene.grid.height * scene.grid.width * fit for scene, fit in zip(scenes, fits, strict=True)])


def _sample(scene: Scene, section: TilesSection, count: int) -> Sampled:
    if section.size is None:
        return Sampled(windows=window_array([scene.grid.whole]))
    sample, rng = SAMPLERS[section.sampler.kind], scene_rng(section.seed, scene.scene_id)
    match section.sampler:
        case RandomSampler():
            return sample(scene.grid, rng, size=section.size, count=count)
        case GridSampler(edge=edge):
            return sample(scene.grid, rng, size=section.size, stride=section.sampler.step(section.size), edge=edge)
        case ClusterSampler(tiles_per_cluster=each, radius=radius):
            return sample(scene.grid, rng, size=section.size, clusters=count, tiles_per_cluster=each, radius=radius)
        case WalkSampler(tiles_per_walk=each, random_reset=reset):
            steps = {"min_step": section.min_pos_dist, "max_step": section.max_pos_dist}
            return sample(scene.grid, rng, size=section.size, walks=count, tiles_per_walk=each, random_reset=reset, **steps)


def _place(scene: Scene, sampled: Sampled) -> _Placed:
    """Find the ground of a scene's windows, leaving out those that do not lie wholly on it."""
    windows, cluster = sampled.windows, sampled.cluster
    geometry = footprints(scene.grid, windows)
    if scene.grid.crs is None:
        centres = np.full((len(windows), 2), np.nan)
    else:
        known = ~shapely.is_missing(geometry)
        windows, geometry, cluster = windows[known], geometry[known], None if cluster is None else cluster[known]
        centres = lonlat(scene.grid, windows)
    return _Placed(scene=scene, windows=windows, cluster=cluster, geometry=geometry, centres=centres)


def _meeting(entry: _Placed, area: Any | None) -> _Placed:
    """Leave out the windows whose ground does not meet the area; plain images have none."""
    if area is None:
        return entry
    shapely.prepare(area)
    meets = shapely.intersects(entry.geometry, area)
    cluster = None if entry.cluster is None else entry.cluster[meets]
    return _Placed(
        scene=entry.scene, windows=entry.windows[meets], cluster=cluster, geometry=entry.geometry[meets], centres=entry.centres[meets]
    )


def _table(placed: Sequence[_Placed], section: TilesSection) -> pa.Table:
    counts = [len(entry.windows) for entry in placed]
    scene = np.repeat(np.arange(len(placed)), counts)
    windows = np.concatenate([entry.windows for entry in placed]).astype(np.int32)
    geometry = np.concatenate([entry.geometry for entry in placed])
    centres = np.concatenate([entry.centres for entry in placed])
    scene_ids = [entry.scene.scene_id for entry in placed]
    labels, shown = [entry.scene.label for entry in placed], [entry.scene.place for entry in placed]
    observations = [entry.scene.observation for entry in placed]
    assigned = assign_splits(
        [place or scene_id for place, scene_id in zip(shown, scene_ids, strict=True)],
        scene,
        centres,
        bboxes(geometry),
        section.splits,
        labels=labels,
        observations=observations,
        dates=[None if entry.scene.datetime is None else entry.scene.datetime.strftime("%Y-%m-%d") for entry in placed],
    )
    ids = [tile for entry in placed for tile in tile_ids(entry.scene.scene_id, entry.windows)]
    splits = pa.array([*SPLITS, None], pa.string())
    columns = {
        "tile_id": ids,
        "scene_id": pa.array(scene_ids, pa.string()).take(pa.array(scene)),
        **{name: windows[:, index] for index, name in enumerate(("row", "col", "height", "width"))},
        "place_id": pa.concat_arrays([_place_ids(entry) for entry in placed]),
        "split": splits.take(pa.array(assigned.split % len(splits))),
        "block_id": assigned.block_id,
        "crs": pa.array([entry.scene.grid.crs for entry in placed], pa.string()).take(pa.array(scene)),
        "geometry": _wkb(geometry),
        "datetime": pa.array([entry.scene.datetime for entry in placed], SCHEMA.field("datetime").type).take(pa.array(scene)),
        "place": pa.array(shown, pa.string()).take(pa.array(scene)),
        "observation": pa.array(observations, pa.string()).take(pa.array(scene)),
        **{
            name: pa.array([getattr(entry.scene.spot, name, None) for entry in placed], pa.float64()).take(pa.array(scene))
            for name in ("lon", "lat", "radius_m")
        },
        "cluster_id": pa.concat_arrays([_cluster_ids(entry) for entry in placed]),
        "label": pa.array(labels, pa.string()).take(pa.array(scene)),
    }
    unknown = {name: pa.nulls(len(scene), SCHEMA.field(name).type) for name in _UNKNOWN}
    return pa.table(columns | unknown, SCHEMA)


def _place_ids(entry: _Placed) -> pa.Array:
    """Name the cell of a global grid, half a tile wide, that holds each tile's centre; of plain images, the window of place or scene."""
    if entry.scene.grid.crs is None:
        return pa.array(tile_ids(entry.scene.place or entry.scene.scene_id, entry.windows), pa.string())
    size_m = _place_size_m(entry.scene.grid, entry.windows)
    return pc.binary_join_element_wise(f"{size_m:g}m-", cell_names(cells(entry.centres, size_m)), "")


def _place_size_m(grid: Grid, windows: IntArray) -> float:
    """Return half the side of a tile, rounded to a power of two, so that dates whose grids differ by a little name the same cells."""
    pixels = math.sqrt(float((windows[:, 2] * windows[:, 3]).mean()))
    return 2.0 ** round(math.log2((ground_size_m(grid) or 1.0) * pixels / 2))


def _cluster_ids(entry: _Placed) -> pa.Array:
    if entry.cluster is None:
        return pa.nulls(len(entry.windows), pa.string())
    of_scene = hashlib.sha256(entry.scene.scene_id.encode()).hexdigest()[:12]
    return pc.binary_join_element_wise(of_scene, pa.array(entry.cluster).cast(pa.string()), "-")


def _wkb(geometry: GeometryArray) -> pa.Array:
    return pa.array(shapely.to_wkb(geometry, output_dimension=2, byte_order=1), pa.binary(), from_pandas=True)


def geometries(table: pa.Table) -> GeometryArray:
    """Return the column `geometry` of a table as (n,) shapely geometries, None where it is null."""
    found: GeometryArray = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    return found


def geoparquet_bytes(table: pa.Table) -> bytes:
    """Return a table as Parquet, as GeoParquet 1.1 where it has a column `geometry` (WKB, WGS 84); equal tables give equal bytes.

    Metadata of the table's schema is kept.
    """
    metadata = dict(table.schema.metadata or {})
    if "geometry" in table.column_names:
        metadata[b"geo"] = geoparquet_metadata(geometries(table))
    # chunks decide where pages end: one chunk, so that a table's history does not show in its bytes
    whole = table.replace_schema_metadata(dict(sorted(metadata.items())) or None).combine_chunks()
    sink = io.BytesIO()
    pq.write_table(whole, sink, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    return sink.getvalue()


def read_tiles(data: bytes) -> pa.Table:
    """Read the tile table of a set.

    Raises:
        StorageError: it is none, or one without columns that it has now.
    """
    table = read_geoparquet(data)
    absent = [name for name in SCHEMA.names if name not in table.column_names]
    if absent:
        raise StorageError(f"the tile table lacks {', '.join(absent)}: another version of rayjobs wrote it; run `rayjobs sample` again")
    return table


def read_geoparquet(data: bytes) -> pa.Table:
    """Read what `geoparquet_bytes` wrote, or any GeoParquet whose geometry is WKB.

    Raises:
        StorageError: it is no such file.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
        geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
    except (pa.ArrowException, ValueError) as error:
        raise StorageError(f"{len(data)} bytes are no Parquet table ({' '.join(str(error).split())}); write the table again") from error
    encodings = {name: column.get("encoding") for name, column in geo.get("columns", {}).items()}
    if set(encodings.values()) - {"WKB"}:
        raise StorageError(f"the GeoParquet table encodes its geometry as {encodings}; only WKB is read: convert it")
    return table
