"""Scenes as a table: there and back without loss."""

from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime, timedelta, timezone

import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rayjobs.geo import Grid
from rayjobs.rasters.scenes import Asset, QualityLayer, Scene, read_scenes, scenes_table

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
assets = st.builds(
    Asset,
    uri=st.text(min_size=1),
    band_index=st.integers(1, 500),
    scale=numbers.filter(bool),
    offset=numbers,
    nodata=st.none() | st.floats(allow_nan=False),
    palette=st.none() | st.integers(0, 2),
)
layers = st.builds(
    QualityLayer,
    uri=st.text(min_size=1),
    band_index=st.integers(1, 9),
    bits=st.lists(st.integers(0, 31)).map(tuple),
    classes=st.lists(st.integers(-5, 70000)).map(tuple),
)
scenes = st.builds(
    Scene,
    scene_id=st.text(min_size=1),
    assets=st.dictionaries(st.text(min_size=1), assets, min_size=1, max_size=5),
    grid=st.builds(
        Grid,
        crs=st.none() | st.just("EPSG:32631"),
        transform=st.tuples(st.just(10.0), st.just(0.5), numbers, st.just(0.0), st.just(-10.0), numbers),
        height=st.integers(1, 10**6),
        width=st.integers(1, 10**6),
    ),
    block=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    dtype=st.sampled_from(["uint8", "float32"]),
    resolution_m=st.none() | st.floats(0.01, 1e5),
    datetime=st.none() | st.datetimes(timezones=st.just(UTC)),
    quality=st.none() | layers,
    label=st.none() | st.text(),
    platform=st.none() | st.text(),
    footprint=st.none() | st.builds(lambda x, y: shapely.box(x, y, x + 1, y + 1), st.floats(-170, 170), st.floats(-80, 80)),
)


@settings(deadline=None)
@given(st.lists(scenes, max_size=4))
def test_a_table_gives_the_same_scenes_back(given_scenes):
    file = io.BytesIO()
    pq.write_table(scenes_table(given_scenes), file)
    returned = read_scenes(pq.read_table(io.BytesIO(file.getvalue())))
    assert returned == given_scenes
    assert [list(scene.assets) for scene in returned] == [list(scene.assets) for scene in given_scenes]


def one(**keys):
    grid = Grid(crs=None, transform=(1, 0, 0, 0, 1, 0), height=4, width=4)
    return Scene(**{"scene_id": "a", "assets": {"b1": Asset(uri="a.tif")}, "grid": grid, "block": (4, 4), "dtype": "uint8", **keys})


def test_nodata_that_is_no_number_stays_apart_from_none():
    written = [one(assets={"x": Asset(uri="a", nodata=math.nan), "y": Asset(uri="a", nodata=None)})]
    x, y = read_scenes(scenes_table(written))[0].assets.values()
    assert math.isnan(x.nodata)
    assert y.nodata is None


def test_the_table_is_geoparquet():
    table = scenes_table([one(footprint=shapely.box(1, 2, 3, 4)), one(scene_id="b")])
    about = json.loads(table.schema.metadata[b"geo"])
    assert about["version"] == "1.1.0"
    assert about["columns"][about["primary_column"]]["encoding"] == "WKB"
    assert shapely.from_wkb(table["geometry"][0].as_py()).bounds == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "keys",
    [
        {"scene_id": ""},
        {"assets": {}},
        {"block": (0, 4)},
        {"datetime": datetime(2020, 1, 1)},  # noqa: DTZ001  that is the fault
        {"datetime": datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))},
    ],
)
def test_scenes_that_later_stages_cannot_use_are_refused(keys):
    with pytest.raises(ValueError, match=r"scene"):
        one(**keys)


@pytest.mark.parametrize("keys", [{"band_index": 0}, {"scale": 0.0}, {"scale": math.inf}, {"offset": math.nan}])
def test_assets_without_meaning_are_refused(keys):
    with pytest.raises(ValueError, match=r"a\.tif"):
        Asset(uri="a.tif", **keys)
