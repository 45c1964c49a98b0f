"""A published index of twelve tiles in a row, one of them deleted, with pixels and an encoder, for tests of what is answered from one."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import shapely

from rayjobs.models.checkpoint import fingerprint, to_files
from rayjobs.models.encoder import build
from rayjobs.models.spec import ModelSpec
from rayjobs.retrieval.kinds import Effort
from rayjobs.retrieval.manifest import TOMBSTONES, IndexManifest, tombstone_bytes
from rayjobs.retrieval.segments import build_segment
from rayjobs.storage import Artefact
from rayjobs.tiles import chips

DIM, COUNT = 4, 12
SPEC = ModelSpec(
    backbone="resnet10t", dim=DIM, bands=("red", "green", "blue"), dtype="uint8", mean=(99.0,) * 3, std=(50.0,) * 3,
    tile_size=8, input_size=32, resolution_m=10.0,
)  # fmt: skip
VECTORS = np.random.default_rng(3).normal(size=(COUNT, DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
IDS = [f"{number:020x}" for number in range(COUNT)]


def place(number: int) -> tuple[float, float]:
    """A row of tiles to the east, a tenth of a degree each, half of it free."""
    return number / 10, 40.0


def tile_table() -> pa.Table:
    footprints = [shapely.to_wkb(shapely.box(lon, lat, lon + 0.05, lat + 0.05)) for lon, lat in map(place, range(COUNT))]
    first = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return pa.table(
        {
            "tile_id": IDS, "scene_id": ["scene"] * COUNT, "label": ["field", None] * (COUNT // 2),
            "datetime": pa.array([first + datetime.timedelta(days=number) for number in range(COUNT)], pa.timestamp("us", tz="UTC")),
            "row": [0] * COUNT, "col": [8 * number for number in range(COUNT)], "height": [8] * COUNT, "width": [8] * COUNT,
            "set": ["places/one"] * COUNT, "shard": [0] * COUNT, "place_id": [f"place-{number % 7}" for number in range(COUNT)],
            "geometry": pa.array(footprints, pa.binary()),
        }
    )  # fmt: skip


def pixels_of(number: int) -> np.ndarray:
    return np.full((3, 8, 8), 20 * number, np.uint8)


def publish(store, *, of_encoder=0, said_encoder=0, deleted=(IDS[3],), known=None, with_pixels=IDS):
    known = tile_table() if known is None else known
    sets = Artefact(store, "sets", "places").draft("one")
    rows = [
        chips.row(chips.Chip(tile_id=tile_id, pixels=pixels_of(number), valid=np.ones((8, 8), bool)))
        for number, tile_id in enumerate(IDS)
        if tile_id in with_pixels
    ]
    sets.write("chips/part-00000.parquet", chips.shard_bytes(rows, "uint8", {}))
    sets.publish({"parents": {}, "counts": {}, "bands": list(SPEC.bands), "band_mean": [99.0] * 3, "band_std": [50.0] * 3})
    draft = Artefact(store, "indexes", "places").draft("v1")
    entries = []
    for number, part in enumerate((slice(0, 5), slice(5, COUNT))):
        entry, files = build_segment(f"segment-{number:05d}", VECTORS[part], known.slice(part.start, part.stop - part.start))
        entries.append(entry)
        for name, data in files.items():
            draft.write(name, data)
    draft.write(TOMBSTONES, tombstone_bytes(list(deleted)))
    for name, data in to_files(build(SPEC, seed=of_encoder), SPEC).items():
        draft.write(f"encoder/{name}", data)
    manifest = IndexManifest(
        encoder_uri="encoder", encoder_fingerprint=fingerprint(SPEC, build(SPEC, seed=said_encoder).state_dict()), distance="cosine",
        dimension=DIM, kind="flat", why="few", effort=Effort(), recall=None, quantiser=None, segments=tuple(entries), deleted=len(deleted),
    )  # fmt: skip
    return draft.publish({"parents": {"set": "places/one"}, "counts": {}, **manifest.fields()})
