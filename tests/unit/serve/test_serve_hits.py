"""The text of an answer beside the object that it stands for."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import shapely

from rayjobs.serve.hits import Found, texts_of
from rayjobs.serve.schema import SearchAnswer

WORDS = ["pond", None, "field", 'with "quotes",\\ and\ncontrol \x00 characters', "Größe ☃ \U0001f30d", ""]
GROUNDS = [
    shapely.box(10, 50, 10.5, 51),
    None,
    shapely.MultiPolygon([shapely.box(179.5, 10, 180, 11), shapely.box(-180, 10, -179, 11)]),
    shapely.Point(1.25, -2.5),
    shapely.box(0.1, 0.2, 0.30000000000000004, 1e-7),
    shapely.box(-180, -90, 180, 90),
]
MOMENTS = [0, None, 86_400_000_000, 1, -1, 1_600_000_000_123_456]


def table(**changed):
    count = len(WORDS)
    columns = {
        "tile_id": [f"{number:020x}" for number in range(count)],
        "scene_id": [word or "scene" for word in WORDS],
        "datetime": pa.array(MOMENTS, pa.timestamp("us", tz="UTC")),
        "label": pa.array(WORDS, pa.string()),
        "row": pa.array(range(count), pa.int32()),
        "col": pa.array(range(count), pa.int64()),
        "height": pa.array([8] * count, pa.int32()),
        "width": pa.array([2**31 - 1] * count, pa.int32()),
        "place_id": pa.array(WORDS, pa.string()),
        "geometry": pa.array([None if ground is None else shapely.to_wkb(ground) for ground in GROUNDS], pa.large_binary()),
    }
    return pa.table({name: column for name, column in (columns | changed).items() if column is not None})


def found(rows, scores):
    return Found(
        rows=rows, scores=scores, texts=texts_of(rows, scores), index_version='v"1"', encoder_fingerprint="f", exact=True, candidates=9,
    )  # fmt: skip


def as_read(value):
    return json.loads(json.dumps(value))


def plain(rows, scores):
    """Each hit as plain Python, one by one."""
    taken = [dict.fromkeys(("place_id", "width")) | row for row in rows.to_pylist()]
    return [
        {
            "type": "Feature", "id": row["tile_id"],
            "geometry": None if row["geometry"] is None else as_read(shapely.geometry.mapping(shapely.from_wkb(row["geometry"]))),
            "properties": {
                "tile_id": row["tile_id"], "scene_id": row["scene_id"], "label": row["label"], "place_id": row["place_id"],
                "datetime": None if row["datetime"] is None else row["datetime"].isoformat(),
                "window": {side: row[side] for side in ("row", "col", "height", "width")},
                "score": None if scores is None else scores[number],
            },
        }
        for number, row in enumerate(taken)
    ]  # fmt: skip


SCORES = [1.0, 0.5, -0.25, float(np.float32(0.1)), 1e-9, -0.0]


@pytest.mark.parametrize("scores", [SCORES, None])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"place_id": None},
        {"datetime": pa.nulls(len(WORDS), pa.timestamp("us", tz="UTC"))},
        {"datetime": pa.array(range(6), pa.timestamp("ms", tz="UTC"))},
        {"label": pa.array(WORDS, pa.string()).dictionary_encode()},
        {"label": pa.nulls(len(WORDS), pa.string()).dictionary_encode()},
        {"geometry": pa.nulls(len(WORDS), pa.large_binary())},
        {"row": pa.array([1, None, 3, None, 5, 2**31 - 1], pa.int32()), "height": pa.nulls(len(WORDS), pa.int32())},
        {"width": None},
    ],
    ids=[
        "all",
        "without places",
        "without dates",
        "milliseconds",
        "dictionary",
        "empty dictionary",
        "without ground",
        "without some numbers",
        "without a column",
    ],
)
def test_the_text_says_what_the_object_says(changed, scores):
    made = found(table(**changed), scores)
    said = json.loads(made.geojson(), parse_constant=pytest.fail)
    assert said == {
        "type": "FeatureCollection", "index_version": 'v"1"', "encoder_fingerprint": "f", "exact": True, "candidates": 9,
        "features": plain(made.rows, scores),
    }  # fmt: skip
    assert SearchAnswer.model_validate(said).features == made.features


def test_nothing_found_is_an_empty_collection():
    made = found(table().slice(0, 0), [])
    assert json.loads(made.geojson())["features"] == []
    assert made.features == []
