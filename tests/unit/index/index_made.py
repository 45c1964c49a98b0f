"""A small index with everything that belongs to it, without Ray: made-up embeddings in a real workspace."""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely

from rayjobs.config import build
from rayjobs.console import Console
from rayjobs.experiment import Experiment
from rayjobs.index import delete as deletion
from rayjobs.index.append import Appending, compare
from rayjobs.index.compact import Compacting, plan
from rayjobs.index.job import Building
from rayjobs.index.versions import newest, writing
from rayjobs.index.workers import Here
from rayjobs.models import encoder
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.spec import statistics_spec
from rayjobs.retrieval.kinds import KINDS
from rayjobs.retrieval.search import open_searcher
from rayjobs.storage import Artefact
from rayjobs.tiles.table import geoparquet_bytes

DIM = 16
PART = 40
"""Tiles in a part of an embedding table."""


@functools.cache
def encoder_files(seed=0):
    """`model_json` and `tensors` of an encoder of 16 dimensions."""
    spec = statistics_spec(
        bands=("a", "b", "c", "d"), mean=(float(seed),) * 4, std=(1.0,) * 4, tile_size=8, resolution_m=10.0, dtype="uint8"
    )
    files = to_files(encoder.build(spec, seed), spec)
    return {"model_json": files["model.json"], "tensors": files["model.safetensors"]}


def tile_id(number):
    return hashlib.sha256(b"%d" % number).hexdigest()[:20]


def vector_of(number):
    """A tile's vector: one of ten directions and some noise, of length 1."""
    centre = np.random.default_rng(number % 10).standard_normal(DIM)
    vector = centre / np.linalg.norm(centre) + 0.2 * np.random.default_rng([1, number]).standard_normal(DIM) / np.sqrt(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def code_of(number):
    """A tile's vector where the encoder gives codes: the signs of `vector_of`."""
    return np.where(vector_of(number) > 0, np.float32(0.25), np.float32(-0.25))


def place_of(number):
    """The footprint of a tile: squares along the equator, over the antimeridian."""
    west = (number * 0.5 + 540) % 360 - 180
    return shapely.box(west, 10, west + 0.4, 10.4)


def tile_table(numbers):
    """What is known of tiles, sorted by id; ten tiles make a scene, and hundred a shard."""
    numbers = sorted(numbers, key=tile_id)
    day = datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)
    return pa.table(
        {
            "tile_id": [tile_id(number) for number in numbers],
            "scene_id": [f"scene-{number // 10:03d}" for number in numbers],
            "row": pa.array([0] * len(numbers), pa.int32()),
            "col": pa.array(numbers, pa.int32()),
            "height": pa.array([8] * len(numbers), pa.int32()),
            "width": pa.array([8] * len(numbers), pa.int32()),
            "place_id": [f"{number}" for number in numbers],
            "split": ["train"] * len(numbers),
            "geometry": pa.array([shapely.to_wkb(place_of(number)) for number in numbers], pa.binary()),
            "datetime": pa.array([day + datetime.timedelta(days=number) for number in numbers], pa.timestamp("us", tz="UTC")),
            "label": pa.array([None] * len(numbers), pa.string()),
            "shard": pa.array([number // 100 for number in numbers], pa.int64()),
        }
    )


def write_embeddings(store, name, numbers, change=lambda table: table, vector=vector_of, of_set="made/s1"):
    """Publish an embedding table of some tiles, parts of `PART`; `change` gives what is known of them other columns."""
    numbers = list(numbers)
    version = hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]
    draft = Artefact(store, "embeddings", name).draft(version)
    rows = {}
    for number, start in enumerate(range(0, len(numbers), PART)):
        table = change(tile_table(numbers[start : start + PART]))
        by_id = {tile_id(tile): vector(tile) for tile in numbers[start : start + PART]}
        vectors = np.stack([by_id[name] for name in table["tile_id"].to_pylist()])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
        part = f"part-{number:05d}.parquet"
        draft.write(part, geoparquet_bytes(table.append_column("embedding", column)))
        rows[part] = table.num_rows
    fields = {"parents": {"set": of_set}, "counts": {"rows": len(numbers)}, "rows_by_part": rows}
    return draft.publish({**fields, "encoder_fingerprint": from_files(**encoder_files()).fingerprint, "distance": "cosine"})


class Made:
    """An index in a workspace, and the actions on it."""

    def __init__(self, uri, *, name="made", **settings):
        raw = {
            "name": name,
            "workspace": {"uri": uri},
            "rasters": {"sources": [{"kind": "images", "root": "pictures"}]},
            "index": {"kind": "flat", "rows_per_segment": 80, **settings},
        }
        self.experiment = build(Experiment, raw)
        kind = self.experiment.index.kind
        self.vector_of = code_of if kind in KINDS and KINDS[kind].store == "hamming" else vector_of
        self.workspace = self.experiment.open_workspace()
        self.index, self.store = self.workspace.index, self.workspace.store
        self.screen = io.StringIO()
        self.console = Console(io.StringIO(), self.screen)
        self._arguments = (self.index, self.experiment.index, Here(), self.console)

    def current(self):
        return newest(self.index)

    def build(self, numbers):
        table = write_embeddings(self.store, "made", numbers, vector=self.vector_of)
        with writing(self.index) as lease:
            return Building(*self._arguments).publish(table, encoder_files(), self.experiment, lease)

    def append(self, numbers, parent=None, **changed):
        """Append what is new of some tiles."""
        parent = parent or self.current()
        wanted = compare(tile_table(numbers), parent)
        new = set(wanted.new["tile_id"].to_pylist())
        table = write_embeddings(
            self.store, "made-appended", [number for number in numbers if tile_id(number) in new], vector=self.vector_of, **changed
        )
        with writing(self.index) as lease:
            return Appending(*self._arguments).publish(parent, table, self.experiment, lease)

    def delete(self, numbers, parent=None):
        ids = sorted(map(tile_id, numbers))
        with writing(self.index) as lease:
            return deletion.delete(self.index, parent or self.current(), ids, self.experiment, lease, self.console)

    def compact(self, parent=None):
        parent = parent or self.current()
        with writing(self.index) as lease:
            planned = plan(parent, self.experiment.index.rows_per_segment)
            return Compacting(*self._arguments).publish(parent, planned, self.experiment, lease)


def searcher(published, cache=Path("/nonexistent")):
    """Open a version as the service does."""
    manifest = published.manifest
    return open_searcher(published.version, manifest, cache)


def answers(published, numbers, cache, *, limit=7, exact=None, vector=vector_of):
    """Ids and scores of what is nearest to some tiles' vectors."""
    opened = searcher(published, cache)
    found = [opened.search(vector(number), limit, exact=exact) for number in numbers]
    return [(opened.take(hits.rows)["tile_id"].to_pylist(), hits.scores.tolist()) for hits in found]
