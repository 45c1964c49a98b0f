"""Rows of the metadata as GeoJSON, and answers as tables for other programs: CSV and GeoParquet."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import shapely

from rayjobs import geo
from rayjobs.retrieval.places import middles_of, unrolled
from rayjobs.serve.hits import Found, moments_of, texts_of
from rayjobs.serve.schema import Change, ChangeProperties, Feature

SHOWN = ("tile_id", "scene_id", "datetime", "label", "row", "col", "height", "width", "place_id", "geometry")
"""Columns of the metadata that features tell of."""

Row = Mapping[str, Any]
Geometry = dict[str, Any] | None


def features_of(rows: pa.Table) -> list[Feature]:
    """Return tiles, columns of `SHOWN` as far as the index has them, as GeoJSON features."""
    return [Feature.model_validate_json(text) for text in texts_of(rows, None)]


def changes_of(earlier: pa.Table, later: pa.Table, change: Sequence[float]) -> list[Change]:
    """Return places that were seen twice as GeoJSON features, from the two tiles of each and the distance between them."""
    tiles = zip(_rows_of(earlier), _rows_of(later), _geometries_of(later), change, strict=True)
    return [
        Change(id=after["tile_id"], geometry=ground, properties=_changed(before, after, moved)) for before, after, ground, moved in tiles
    ]


def _rows_of(table: pa.Table) -> Iterator[Row]:
    """Yield the rows without their geometry; columns that the index does not have are None."""
    plain = {name: table[name].to_pylist() if name in table.column_names else [None] * table.num_rows for name in SHOWN[:-1]}
    return (dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True))


def _geometries_of(table: pa.Table) -> list[Geometry]:
    written = shapely.to_geojson(shapely.from_wkb(table["geometry"].to_numpy()))
    return [None if text is None else json.loads(text) for text in written]


def _changed(before: Row, after: Row, change: float) -> ChangeProperties:
    return ChangeProperties(
        change=change,
        place_id=after["place_id"],
        from_tile_id=before["tile_id"],
        to_tile_id=after["tile_id"],
        from_datetime=_written(before["datetime"]),
        to_datetime=_written(after["datetime"]),
        from_scene_id=before["scene_id"],
        to_scene_id=after["scene_id"],
    )


def _written(moment: Any) -> str | None:
    return None if moment is None else str(moment.isoformat())


def _table_of(found: Found) -> pa.Table:
    """Return hits as a table without their geometry."""
    rows, count = found.rows, found.rows.num_rows
    columns: dict[str, Any] = {"rank": pa.array(range(1, count + 1), pa.int32())}
    columns |= {name: _column(rows, name, pa.string()) for name in ("tile_id", "scene_id")}
    columns["datetime"] = pa.array(moments_of(rows), pa.string())
    columns["label"] = _column(rows, "label", pa.string())
    columns |= {side: _column(rows, side, pa.int32()) for side in ("row", "col", "height", "width")}
    columns["score"] = pa.nulls(count, pa.float64()) if found.scores is None else pa.array(found.scores, pa.float64())
    return pa.table(columns)


def _column(rows: pa.Table, name: str, kind: pa.DataType) -> Any:
    return rows[name].cast(kind) if name in rows.column_names else pa.nulls(rows.num_rows, kind)


def _grounds(found: Found) -> geo.GeometryArray:
    return np.asarray(shapely.from_wkb(found.rows["geometry"].to_numpy()), object)


def _as_geojson(found: Found) -> bytes:
    return found.geojson().encode()


def _as_csv(found: Found) -> bytes:
    """Return one line per hit, with longitude and latitude of its box's middle and its footprint as WKT."""
    table, grounds = _table_of(found), _grounds(found)
    for name, degrees in zip(("lon", "lat"), middles_of(unrolled(geo.bboxes(grounds))).T, strict=True):
        table = table.append_column(name, pa.array(degrees, pa.float64(), from_pandas=True))
    table = table.append_column("geometry", pa.array(shapely.to_wkt(grounds).tolist(), pa.string()))
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue()


def _as_geoparquet(found: Found) -> bytes:
    """Return GeoParquet 1.1 whose key `rayjobs` says which index and encoder answered."""
    table, grounds = _table_of(found), _grounds(found)
    table = table.append_column("geometry", pa.array(shapely.to_wkb(grounds).tolist(), pa.binary()))
    table = table.set_column(
        table.column_names.index("datetime"), "datetime", _column(found.rows, "datetime", pa.timestamp("us", tz="UTC"))
    )
    source = json.dumps(
        {name: getattr(found, name) for name in ("index_version", "encoder_fingerprint", "exact", "candidates")}, separators=(",", ":")
    )
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"geo": geo.geoparquet_metadata(grounds), "rayjobs": source}), sink, compression="zstd")
    return sink.getvalue()


GEOJSON, CSV, GEOPARQUET = "application/geo+json", "text/csv", "application/vnd.apache.parquet"

FORMATS: Mapping[str, str] = {"geojson": GEOJSON, "csv": CSV, "parquet": GEOPARQUET}
"""Media types that an answer can have, by the name that a request may give."""

WRITTEN: Mapping[str, Callable[[Found], bytes]] = {GEOJSON: _as_geojson, CSV: _as_csv, GEOPARQUET: _as_geoparquet}
"""How an answer is written, by media type."""
