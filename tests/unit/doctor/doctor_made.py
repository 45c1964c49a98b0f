"""A whole small workspace of one made-up piece of ground: set, checkpoint, embeddings and index, by our own code, without Ray."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io

import numpy as np
import pyarrow as pa
import scipy.ndimage
import torch

from rayjobs.config import build
from rayjobs.console import Console
from rayjobs.doctor.index import examined
from rayjobs.embed.stack import stack
from rayjobs.experiment import Experiment
from rayjobs.index.job import Building
from rayjobs.index.versions import newest, writing
from rayjobs.index.workers import Here
from rayjobs.models import encoder
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.spec import ModelSpec
from rayjobs.storage import Artefact
from rayjobs.tiles import chips
from rayjobs.tiles.table import geoparquet_bytes

SIZE, ROWS, COLUMNS, BANDS = 8, 14, 18, ("red", "green", "blue")


def ground(seed=0, *, smooth=12.0):
    """A landscape (3, height, width) uint8: colours that change over more than a tile, and texture whose strength does."""
    rng = np.random.default_rng(seed)
    shape = (ROWS * SIZE, COLUMNS * SIZE)
    fields = [scipy.ndimage.gaussian_filter(rng.standard_normal(shape), smooth) for _ in range(4)]
    red, green, blue, strength = (field / field.std() for field in fields)
    texture = rng.standard_normal(shape) * 12 * np.exp(0.7 * strength)
    return np.clip(np.stack([120 + 35 * red, 110 + 35 * green, 100 + 35 * blue]) + texture, 1, 254).astype(np.uint8)


@functools.cache
def encoder_files(seed=0, mean=110.0, std=40.0):
    """`model_json` and `tensors` of a small network."""
    spec = ModelSpec(
        backbone="resnet10t", dim=16, bands=BANDS, dtype="uint8", mean=(mean,) * 3, std=(std,) * 3, tile_size=SIZE, input_size=32,
        resolution_m=10.0,
    )  # fmt: skip
    files = to_files(encoder.build(spec, seed), spec)
    return {"model_json": files["model.json"], "tensors": files["model.safetensors"]}


def cut(pixels, valid):
    """The chips of all tiles of a grid, sorted by id, and each one's row and column in pixels."""
    places = [(row * SIZE, col * SIZE) for row in range(ROWS) for col in range(COLUMNS)]
    made = [
        (
            chips.Chip(
                tile_id=hashlib.sha256(b"%d %d" % place).hexdigest()[:20],
                pixels=np.ascontiguousarray(pixels[:, place[0] : place[0] + SIZE, place[1] : place[1] + SIZE]),
                valid=np.ascontiguousarray(valid[place[0] : place[0] + SIZE, place[1] : place[1] + SIZE]),
            ),
            place,
        )
        for place in places
    ]
    return sorted(made, key=lambda entry: entry[0].tile_id)


@torch.inference_mode()
def embedded(cuts, files):
    module = from_files(**files).module
    return module(*stack([chip for chip, _ in cuts], SIZE)).numpy()


class Made:
    """An index of that ground."""

    def __init__(self, uri, *, pixels=None, valid=None, files=None, kind="flat"):
        self.files = files or encoder_files()
        raw = {
            "name": "made",
            "workspace": {"uri": str(uri)},
            "rasters": {"sources": [{"kind": "images", "root": "pictures"}]},
            "index": {"kind": kind, "rows_per_segment": 150},
        }
        self.experiment = build(Experiment, raw)
        self.workspace = self.experiment.open_workspace()
        pixels = ground() if pixels is None else pixels
        self.cuts = cut(pixels, np.ones(pixels.shape[1:], bool) if valid is None else valid)
        self.vectors = embedded(self.cuts, self.files)
        self._publish_set(pixels)
        with writing(self.workspace.index) as lease:
            console = Console(io.StringIO(), io.StringIO())
            building = Building(self.workspace.index, self.experiment.index, Here(), console)
            building.publish(self._table(), self.files, self.experiment, lease)

    def _publish_set(self, pixels):
        draft = Artefact(self.workspace.store, "sets", "made").draft("s1")
        for shard in range(2):
            rows = [chips.row(chip) for chip, _ in self.cuts[shard::2]]
            draft.write(f"chips/part-{shard:05d}.parquet", chips.shard_bytes(rows, "uint8", {}))
        statistics = {"band_mean": pixels.mean(axis=(1, 2)).tolist(), "band_std": pixels.std(axis=(1, 2)).tolist()}
        draft.publish({"parents": {}, "counts": {}, "bands": list(BANDS), "shards": 2, **statistics})

    def _table(self):
        count = len(self.cuts)
        known = {
            "tile_id": [chip.tile_id for chip, _ in self.cuts],
            "scene_id": ["scene"] * count,
            **{name: pa.array([place[axis] for _, place in self.cuts], pa.int32()) for axis, name in enumerate(("row", "col"))},
            "height": pa.array([SIZE] * count, pa.int32()),
            "width": pa.array([SIZE] * count, pa.int32()),
            "geometry": pa.nulls(count, pa.binary()),
            "datetime": pa.nulls(count, pa.timestamp("us", tz="UTC")),
            "shard": pa.array([number % 2 for number in range(count)], pa.int64()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(self.vectors.reshape(-1)), self.vectors.shape[1]),
        }
        table = pa.table(known)
        draft = Artefact(self.workspace.store, "embeddings", "made").draft("e1")
        parts = {f"part-{number:05d}.parquet": table.slice(start, 126) for number, start in enumerate(range(0, count, 126))}
        for name, part in parts.items():
            draft.write(name, geoparquet_bytes(part))
        rows = {name: part.num_rows for name, part in parts.items()}
        fields = {"parents": {"set": "made/s1"}, "counts": {"rows": count}, "rows_by_part": rows}
        return draft.publish({**fields, "encoder_fingerprint": from_files(**self.files).fingerprint, "distance": "cosine"})

    def checkpoint(self, files):
        """Publish a checkpoint of the run."""
        draft = self.workspace.checkpoints.draft("epoch-0001")
        draft.write("model.json", files["model_json"])
        draft.write("model.safetensors", files["tensors"])
        draft.publish({"parents": {}, "counts": {}, "encoder_fingerprint": from_files(**files).fingerprint})

    def replace(self, name, data, **said):
        """Publish the index again with other bytes in place of a file, their digest right, and other words in its manifest."""
        index, published = self.workspace.index, newest(self.workspace.index)
        draft = index.draft(f"{published.version.version}x")
        for entry in published.version.files:
            draft.share(entry.name, data if entry.name == name else published.version.read(entry.name))
        manifest = dataclasses.replace(published.manifest, **said)
        kept = {key: published.version.manifest[key] for key in ("parents", "build", "counts", "action")}
        draft.publish({**kept, **manifest.fields()})

    def damage(self, name):
        """Alter a byte of a file of the current version."""
        version = newest(self.workspace.index).version
        path = version.store.fetch(version.key(name), None)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))

    def checks(self, cache):
        """By name."""
        return {check.name: check for check in examined(self.experiment, cache)}


def faults(checks):
    """The names of those that are at fault."""
    return {name for name, check in checks.items() if check.state == "fault"}
