"""Answers from one index version. Plain Python: knows neither HTTP nor Ray."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from rayjobs import geo
from rayjobs.errors import FingerprintError, QueryError, UnknownTileError
from rayjobs.models.checkpoint import from_files
from rayjobs.retrieval.filters import SearchFilter, parse_interval
from rayjobs.retrieval.manifest import read_index_manifest, read_tombstones
from rayjobs.retrieval.search import Searcher
from rayjobs.retrieval.segments import load_segment
from rayjobs.serve.schema import Example, Feature, Filters, Info, Properties, SearchAnswer, Window
from rayjobs.storage import Artefact, Store, Version
from rayjobs.tiles.chips import Chip, read_chips, shard_name
from rayjobs.tiles.render import picture, png

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

Vector = np.ndarray[Any, np.dtype[np.float32]]

_THUMBNAIL_SIDE = 192


class Answers:
    """One index version with its encoder's description; immutable."""

    def __init__(self, store: Store, version: Version, *, cache: Path, max_limit: int) -> None:
        """Load the segments.

        Args:
            store: the workspace.
            version: the index version.
            cache: folder for copies of what lies in a bucket.
            max_limit: most hits that a request may ask for.

        Raises:
            IndexCorruptError: a file differs from the manifest.
            FingerprintError: the encoder beside the segments is not the one that made them.
        """
        manifest = read_index_manifest(version.manifest, store.address(version.prefix))
        encoder = from_files(model_json=version.read("encoder/model.json"), tensors=version.read("encoder/model.safetensors"))
        if encoder.fingerprint != manifest.encoder_fingerprint:
            raise FingerprintError(
                f"index {version.version} was made by encoder {manifest.encoder_fingerprint[:12]}, but carries {encoder.fingerprint[:12]}; "
                "publish it again with `rayjobs index`"
            )
        segments = [load_segment(version, entry, manifest, cache) for entry in manifest.segments]
        self._searcher = Searcher(segments, tombstones=read_tombstones(version, manifest))
        self._manifest, self._version, self._store, self._max_limit = manifest, version, store, max_limit
        self.spec = encoder.spec

    @property
    def version(self) -> str:
        """Name of the index version."""
        return self._version.version

    @functools.cached_property
    def source(self) -> Version:
        """The set whose tiles were indexed."""
        name, _, version = self._version.manifest["parents"]["set"].partition("/")
        return Artefact(self._store, "sets", name).at(version)

    def info(self) -> Info:
        """Describe the index."""
        bounds, dates = self._manifest.bounds, self._manifest.dates
        return Info(
            name=self._version.manifest["name"],
            index_version=self.version,
            encoder_fingerprint=self._manifest.encoder_fingerprint,
            rows=self._searcher.rows,
            dimension=self._manifest.dimension,
            distance=self._manifest.distance,
            bands=list(self.spec.bands),
            tile_size=self.spec.tile_size,
            bounds=list(bounds) if bounds else None,
            dates=list(dates) if dates else None,
        )

    def query_vector(self, examples: Sequence[Example]) -> tuple[Vector, tuple[str, ...]]:
        """Return the mean of the examples' embeddings, and the ids of those that are tiles.

        Raises:
            UnknownTileError: a tile or place that the index does not hold.
            QueryError: an embedding of another dimension, or examples that cancel out.
        """
        tiles = tuple(self._tile_id(example) for example in examples)
        vectors = [
            self._given(example) if tile is None else self._searcher.vector_of(tile) for example, tile in zip(examples, tiles, strict=True)
        ]
        mean = np.mean(vectors, axis=0)
        return self._unit(mean), tuple(tile for tile in tiles if tile is not None)

    def _tile_id(self, example: Example) -> str | None:
        if example.point is not None:
            return self._searcher.tile_at(example.point.lon, example.point.lat)
        return example.tile_id

    def _given(self, example: Example) -> Vector:
        vector = np.array(example.embedding, np.float32)
        if len(vector) != self._manifest.dimension:
            raise QueryError(f"the embedding has {len(vector)} numbers, the index {self._manifest.dimension}")
        return self._unit(vector)

    @staticmethod
    def _unit(vector: Vector) -> Vector:
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not 0 < length < np.inf:
            raise QueryError("the query has no direction: its length is zero or not finite; give other examples")
        unit: Vector = (vector / length).astype(np.float32)
        return unit

    def search(self, vector: Vector, filters: Filters, *, without: Collection[str]) -> SearchAnswer:
        """Return the tiles most like a vector."""
        if filters.limit > self._max_limit:
            raise QueryError(f"limit {filters.limit} is above the {self._max_limit} that this service gives")
        hits = self._searcher.search(vector, filters.limit, only=_filter_of(filters), without=without)
        rows = self._searcher.describe(hits.rows.tolist())
        return SearchAnswer(
            features=[_feature(row, float(score)) for row, score in zip(rows, hits.scores, strict=True)],
            index_version=self.version,
            encoder_fingerprint=self._manifest.encoder_fingerprint,
            exact=hits.exact,
            candidates=hits.candidates,
        )

    def similarity(self, vector: Vector, filters: Filters, *, most: int) -> tuple[geo.FloatArray, Vector]:
        """Return how alike tiles that pass the filters are to a vector: the tiles' boxes (n, 4) in degrees, and (n,) scores.

        Args:
            vector: (dim,) of length 1.
            filters: which tiles; their `limit` is not asked.
            most: where more tiles pass, every n-th of them is taken.
        """
        rows = self._searcher.select(_filter_of(filters)).rows
        rows = rows[:: max(1, -(-len(rows) // most))]
        wkb = self._searcher.take(rows, columns=["geometry"])["geometry"].to_numpy(zero_copy_only=False)
        return geo.bboxes(shapely.from_wkb(wkb)), self._searcher.vectors_of(rows) @ vector

    def tile_at(self, lon: float, lat: float, *, datetime: str | None = None) -> Feature:
        """Describe the tile that holds a place, on a date if one is given. Raises `UnknownTileError`, `QueryError`."""
        return self.tile(self._searcher.tile_at(lon, lat, only=_filter_of(Filters(datetime=datetime))))

    def tile(self, tile_id: str) -> Feature:
        """Describe one tile. Raises `UnknownTileError`."""
        return _feature(self._searcher.describe([self._searcher.row_of(tile_id)])[0], None)

    def thumbnail(self, tile_id: str) -> bytes:
        """Return one tile's pixels as PNG. Raises `UnknownTileError`."""
        row = self._searcher.describe([self._searcher.row_of(tile_id)])[0]
        manifest = self.source.manifest
        chip = read_chips(self.source.read(shard_name(row["shard"])), {tile_id})[0]
        return png(picture(chip, manifest["bands"], manifest["band_mean"], manifest["band_std"]), side=_THUMBNAIL_SIDE)

    def stored(self, most: int) -> tuple[list[Chip], Vector]:
        """Return the pixels of some tiles, all of one shard, and their (tiles, dim) vectors in the index."""
        shard = self._searcher.describe([0])[0]["shard"]
        known: list[Chip] = []
        vectors: list[Vector] = []
        for chip in read_chips(self.source.read(shard_name(shard))):
            with contextlib.suppress(UnknownTileError):  # of another split, or deleted
                vectors.append(self._searcher.vector_of(chip.tile_id))
                known.append(chip)
            if len(known) == most:
                break
        return known, np.stack(vectors)


def _filter_of(filters: Filters) -> SearchFilter:
    try:
        bbox = None if filters.bbox is None else geo.parse_bbox(filters.bbox)
    except ValueError as error:
        raise QueryError(str(error)) from None
    return SearchFilter(bbox=bbox, interval=None if filters.datetime is None else parse_interval(filters.datetime))


def _feature(row: dict[str, Any], score: float | None) -> Feature:
    geometry = None if row["geometry"] is None else shapely.geometry.mapping(shapely.from_wkb(row["geometry"]))
    when = row["datetime"]
    properties = Properties(
        tile_id=row["tile_id"],
        scene_id=row["scene_id"],
        datetime=None if when is None else when.isoformat(),
        label=row["label"],
        window=Window(row=row["row"], col=row["col"], height=row["height"], width=row["width"]),
        score=score,
    )
    return Feature(id=row["tile_id"], geometry=geometry, properties=properties)
