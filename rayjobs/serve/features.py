"""Rows of the metadata as GeoJSON, and answers as tables for other programs: CSV and GeoParquet."""

from __future__ import annotations

import io
import itertools
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
from rayjobs.serve.schema import Change, ChangeProperties, Feature, Properties, SearchAnswer, Window

SHOWN = ("tile_id", "scene_id", "datetime", "label", "row", "col", "height", "width", "place_id", "geometry")
"""Columns of the metadata that features tell of."""

Row = Mapping[str, Any]
Geometry = dict[str, Any] | None


def features_of(rows: pa.Table, scores: Sequence[float] | None = None) -> list[Feature]:
    """Return tiles as GeoJSON features.

    Args:
        rows: columns of `SHOWN`, as far as the index has them.
        scores: of each row, where there was a query.
    """
    known = zip(_rows_of(rows), _geometries_of(rows), scores or itertools.repeat(None, rows.num_rows), strict=True)
    return [
        Feature.model_construct(id=row["tile_id"], geometry=geometry, properties=_properties(row, score)) for row, geometry, score in known
    ]


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


def _properties(row: Row, score: float | None) -> Properties:
    window = Window.model_construct(row=row["row"], col=row["col"], height=row["height"], width=row["width"])
    return Properties.model_construct(
        tile_id=row["tile_id"],
        scene_id=row["scene_id"],
        datetime=_written(row["datetime"]),
        label=row["label"],
        window=window,
        place_id=row["place_id"],
        score=score,
    )


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


def _table_of(answer: SearchAnswer) -> tuple[pa.Table, geo.GeometryArray]:
    """Return an answer's features as a table without geometry, and their geometries."""
    known = [feature.properties for feature in answer.features]
    columns: dict[str, pa.Array] = {"rank": pa.array(range(1, len(known) + 1), pa.int32())}
    columns |= {name: pa.array([getattr(one, name) for one in known], pa.string()) for name in ("tile_id", "scene_id", "datetime", "label")}
    columns |= {side: pa.array([getattr(one.window, side) for one in known], pa.int32()) for side in ("row", "col", "height", "width")}
    columns["score"] = pa.array([one.score for one in known], pa.float64())
    grounds = [None if feature.geometry is None else shapely.geometry.shape(feature.geometry) for feature in answer.features]
    geometries: geo.GeometryArray = np.empty(len(grounds), object)
    geometries[:] = grounds
    return pa.table(columns), geometries


def _as_csv(answer: SearchAnswer) -> bytes:
    """Return one line per feature, with longitude and latitude of its box's middle and its footprint as WKT."""
    table, geometries = _table_of(answer)
    for name, degrees in zip(("lon", "lat"), middles_of(unrolled(geo.bboxes(geometries))).T, strict=True):
        table = table.append_column(name, pa.array(degrees, pa.float64(), from_pandas=True))
    table = table.append_column("geometry", pa.array(shapely.to_wkt(geometries).tolist(), pa.string()))
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue()


def _as_geoparquet(answer: SearchAnswer) -> bytes:
    """Return GeoParquet 1.1 whose key `rayjobs` says which index and encoder answered."""
    table, geometries = _table_of(answer)
    table = table.append_column("geometry", pa.array(shapely.to_wkb(geometries).tolist(), pa.binary()))
    moments = pa.array(
        [None if feature.properties.datetime is None else feature.properties.datetime for feature in answer.features], pa.string()
    )
    table = table.set_column(table.column_names.index("datetime"), "datetime", moments.cast(pa.timestamp("us", tz="UTC")))
    source = answer.model_dump_json(include={"index_version", "encoder_fingerprint", "exact", "candidates"})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"geo": geo.geoparquet_metadata(geometries), "rayjobs": source}), sink, compression="zstd")
    return sink.getvalue()


def _as_geojson(answer: SearchAnswer) -> bytes:
    return answer.model_dump_json().encode()


GEOJSON, CSV, GEOPARQUET = "application/geo+json", "text/csv", "application/vnd.apache.parquet"

FORMATS: Mapping[str, str] = {"geojson": GEOJSON, "csv": CSV, "parquet": GEOPARQUET}
"""Media types that an answer can have, by the name that a request may give."""

WRITTEN: Mapping[str, Callable[[SearchAnswer], bytes]] = {GEOJSON: _as_geojson, CSV: _as_csv, GEOPARQUET: _as_geoparquet}
"""How an answer is written, by media type."""
