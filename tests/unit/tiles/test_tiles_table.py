from __future__ import annotations

import datetime
import hashlib
import io
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from rayjobs import geo
from rayjobs.errors import ImageryError, NoTilesError, StorageError
from rayjobs.rasters.scenes import Asset, Scene
from rayjobs.tiles.section import ClusterSampler, GridSampler, RandomSampler, SplitsSection, TilesSection, WalkSampler
from rayjobs.tiles.table import SCHEMA, geometries, geoparquet_bytes, plan_tiles, read_geoparquet, read_tiles, tile_id

ALL_TRAIN = SplitsSection(train=1.0, val=0.0, test=0.0)
DAY = datetime.datetime(2020, 5, 17, 18, 4, 59, 123456, tzinfo=datetime.UTC)


def scene(
    scene_id: str,
    crs: str | None = "EPSG:32612",
    *,
    left: float = 300_000,
    top: float = 4_200_000,
    pixel_m: float = 30,
    side: int = 1200,
    **more,
) -> Scene:
    grid = geo.Grid(crs=crs, transform=(pixel_m, 0, left, 0, -pixel_m, top), height=side, width=side)
    return Scene(
        scene_id=scene_id, assets={"red": Asset(uri=f"s3://bucket/{scene_id}.tif")}, grid=grid, block=(256, 256), dtype="uint16", **more
    )


def picture(scene_id: str, label: str | None = None, side: int = 150) -> Scene:
    grid = geo.Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=side, width=side)
    return Scene(scene_id=scene_id, assets={"red": Asset(uri="x.jpg")}, grid=grid, block=(8, 8), dtype="uint8", label=label)


SCENES = [
    scene("b", datetime=DAY),
    scene("a", "EPSG:32613", pixel_m=10),
    scene("c", "EPSG:32760", left=800_000, top=8_120_000),
]
SAMPLERS = [RandomSampler(count=300), GridSampler(), ClusterSampler(clusters=20), WalkSampler(walks=20, random_reset=0.2)]


def plan(scenes=SCENES, **keys) -> pa.Table:
    return plan_tiles(scenes, TilesSection(**{"sampler": RandomSampler(count=300)} | keys))


def test_an_id_is_of_scene_and_window_alone_and_never_changes():
    window = geo.Window(row=1, col=2, height=64, width=64)
    assert tile_id("scene", window) == hashlib.sha256(b"scene\n1 2 64 64").hexdigest()[:20] == "fd42533289e2d601904f"
    others = [
        tile_id("scene2", window),
        tile_id("scene", geo.Window(row=2, col=1, height=64, width=64)),
        tile_id("scene", geo.Window(row=1, col=26, height=4, width=64)),
    ]
    assert len({tile_id("scene", window), *others}) == 4


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.kind)
def test_the_table_says_what_was_planned(sampler):
    table = plan(sampler=sampler)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [row["tile_id"] for row in rows] == sorted({row["tile_id"] for row in rows})
    by_id = {entry.scene_id: entry for entry in SCENES}
    assert {row["scene_id"] for row in rows} == set(by_id)
    for row, polygon in zip(rows, geometries(table), strict=True):
        window = geo.Window(row=row["row"], col=row["col"], height=row["height"], width=row["width"])
        grid = by_id[row["scene_id"]].grid
        assert window.inside(grid.height, grid.width)
        assert row["tile_id"] == tile_id(row["scene_id"], window)
        assert polygon.equals(geo.footprint(grid, window))
        assert row["crs"] == grid.crs
        assert row["datetime"] == by_id[row["scene_id"]].datetime
        assert (row["cluster_id"] is not None) == (sampler.kind in {"cluster", "walk"})
        ((block_row, block_col),) = geo.cells(geo.lonlat(grid, geo.window_array([window])), 10_000)
        assert row["block_id"] == geo.cell_name(block_row, block_col)
        assert {row[name] for name in ("valid_fraction", "label", "label_purity", "label_coverage")} == {None}
        assert row["label_fractions"] is None


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.kind)
def test_neither_order_nor_asking_again_changes_a_byte(sampler):
    assert geoparquet_bytes(plan(SCENES[::-1], sampler=sampler)) == geoparquet_bytes(plan(sampler=sampler))


def test_a_scene_contributes_the_same_whatever_else_there_is():
    alone = plan(SCENES[:1], sampler=GridSampler()).drop_columns(["split"]).to_pylist()
    together = plan(sampler=GridSampler()).drop_columns(["split"]).to_pylist()
    assert [row for row in together if row["scene_id"] == "b"] == alone
    few = {row["tile_id"] for row in plan().to_pylist() if row["scene_id"] == "b"}
    many = {row["tile_id"] for row in plan(SCENES[:1]).to_pylist()}
    assert len(few) == 100
    assert few < many


def test_random_tiles_are_shared_out_by_pixels():
    scenes = [scene("small", side=300), scene("large", top=5_000_000, side=600), scene("tiny", top=6_000_000, side=40)]
    found = plan(scenes, splits=ALL_TRAIN)["scene_id"].to_pylist()
    assert {name: found.count(name) for name in ("small", "large", "tiny")} == {"small": 60, "large": 240, "tiny": 0}


def test_dates_of_one_ground_have_one_place_and_other_ground_has_another():
    dates = [scene(f"day{day}", left=300_000 + 2 * day, pixel_m=30 + day * 1e-6) for day in range(3)]
    found: dict[tuple[int, int], set[str]] = {}
    rows = plan(dates, sampler=GridSampler(), splits=ALL_TRAIN).to_pylist()
    for row in rows:
        found.setdefault((row["row"], row["col"]), set()).add(row["place_id"])
    assert np.mean([len(places) == 1 for places in found.values()]) > 0.97, "only tiles at the edge of a cell change their cell"
    one_day = [row["place_id"] for row in rows if row["scene_id"] == "day0"]
    assert len(set(one_day)) == len(one_day)


def test_pictures_are_one_tile_each_and_keep_their_label():
    pictures = [picture(f"class{n % 3}/p{n}", f"class{n % 3}") for n in range(60)]
    rows = plan(pictures, size=None).to_pylist()
    assert len(rows) == 60
    for row in rows:
        assert (row["row"], row["col"], row["height"], row["width"]) == (0, 0, 150, 150)
        assert row["label"] == row["scene_id"].split("/")[0]
        assert row["block_id"] == row["scene_id"]
        assert row["place_id"] == row["tile_id"]
        assert (row["crs"], row["geometry"], row["datetime"]) == (None, None, None)


def test_pictures_and_imagery_live_in_one_set():
    rows = plan([*SCENES, picture("p")], sampler=GridSampler()).to_pylist()
    assert {row["geometry"] is None for row in rows if row["scene_id"] == "p"} == {True}
    assert {row["geometry"] is None for row in rows if row["scene_id"] != "p"} == {False}


def test_the_rim_of_a_full_disk_is_left_out():
    full_disk = scene("disk", "+proj=geos +h=35785831 +lon_0=0 +sweep=y", left=-6e6, top=6e6, pixel_m=12_000, side=1000)
    table = plan([full_disk], sampler=GridSampler(), splits=ALL_TRAIN)
    assert 0 < table.num_rows < 15 * 15
    assert not shapely.is_missing(geometries(table)).any()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.kind)
def test_an_area_leaves_the_tiles_that_meet_it_as_they_are(sampler):
    everywhere = plan([*SCENES, picture("p")], sampler=sampler, splits=ALL_TRAIN)
    middle = shapely.centroid(geo.footprint(SCENES[0].grid))
    area = middle.buffer(0.05)
    table = plan_tiles([*SCENES, picture("p")], TilesSection(sampler=sampler, splits=ALL_TRAIN), area)
    meeting = [polygon is not None and polygon.intersects(area) for polygon in geometries(everywhere)]
    assert 0 < table.num_rows < everywhere.num_rows
    assert table.to_pylist() == everywhere.filter(pa.array(meeting)).to_pylist()


def test_an_area_across_the_antimeridian():
    table = plan_tiles(
        SCENES[2:], TilesSection(sampler=GridSampler(), splits=ALL_TRAIN), shapely.MultiPolygon([shapely.box(179.9, -90, 180, 90)])
    )
    west, _, east, _ = shapely.total_bounds(geometries(table))
    assert (west, east) == (-180, 180), "tiles that reach over it are kept whole"
    assert all(polygon.intersects(shapely.box(179.9, -90, 180, 90)) for polygon in geometries(table))


def test_an_area_without_tiles_is_said_with_the_remedy():
    with pytest.raises(NoTilesError, match=r"none of \d+ windows on 1 scenes meets the area rasters\.aoi; widen the area"):
        plan_tiles(SCENES[:1], TilesSection(sampler=GridSampler()), shapely.box(0, 0, 1, 1))


def test_a_scene_too_small_for_a_cluster_of_its_own_has_none():
    table = plan([SCENES[0], picture("p")], sampler=ClusterSampler(clusters=20), splits=ALL_TRAIN)
    assert set(table["scene_id"].to_pylist()) == {"b"}


def test_scenes_of_one_name_are_refused():
    with pytest.raises(ImageryError, match="two scenes are called 'a'"):
        plan([SCENES[0], SCENES[1], scene("a")])


def test_no_room_is_said_with_the_remedy():
    with pytest.raises(NoTilesError, match=r"64 px fits on any of 2 scenes \(the largest, b has 50 x 50 px\); lower tiles.size"):
        plan([picture("a", side=30), picture("b", side=50)])
    with pytest.raises(NoTilesError, match="no scene"):
        plan([])


def test_geoparquet_is_what_the_specification_says():
    table = plan()
    data = geoparquet_bytes(table.replace_schema_metadata({"classes": "[]"}))
    metadata = pq.read_metadata(io.BytesIO(data)).metadata
    assert metadata[b"classes"] == b"[]"
    meta = json.loads(metadata[b"geo"])
    column = meta["columns"][meta["primary_column"]]
    assert (meta["version"], meta["primary_column"], column["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert column["geometry_types"] == sorted({polygon.geom_type for polygon in geometries(table)}) == ["MultiPolygon", "Polygon"]
    west, south, east, north = column["bbox"]
    assert west > east, "the set crosses the antimeridian"
    assert geo.in_bbox(shapely.get_coordinates(geometries(table)), geo.BBox(west, south, east, north)).all()
    assert read_geoparquet(data).equals(table)


def test_bytes_do_not_tell_how_a_table_came_about():
    table = plan([scene("wide", side=5000)], sampler=RandomSampler(count=80_000))
    pieces = pa.concat_tables([table.slice(0, 1000), table.slice(1000, 777), table.slice(1777, 70_001), table.slice(71_778)])
    assert pieces["tile_id"].num_chunks == 4
    assert geoparquet_bytes(pieces) == geoparquet_bytes(table)


def test_tables_without_geometry_are_plain_parquet():
    table = pa.table({"tile_id": ["a"], "reason": [None]}, pa.schema([("tile_id", pa.string()), ("reason", pa.string())]))
    data = geoparquet_bytes(table)
    assert b"geo" not in (pq.read_metadata(io.BytesIO(data)).metadata or {})
    assert read_geoparquet(data).equals(table)


def test_what_is_no_such_table_is_refused():
    with pytest.raises(StorageError, match="4 bytes are no Parquet table"):
        read_geoparquet(b"PAR1")
    whole = geoparquet_bytes(plan())
    with pytest.raises(StorageError, match="no Parquet table"):
        read_geoparquet(whole[: len(whole) // 2])
    sink = io.BytesIO()
    arrow = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "point"}}}
    pq.write_table(pa.table({"geometry": [b""]}).replace_schema_metadata({"geo": json.dumps(arrow)}), sink)
    with pytest.raises(StorageError, match="only WKB"):
        read_geoparquet(sink.getvalue())


def test_a_hundred_thousand_tiles_are_planned_in_seconds():
    start = time.process_time()
    assert (
        plan([scene("wide", side=5000), scene("other", "EPSG:32613", side=5000)], sampler=RandomSampler(count=100_000)).num_rows == 100_000
    )
    assert time.process_time() - start < 15, "1.2 s on one idle core"


def test_the_steps_of_a_walk_are_as_long_as_alike_tiles_are_apart():
    def clusters(**distances):
        table = plan([SCENES[0]], sampler=WalkSampler(walks=30, tiles_per_walk=8), splits=ALL_TRAIN, **distances)
        return {
            tuple(sorted(row["row"] for row in table.to_pylist() if row["cluster_id"] == cluster))
            for cluster in table["cluster_id"].unique().to_pylist()
        }

    near = [rows[-1] - rows[0] for rows in clusters(max_pos_dist=1.0)]
    far = [rows[-1] - rows[0] for rows in clusters(min_pos_dist=3.0, max_pos_dist=4.0)]
    assert max(near) <= 7 * 64
    assert np.mean(far) > 2 * np.mean(near)


def test_a_tile_table_of_another_version_is_refused():
    made = SCHEMA.empty_table()
    assert read_tiles(geoparquet_bytes(made)).equals(made)
    with pytest.raises(StorageError, match=r"lacks place, lon: .*rayjobs sample"):
        read_tiles(geoparquet_bytes(made.drop_columns(["place", "lon"])))
