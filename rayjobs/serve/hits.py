"""Hits between the index and the answer: columns of the metadata, which become GeoJSON text without an object for each hit.

Most of what a request costs is the answer's text. Columns are turned into pieces of text all at once, for the hits of all searches of a
batch, and geometries go from WKB to GeoJSON without being read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from rayjobs.serve.schema import Feature

_NULL = "null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Tiles that were found: the hits of one search, best first, or all on some ground."""

    rows: pa.Table
    """What is known of each hit: columns of `SHOWN`, as far as the index has them."""
    scores: Sequence[float] | None
    """Of each hit; None where there was no query."""
    texts: Sequence[str]
    """Each hit as the text of a GeoJSON feature."""
    index_version: str
    encoder_fingerprint: str
    exact: bool
    """Whether these are provably the nearest of all candidates."""
    candidates: int
    """Tiles that the filters left."""

    @property
    def features(self) -> list[Feature]:
        """Each hit as an object, read from its text."""
        return [Feature.model_validate_json(text) for text in self.texts]

    def geojson(self) -> str:
        """Return the answer as the text of a `SearchAnswer`."""
        return (
            f'{{"type":"FeatureCollection","index_version":{json.dumps(self.index_version)},'
            f'"encoder_fingerprint":"{self.encoder_fingerprint}","exact":{"true" if self.exact else "false"},'
            f'"candidates":{self.candidates},"features":[{",".join(self.texts)}]}}'
        )


def texts_of(rows: pa.Table, scores: Sequence[float] | None) -> list[str]:
    """Return tiles as texts of GeoJSON features.

    Args:
        rows: columns of `SHOWN`, as far as the index has them.
        scores: of each row, where there was a query.
    """
    ids, scenes, labels, places = (_strings(rows, name) for name in ("tile_id", "scene_id", "label", "place_id"))
    windows = (_numbers(rows, name) for name in ("row", "col", "height", "width"))
    written = [_NULL] * rows.num_rows if scores is None else [repr(score) for score in scores]
    moments = (_NULL if moment is None else f'"{moment}"' for moment in moments_of(rows))
    known = zip(ids, scenes, moments, labels, places, *windows, _geometries(rows), written, strict=True)
    return [
        f'{{"type":"Feature","id":{tile},"geometry":{ground},"properties":{{"tile_id":{tile},"scene_id":{scene},"datetime":{moment},'
        f'"label":{label},"window":{{"row":{row},"col":{col},"height":{height},"width":{width}}},"place_id":{place},"score":{score}}}}}'
        for tile, scene, moment, label, place, row, col, height, width, ground, score in known
    ]


@functools.lru_cache(maxsize=4096)
def _quoted(text: str | None) -> str:
    return json.dumps(text)


def _strings(rows: pa.Table, name: str) -> list[str]:
    if name not in rows.column_names:
        return [_NULL] * rows.num_rows
    return [_quoted(value) for value in rows[name].to_pylist()]


def _numbers(rows: pa.Table, name: str) -> list[Any]:
    if name not in rows.column_names:
        return [_NULL] * rows.num_rows
    column = rows[name]
    if column.null_count:
        return [_NULL if number is None else number for number in column.to_pylist()]
    numbers: list[int] = column.to_numpy().tolist()
    return numbers


def moments_of(rows: pa.Table) -> list[str | None]:
    """Return the datetimes of tiles as RFC 3339, microseconds only where there are any."""
    column = rows["datetime"]
    moments = np.datetime_as_string(column.cast(pa.timestamp("us", tz="UTC")).to_numpy().astype("datetime64[us]"), unit="us")
    missing = column.is_null().to_pylist() if column.null_count else [False] * len(column)
    written = (text.removesuffix(".000000") for text in moments.tolist())
    return [None if absent else f"{text}+00:00" for text, absent in zip(written, missing, strict=True)]


def _geometries(rows: pa.Table) -> list[Any]:
    texts = shapely.to_geojson(shapely.from_wkb(rows["geometry"].to_numpy()))
    return [_NULL if text is None else text for text in texts.tolist()]
