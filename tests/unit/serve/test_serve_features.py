"""Answers as tables for other programs, read back by those."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from rayjobs.serve.features import CSV, FORMATS, GEOJSON, GEOPARQUET, WRITTEN, features_of
from rayjobs.serve.hits import Found, texts_of
from rayjobs.serve.schema import SearchAnswer

OVER = shapely.MultiPolygon([shapely.box(179.5, 10, 180, 11), shapely.box(-180, 10, -179, 11)])


ROWS = pa.table(
    {
        "tile_id": ["0" * 20, "1" * 20, "2" * 20],
        "scene_id": ["a", 'with "quotes", and commas', "c"],
        "datetime": pa.array([0, None, 86_400_000_000], pa.timestamp("us", tz="UTC")),
        "label": ["pond", None, "field"],
        "row": [0, 8, 16],
        "col": [1, 2, 3],
        "height": [8, None, 8],
        "width": [8] * 3,
        "geometry": pa.array([shapely.to_wkb(shapely.box(10, 50, 10.5, 51)), None, shapely.to_wkb(OVER)], pa.binary()),
    }
)


def answer_of(rows, scores):
    return Found(
        rows=rows, scores=scores, texts=texts_of(rows, scores), index_version="v1", encoder_fingerprint="f", exact=True, candidates=7,
    )  # fmt: skip


@pytest.fixture
def answer():
    return answer_of(ROWS, [0.9, 0.5, -0.25])


def test_geojson_fits_the_model(answer):
    found = json.loads(WRITTEN[GEOJSON](answer))
    assert SearchAnswer.model_validate(found).features == answer.features
    assert found["features"][1]["geometry"] is None
    assert shapely.equals(shapely.geometry.shape(found["features"][2]["geometry"]), OVER)
    assert found["features"][0]["properties"] == {
        "tile_id": "0" * 20, "scene_id": "a", "datetime": "1970-01-01T00:00:00+00:00", "label": "pond", "place_id": None,
        "window": {"row": 0, "col": 1, "height": 8, "width": 8}, "score": 0.9,
    }  # fmt: skip


def test_csv_has_a_line_per_hit(answer):
    lines = list(csv.DictReader(io.StringIO(WRITTEN[CSV](answer).decode())))
    assert [line["rank"] for line in lines] == ["1", "2", "3"]
    assert lines[1]["scene_id"] == 'with "quotes", and commas'
    assert [lines[1][name] for name in ("lon", "label", "geometry", "datetime", "height")] == [""] * 5
    assert lines[2]["datetime"] == "1970-01-02T00:00:00+00:00"
    assert (float(lines[2]["lon"]), float(lines[2]["lat"]), float(lines[2]["score"])) == (-179.75, 10.5, -0.25)
    assert shapely.equals(shapely.from_wkt(lines[2]["geometry"]), OVER)


def test_geoparquet_is_read_by_its_own_metadata(answer):
    table = pq.read_table(io.BytesIO(WRITTEN[GEOPARQUET](answer)))
    geo = json.loads(table.schema.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"], geo["columns"]["geometry"]["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert geo["columns"]["geometry"]["bbox"] == [10, 10, -179, 51]
    assert json.loads(table.schema.metadata[b"rayjobs"]) == {
        "index_version": "v1", "encoder_fingerprint": "f", "exact": True, "candidates": 7,
    }  # fmt: skip
    assert table["datetime"].to_pylist()[2].isoformat() == "1970-01-02T00:00:00+00:00"
    assert shapely.equals(shapely.from_wkb(table["geometry"][2].as_py()), OVER)
    assert table["geometry"][1].as_py() is None


def test_an_answer_without_hits_is_a_table_without_rows(answer):
    none = answer_of(ROWS.slice(0, 0), [])
    assert len(WRITTEN[CSV](none).splitlines()) == 1
    assert pq.read_table(io.BytesIO(WRITTEN[GEOPARQUET](none))).num_rows == 0


def test_every_format_can_be_written():
    assert set(FORMATS.values()) == set(WRITTEN)


@pytest.mark.parametrize("media", [CSV, GEOPARQUET])
def test_tables_have_the_same_columns_whatever_the_index_has(answer, media):
    """Labels may be a dictionary, dates be told in other units, columns of few tiles be there, and a score be where there was a query."""
    others = ROWS.drop_columns(["label"]).append_column("label", ROWS["label"].dictionary_encode()).drop_columns(["width"])
    others = others.set_column(others.column_names.index("datetime"), "datetime", ROWS["datetime"].cast(pa.timestamp("ms", tz="UTC")))
    written = WRITTEN[media](answer_of(others, None))
    if media == CSV:
        lines = list(csv.DictReader(io.StringIO(written.decode())))
        assert [line["label"] for line in lines] == ["pond", "", "field"]
        assert [(line["width"], line["score"]) for line in lines] == [("", "")] * 3
        assert lines[0].keys() == next(csv.DictReader(io.StringIO(WRITTEN[CSV](answer).decode()))).keys()
    else:
        table = pq.read_table(io.BytesIO(written))
        assert table.drop_columns(["width", "score"]).equals(
            pq.read_table(io.BytesIO(WRITTEN[GEOPARQUET](answer))).drop_columns(["width", "score"])
        )
        assert table.schema.equals(pq.read_table(io.BytesIO(WRITTEN[GEOPARQUET](answer))).schema)


def test_a_tile_is_an_object_too():
    assert [feature.id for feature in features_of(ROWS)] == ROWS["tile_id"].to_pylist()
    assert features_of(ROWS)[1].properties.window.height is None
