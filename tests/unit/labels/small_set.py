"""A published set of six tiles in a row, each of one grey, two to a shard."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import shapely

from rayjobs.storage import Artefact
from rayjobs.tiles import chips
from rayjobs.tiles.table import SCHEMA, geoparquet_bytes

TILES = [f"{number:020x}" for number in range(6)]


def publish_set(store, name="land"):
    draft = Artefact(store, "sets", name).draft("one")
    for shard in range(3):
        some = [chips.Chip(tile_id=tile, pixels=np.full((3, 8, 8), 40 * TILES.index(tile), np.uint8), valid=np.ones((8, 8), bool))
                for tile in TILES[2 * shard : 2 * shard + 2]]  # fmt: skip
        draft.write(chips.shard_name(shard), chips.shard_bytes([chips.row(chip) for chip in some], "uint8", {}))
    grounds = [shapely.to_wkb(shapely.box(lon, 0, lon + 1, 1)) for lon in range(6)]
    columns = {name: pa.nulls(6, SCHEMA.field(name).type) for name in SCHEMA.names}
    columns |= {"tile_id": pa.array(TILES), "geometry": pa.array(grounds, pa.binary())}
    tiles = pa.table(columns).append_column("shard", pa.array([0, 0, 1, 1, 2, 2], pa.int32()))
    draft.write("tiles.parquet", geoparquet_bytes(tiles))
    known = {"bands": ["red", "green", "blue"], "band_mean": [100.0] * 3, "band_std": [50.0] * 3}
    return draft.publish({"parents": {}, "counts": {}, **known})
