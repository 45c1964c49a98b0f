"""Answers from one index version. Plain Python: knows neither HTTP nor Ray."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs import geo
from rayjobs.errors import FingerprintError, IndexCorruptError, QueryError, RayjobsError
from rayjobs.models.fingerprint import fingerprint_of
from rayjobs.models.spec import ModelSpec
from rayjobs.rasters.uploads import TileGround
from rayjobs.retrieval.changes import changes, same_place
from rayjobs.retrieval.examples import BACKGROUND, Method, query_vector, unit
from rayjobs.retrieval.filters import SearchFilter, columns_to_filter, parse_interval
from rayjobs.retrieval.manifest import IndexManifest, read_index_manifest
from rayjobs.retrieval.metadata import common_columns
from rayjobs.retrieval.places import area_of
from rayjobs.retrieval.search import Hits, open_searcher
from rayjobs.retrieval.shards import Shards, load_shards
from rayjobs.serve.features import SHOWN, changes_of, features_of
from rayjobs.serve.hits import Found, texts_of
from rayjobs.serve.schema import (
    ChangesAnswer,
    ChangesRequest,
    Example,
    Feature,
    Filters,
    Ground,
    Info,
    Page,
    Recall,
    SearchRequest,
)
from rayjobs.storage import Artefact, Store, Version
from rayjobs.tiles.chips import Chip, read_chips, shard_name
from rayjobs.tiles.render import picture, png

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    import pyarrow as pa

Vector = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_THUMBNAIL_SIDE = 192
_BATCH_LIMITS = 10
"""Times the most hits of one search that the searches of a batch may ask for together, those before the first counted."""
_QUICK = {"positives", "limit", "index_version"}
_FEW_HITS, _QUICK_NS = 100, 1e6
_EXAMPLES = {"positives", "negatives", "method", "index_version"}
"""Fields of a search in which searches that are made together may differ."""


class Answers:
    """One index version with its encoder's description; immutable."""

    def __init__(
        self, version: Version, *, cache: Path, max_limit: int, load: Callable[[Version, IndexManifest, Path], Shards] = load_shards
    ) -> None:
        """Load the segments.

        Args:
            version: the index version.
            cache: folder for copies of what lies in a bucket.
            max_limit: most hits that a request may ask for.
            load: what loads the vectors, or has them loaded elsewhere.

        Raises:
            IndexCorruptError: a file differs from the manifest.
            FingerprintError: the encoder beside the segments is not the one that made them.
        """
        manifest = read_index_manifest(version.manifest, version.store.address(version.prefix))
        self.spec = ModelSpec.from_json(version.read("encoder/model.json"))
        """Of its encoder."""
        fingerprint = fingerprint_of(self.spec, version.read("encoder/model.safetensors"))
        if fingerprint != manifest.encoder_fingerprint:
            raise FingerprintError(
                f"index {version.version} was made by encoder {manifest.encoder_fingerprint[:12]}, but carries {fingerprint[:12]}; "
                "publish it again with `rayjobs index`"
            )
        self.searcher = open_searcher(version, manifest, cache, load=load)
        """Its tiles."""
        self._manifest, self._version, self._max_limit = manifest, version, max_limit
        self._set = functools.cache(functools.partial(_set_of, version.store))

    @property
    def version(self) -> str:
        """Name of the index version."""
        return self._version.version

    @property
    def encoder_fingerprint(self) -> str:
        """Of the encoder that made the vectors."""
        return self._manifest.encoder_fingerprint

    @property
    def window(self) -> TileGround | None:
        """The ground that the encoder's tiles show; None where they have no place."""
        resolution_m = self.spec.resolution_m
        return None if resolution_m is None else TileGround(resolution_m=resolution_m, side=self.spec.tile_size)

    def is_quick(self, request: SearchRequest) -> bool:
        """Whether a search takes about a millisecond: no filter, no place to look up, and little to compare, in this process."""
        plain = request.model_fields_set <= _QUICK and request.limit <= _FEW_HITS
        return plain and self.searcher.shards.cost_ns < _QUICK_NS and all(example.point is None for example in request.positives)

    @functools.cached_property
    def source(self) -> Version:
        """The set that was indexed last."""
        return self._set(self._version.manifest["parents"]["set"])

    def info(self) -> Info:
        """Describe the index."""
        manifest = self._manifest
        return Info(
            name=self._version.manifest["name"],
            index_version=self.version,
            encoder_fingerprint=manifest.encoder_fingerprint,
            rows=self.searcher.rows,
            dimension=manifest.dimension,
            distance=manifest.distance,
            bands=list(self.spec.bands),
            dtype=self.spec.dtype,
            tile_size=self.spec.tile_size,
            kind=manifest.kind,
            why=manifest.why,
            recall=None if manifest.recall is None else Recall(**dataclasses.asdict(manifest.recall)),
            segments=len(manifest.segments),
            deleted=manifest.deleted,
            mapped_bytes=sum(entry.size for entry in self._version.files if entry.name.endswith((".vectors", ".faiss"))),
            columns=columns_to_filter(self.searcher.tables),
            bounds=None if manifest.bounds is None else list(manifest.bounds),
            dates=None if manifest.dates is None else list(manifest.dates),
        )

    def query_vector(
        self, positives: Sequence[Example], negatives: Sequence[Example] = (), *, method: Method | None = None
    ) -> tuple[Vector, tuple[str, ...]]:
        """Return one query out of examples, (dim,) float32 of length 1, and the ids of the examples that are tiles.

        Raises:
            UnknownTileError: a tile or place that the index does not hold.
            QueryError: an embedding of another dimension, an example that is wanted and not wanted, or examples that cancel out.
        """
        liked, disliked = ([self._tile_id(example) for example in examples] for examples in (positives, negatives))
        both = set(filter(None, liked)) & set(filter(None, disliked))
        if both:
            raise QueryError(f"tile {min(both)} is a positive and a negative example; leave one of them out")
        vectors = self._vectors(positives, liked), self._vectors(negatives, disliked)
        query = query_vector(*vectors, self._background, method=method)
        return query, tuple(tile for tile in (*liked, *disliked) if tile is not None)

    def _tile_id(self, example: Example) -> str | None:
        point = example.point
        if point is None:
            return example.tile_id
        interval = None if point.datetime is None else parse_interval(point.datetime)
        return self.searcher.tile_at(point.lon, point.lat, only=SearchFilter(interval=interval))

    def _vectors(self, examples: Sequence[Example], tiles: Sequence[str | None]) -> Vector:
        found = [
            self._given(example) if tile is None else self.searcher.vector_of(tile) for example, tile in zip(examples, tiles, strict=True)
        ]
        return np.array(found, np.float32).reshape(-1, self._manifest.dimension)

    def _given(self, example: Example) -> Vector:
        made_by = example.encoder_fingerprint
        if made_by is not None and not self.encoder_fingerprint.startswith(made_by):
            raise QueryError(
                f"the embedding was made by encoder {made_by[:12]}, the index by {self.encoder_fingerprint[:12]}; they cannot be compared: "
                "embed the image again"
            )
        vector = np.array(example.embedding, np.float64)
        if len(vector) != self._manifest.dimension:
            raise QueryError(f"the embedding has {len(vector)} numbers, the index {self._manifest.dimension}")
        return unit(vector / max(np.abs(vector).max(), np.finfo(np.float64).tiny))

    def _background(self) -> Vector:
        return self._drawn

    @functools.cached_property
    def _drawn(self) -> Vector:
        return self.searcher.vectors_of(self.searcher.sample(BACKGROUND))

    def search(self, vector: Vector, filters: Filters, *, without: Collection[str]) -> Found:
        """Return the tiles most like a vector of length 1."""
        return self._searched(vector[None], filters, [without])[0]

    def search_batch(self, requests: Sequence[SearchRequest]) -> list[Found]:
        """Answer several searches; those with equal filters are searched together.

        Raises:
            RayjobsError: one cannot be answered; says which.
        """
        if (wanted := sum(request.offset + request.limit for request in requests)) > _BATCH_LIMITS * self._max_limit:
            raise QueryError(
                f"the searches ask for {wanted:,} hits together, offsets counted, above the {_BATCH_LIMITS * self._max_limit:,} of a batch"
            )
        queries = [self._numbered_query(number, request) for number, request in enumerate(requests)]
        answers: dict[int, Found] = {}
        for numbers in _alike(requests):
            vectors, without = np.stack([queries[number][0] for number in numbers]), [queries[number][1] for number in numbers]
            answers |= zip(numbers, self._searched(vectors, requests[numbers[0]], without), strict=True)
        return [answers[number] for number in range(len(requests))]

    def _numbered_query(self, number: int, request: SearchRequest) -> tuple[Vector, tuple[str, ...]]:
        try:
            return self.query_vector(request.positives, request.negatives, method=request.method)
        except RayjobsError as error:
            raise type(error)(f"searches[{number}]: {error}") from None

    def _searched(self, vectors: Vector, filters: Filters, without: Sequence[Collection[str]]) -> list[Found]:
        self._check_limit(filters.limit)
        if filters.spread_m is not None:  # each hit that is passed over costs a search
            self._check_limit(filters.offset + filters.limit, "with spread_m, offset and limit together")
        found = self.searcher.search_batch(
            vectors,
            filters.limit,
            offset=filters.offset,
            only=filter_of(filters),
            without=without,
            threshold=filters.threshold,
            spread_m=filters.spread_m,
            exact=filters.exact,
        )
        rows = self._taken(np.concatenate([hits.rows for hits in found]))
        texts = texts_of(rows, np.concatenate([hits.scores for hits in found]).tolist())
        ends = np.cumsum([len(hits.rows) for hits in found]).tolist()
        return [
            self._found(rows.slice(end - len(hits.rows), len(hits.rows)), hits, texts[end - len(hits.rows) : end])
            for hits, end in zip(found, ends, strict=True)
        ]

    def _found(self, rows: pa.Table, hits: Hits, texts: Sequence[str]) -> Found:
        return Found(
            rows=rows,
            scores=hits.scores.tolist(),
            texts=texts,
            index_version=self.version,
            encoder_fingerprint=self.encoder_fingerprint,
            exact=hits.exact,
            candidates=hits.candidates,
        )

    def _listed(self, rows: Rows, scores: Sequence[float] | None, candidates: int) -> Found:
        """Return tiles that are known and not searched for."""
        taken = self._taken(rows)
        return Found(
            rows=taken,
            scores=scores,
            texts=texts_of(taken, scores),
            index_version=self.version,
            encoder_fingerprint=self.encoder_fingerprint,
            exact=True,
            candidates=candidates,
        )

    def _check_limit(self, limit: int, what: str = "limit") -> None:
        if limit > self._max_limit:
            raise QueryError(f"{what} {limit} is above the {self._max_limit} that this service gives")

    def _taken(self, rows: Rows) -> pa.Table:
        return self.searcher.take(rows, columns=self._shown)

    @functools.cached_property
    def _shown(self) -> list[str]:
        known = common_columns(self.searcher.tables)
        return [name for name in SHOWN if name in known]

    def tiles(self, ground: Ground, page: Page) -> Found:
        """Return tiles on some ground, in order of their ids within each segment."""
        self._check_limit(page.limit)
        rows = self.searcher.select(filter_of(ground)).rows
        return self._listed(rows[page.offset : page.offset + page.limit], None, len(rows))

    def same_place(self, tile_id: str) -> Found:
        """Return the other tiles that show a tile's place, earliest first, each with its similarity to it. Raises `UnknownTileError`."""
        found = same_place(self.searcher, tile_id)
        rows = found[: self._max_limit]
        scores = self.searcher.vectors_of(rows) @ self.searcher.vector_of(tile_id)
        return self._listed(rows, scores.tolist(), len(found))

    def changes(self, request: ChangesRequest) -> ChangesAnswer:
        """Return the places whose embedding moved most between two times."""
        self._check_limit(request.limit)
        ground = Ground(bbox=request.bbox, intersects=request.intersects)
        before, after = (filter_of(ground.model_copy(update={"datetime": when})) for when in (request.before, request.after))
        found = changes(self.searcher, before, after, request.limit, offset=request.offset)
        return ChangesAnswer(
            features=changes_of(self._taken(found.earlier), self._taken(found.later), found.change.tolist()),
            index_version=self.version,
            encoder_fingerprint=self.encoder_fingerprint,
            exact=True,
            candidates=found.places,
        )

    def similarity(self, vector: Vector, ground: Ground, *, most: int) -> tuple[geo.FloatArray, Vector]:
        """Return how alike the tiles on some ground are to a vector: their boxes (n, 4) in degrees, and (n,) scores.

        Args:
            vector: (dim,) of length 1.
            ground: which tiles; those without a place are left out.
            most: where more tiles pass, every n-th of them is taken, the same at each call.
        """
        rows = self.searcher.select(filter_of(ground), placed=True).rows
        rows = rows[:: max(1, -(-len(rows) // most))]
        return self.searcher.boxes_of(rows), self.searcher.vectors_of(rows) @ vector

    def tile_at(self, lon: float, lat: float, *, datetime: str | None = None) -> Feature:
        """Describe the tile that holds a place, on a date if one is given. Raises `UnknownTileError`, `QueryError`."""
        return self.tile(self.searcher.tile_at(lon, lat, only=filter_of(Ground(datetime=datetime))))

    def tile(self, tile_id: str) -> Feature:
        """Describe one tile. Raises `UnknownTileError`."""
        return features_of(self._taken(np.array([self.searcher.row_of(tile_id)])))[0]

    def known(self, tile_ids: Collection[str]) -> list[str]:
        """Return those of some ids that the index holds, in their order."""
        found = self._rows_by_id(tile_ids)
        return [tile for tile in tile_ids if tile in found]

    def features(self, tile_ids: Sequence[str]) -> list[Feature]:
        """Describe some tiles, all of which the index holds, in their order."""
        found = self._rows_by_id(tile_ids)
        return features_of(self._taken(np.array([found[tile] for tile in tile_ids], np.int64)))

    def drawn(self, count: int, *, without: Collection[str]) -> list[str]:
        """Return tiles drawn at random, each time others: `count`, or all that remain without some."""
        rows = self.searcher.all.without(self.searcher.rows_of(without)).rows
        return self._ids_of(np.random.default_rng().choice(rows, min(count, len(rows)), replace=False))

    def alike(self, tile_id: str, count: int, *, without: Collection[str]) -> list[str]:
        """Return the tiles most like one, which is left out itself as are some others. Raises `UnknownTileError`."""
        vector = self.searcher.vector_of(tile_id)
        return self._ids_of(self.searcher.search(vector, count, without={tile_id, *without}).rows)

    def _rows_by_id(self, tile_ids: Collection[str]) -> dict[str, int]:
        rows = self.searcher.rows_of(tile_ids)
        rows = rows[self.searcher.all.holds(rows)]
        return dict(zip(self._ids_of(rows), rows.tolist(), strict=True))

    def _ids_of(self, rows: Rows) -> list[str]:
        return [name.decode() for name in self.searcher.ids_of(rows).tolist()]

    def thumbnail(self, tile_id: str) -> bytes:
        """Return one tile's pixels as PNG. Raises `UnknownTileError`, and as `_pixels`."""
        [(source, chip)] = self._pixels(np.array([self.searcher.row_of(tile_id)]))
        manifest = source.manifest
        return png(picture(chip, manifest["bands"], manifest["band_mean"], manifest["band_std"]), side=_THUMBNAIL_SIDE)

    def stored(self, most: int) -> tuple[list[Chip], Vector]:
        """Return the pixels of some tiles, drawn from all of the index, and their (tiles, dim) vectors in it.

        Raises:
            IndexCorruptError, StorageError: as of `_pixels`.
        """
        chips = [chip for _, chip in self._pixels(self.searcher.sample(most))]
        return chips, self.searcher.vectors_of(np.array([self.searcher.row_of(chip.tile_id) for chip in chips], np.int64))

    def _pixels(self, rows: Rows) -> list[tuple[Version, Chip]]:
        """Return the pixels of some tiles, each with the set that it comes from; those of one shard follow each other.

        Raises:
            IndexCorruptError: the index does not say where they are, or says it wrongly.
            StorageError: the set is gone.
        """
        if not {"set", "shard"} <= set(common_columns(self.searcher.tables)):
            raise IndexCorruptError(f"index {self.version} does not say where its tiles' pixels are; publish it again with `rayjobs index`")
        wanted: dict[tuple[str, int], set[str]] = {}
        for known in self.searcher.describe(rows):
            wanted.setdefault((known["set"], known["shard"]), set()).add(known["tile_id"])
        found: list[tuple[Version, Chip]] = []
        for (name, shard), ids in wanted.items():
            source = self._set(name)
            found += [(source, chip) for chip in read_chips(source.read(shard_name(shard)), ids)]
        if len(found) < len(rows):
            raise IndexCorruptError(f"index {self.version} names tiles that its sets do not hold; publish it again with `rayjobs index`")
        return found


def _set_of(store: Store, name: str) -> Version:
    """Return a set of tiles by name and version, `NAME/VERSION`. Raises `NotFoundError` where it is gone."""
    name, _, version = name.partition("/")
    return Artefact(store, "sets", name).at(version)


def filter_of(filters: Ground) -> SearchFilter:
    """Return what a request says of the tiles that may be answered. Raises `QueryError` where it is no box, no interval or no polygon."""
    try:
        bbox = None if filters.bbox is None else geo.parse_bbox(filters.bbox)
    except ValueError as error:
        raise QueryError(str(error)) from None
    ground = SearchFilter(
        bbox=bbox,
        intersects=None if filters.intersects is None else area_of(filters.intersects.model_dump()),
        interval=None if filters.datetime is None else parse_interval(filters.datetime),
    )
    if not isinstance(filters, Filters):
        return ground
    return dataclasses.replace(ground, labels=tuple(filters.labels), scenes=tuple(filters.scenes), where=filters.where)


def _alike(requests: Sequence[SearchRequest]) -> list[list[int]]:
    """Return the numbers of requests that ask alike but for their examples, together."""
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(request.model_dump_json(exclude=_EXAMPLES), []).append(number)
    return list(groups.values())
