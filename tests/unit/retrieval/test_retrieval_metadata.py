"""Metadata out of a Parquet file: what is mapped is what was written, and what is damaged is refused."""

from __future__ import annotations

import datetime
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from rayjobs import geo
from rayjobs.errors import IndexCorruptError
from rayjobs.retrieval import metadata as room
from rayjobs.retrieval.metadata import NO_MOMENT, Metadata

DAY = datetime.datetime(1969, 6, 1, 12, tzinfo=datetime.UTC)


def table_of(count=50, **columns):
    footprints = [None if row % 5 == 0 else shapely.to_wkb(shapely.box(row, -row, row + 0.5, -row + 0.5)) for row in range(count)]
    dates = [None if row % 7 == 0 else DAY + datetime.timedelta(days=300 * row) for row in range(count)]
    known = {
        "tile_id": pa.array([f"tile-{row:03d}" for row in range(count)]),
        "geometry": pa.array(footprints, pa.binary()),
        "datetime": pa.array(dates, pa.timestamp("us", tz="UTC")),
        "label": pa.array([("pond", "field", None)[row % 3] for row in range(count)]),
        "place_id": pa.array([f"place-{row}" for row in range(count)]),
        "row": pa.array(range(count), pa.int32()),
    }
    return pa.table(known | columns)


@pytest.fixture
def opened(tmp_path):
    def build(table):
        pq.write_table(table, tmp_path / "a.parquet")
        digest = hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()
        return Metadata.open(tmp_path / "a.parquet", tmp_path / "cache", sha256=digest)

    return build


def test_rows_come_back_as_they_were_written(opened):
    table = table_of()
    metadata = opened(table)
    assert metadata.rows == 50
    assert [row["label"] for row in metadata.take(np.array([3, 0, 49])).to_pylist()] == ["pond", "pond", "field"]
    assert metadata.take(np.array([7])).to_pylist() == table.slice(7, 1).to_pylist()
    assert metadata.take(np.array([1, 2]), columns=["row"]).to_pydict() == {"row": [1, 2]}
    assert set(metadata.columns.names) == set(table.column_names)


def test_ids_are_found_by_bisection_whatever_their_length(opened):
    metadata = opened(table_of(4, tile_id=pa.array(["a", "ab", "b", "bcd"])))
    assert [metadata.row_of(name) for name in ("a", "ab", "b", "bcd")] == [0, 1, 2, 3]
    assert [metadata.row_of(name) for name in ("", "aa", "abcde", "zz", "é")] == [None] * 5
    assert metadata.rows_of(["b", "none", "a"]).tolist() == [2, 0]
    assert metadata.rows_of([]).tolist() == []


def test_moments_and_boxes_are_columns_of_numbers(opened):
    table = table_of()
    metadata = opened(table)
    dates = table["datetime"].to_pylist()
    assert [moment == NO_MOMENT for moment in metadata.moments] == [date is None for date in dates]
    assert metadata.moments[1] == round(dates[1].timestamp() * 1e6)
    assert metadata.dated
    assert not opened(table.set_column(2, "datetime", pa.nulls(50, pa.timestamp("us", tz="UTC")))).dated
    np.testing.assert_array_equal(metadata.places.boxes_of(np.arange(50)), geo.bboxes(shapely.from_wkb(table["geometry"].to_pylist())))
    assert metadata.places.count == 40


def test_a_covering_is_taken_at_its_word_and_not_shown(opened):
    corners = [pa.array(np.where(np.arange(50) % 5 == 0, np.nan, float(side))) for side in (170, 1, -170, 2)]
    covering = pa.StructArray.from_arrays(corners, names=["xmin", "ymin", "xmax", "ymax"], mask=pa.array(np.arange(50) % 5 == 0))
    metadata = opened(table_of(bbox=covering))
    assert metadata.places.boxes_of(np.array([1])).tolist() == [[170, 1, -170, 2]]
    assert metadata.places.middles(np.array([1, 0])).tolist()[0] == [-180, 1.5]
    assert np.isnan(metadata.places.middles(np.array([0]))).all()
    assert "bbox" not in metadata.columns.names


def test_the_file_is_converted_once(opened, monkeypatch):
    opened(table_of())

    def never(*_):
        pytest.fail("the Parquet file was read again")

    monkeypatch.setattr(room.pq, "read_table", never)
    assert opened(table_of()).rows == 50


def test_no_row_takes_memory_of_the_process(opened):
    count = 20_000
    many = {
        "tile_id": pa.array([f"{row:020x}" for row in range(count)]),
        "geometry": pa.array(shapely.to_wkb(shapely.box(*np.random.default_rng(0).uniform(-80, 80, (4, count)))), pa.binary()),
        "datetime": pa.array(range(count), pa.timestamp("us", tz="UTC")),
        "label": pa.array(["a", "b"] * (count // 2)),
    }
    opened(pa.table(many))
    before = pa.total_allocated_bytes()
    metadata = opened(pa.table(many))
    levels = sum(level.nbytes for level in metadata.places._levels)
    assert pa.total_allocated_bytes() - before < 1000
    assert levels < 4 * count
    assert not any(array.flags.owndata for array in (metadata.ids, metadata.moments, metadata.places._order, *metadata.places._boxes))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (table_of().drop_columns(["geometry"]), "lacks the columns .'geometry'"),
        (table_of().slice(0, 0), "0 rows"),
        (table_of().sort_by([("tile_id", "descending")]), "not sorted"),
        (pa.concat_tables([table_of(1), table_of(1)]), "not sorted by distinct"),
        (table_of(3, tile_id=pa.array([1, 2, 3])), "cannot be read as metadata"),
        (table_of(3, datetime=pa.array(["x", "y", "z"])), "cannot be read as metadata"),
    ],
)
def test_a_table_that_is_no_metadata_is_refused(opened, table, words):
    with pytest.raises(IndexCorruptError, match=words):
        opened(table)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-2000],
        lambda data: bytes(len(data)),
        lambda data: data[:2000] + bytes(len(data) - 2000),
        lambda _: b"",
        lambda data: data[: len(data) // 2],
    ],
    ids=["cut", "zeros", "zeros at the end", "empty", "half"],
)
def test_what_is_mapped_and_damaged_is_made_again(opened, tmp_path, damage):
    rows = opened(table_of()).take(np.arange(50)).to_pylist()
    [path] = (tmp_path / "cache" / "metadata").iterdir()
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    assert opened(table_of()).take(np.arange(50)).to_pylist() == rows
    assert path.read_bytes() == whole


def test_a_table_in_several_pieces_is_one(opened):
    table = pa.concat_tables([table_of().slice(0, 20), table_of().slice(20)])
    assert len(table.to_batches()) == 2
    assert Metadata.of(table).take(np.array([3, 30])).to_pylist() == opened(table).take(np.array([3, 30])).to_pylist()


def test_more_rows_than_one_batch_holds_are_refused():
    with pytest.raises(IndexCorruptError, match="of 100 rows is more than one batch holds; choose a lower"):
        room._only_batch(pa.concat_tables([table_of(), table_of()]))
