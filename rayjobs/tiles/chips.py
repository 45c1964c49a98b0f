"""Chip shards: the pixels of some tiles as one Parquet file, with the reason for each tile that has none.

A shard holds every tile that was planned for it, so that reading it again tells what became of each one.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

KEPT, SPARSE, UNREADABLE = "kept", "sparse", "unreadable"
"""What became of a planned tile: its pixels are here; too few were valid; they could not be read."""

SCHEMA = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("valid_fraction", pa.float32()),
        pa.field("label_fractions", pa.list_(pa.float32())),
        pa.field("label_coverage", pa.float32()),
        pa.field("shape", pa.list_(pa.int32())),
        pa.field("chip", pa.large_binary()),
        pa.field("valid", pa.binary()),
    ]
)
_OUTCOME = ["tile_id", "status", "reason", "valid_fraction", "label_fractions", "label_coverage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """The pixels of one tile."""

    tile_id: str
    pixels: np.ndarray[Any, Any]
    """(bands, height, width), the set's dtype."""
    valid: np.ndarray[Any, np.dtype[np.bool_]]
    """(height, width), True where the pixel is valid in all bands."""


def shard_name(number: int) -> str:
    """Return the name of a shard of chips within its set."""
    return f"chips/part-{number:05d}.parquet"


def row(chip: Chip, *, label_fractions: Sequence[float] | None = None, label_coverage: float | None = None) -> dict[str, Any]:
    """Return the shard row of a tile that was read."""
    everywhere = bool(chip.valid.all())
    return {
        "tile_id": chip.tile_id,
        "status": KEPT,
        "reason": None,
        "valid_fraction": float(chip.valid.mean()),
        "label_fractions": label_fractions,
        "label_coverage": label_coverage,
        "shape": chip.pixels.shape,
        "chip": np.ascontiguousarray(chip.pixels).tobytes(),
        "valid": None if everywhere else np.packbits(chip.valid).tobytes(),
    }


def row_without_pixels(tile_id: str, status: str, reason: str, valid_fraction: float | None = None) -> dict[str, Any]:
    """Return the shard row of a tile that was refused or could not be read."""
    return dict.fromkeys(SCHEMA.names) | {"tile_id": tile_id, "status": status, "reason": reason, "valid_fraction": valid_fraction}


def shard_bytes(rows: Sequence[dict[str, Any]], dtype: str, sums: Any) -> bytes:
    """Return a shard as Parquet, rows sorted by tile id; `sums` (JSON) rides along for `outcome`."""
    ordered = sorted(rows, key=lambda entry: entry["tile_id"])
    table = pa.Table.from_pylist(ordered, schema=SCHEMA.with_metadata({"dtype": dtype, "sums": json.dumps(sums)}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="lz4", use_dictionary=False, write_statistics=False, row_group_size=512)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the tiles of one shard."""

    table: pa.Table
    """Columns `tile_id`, `status`, `reason`, `valid_fraction`, `label_fractions`, `label_coverage`."""
    sums: Any
    """What the writer summed up over the shard's pixels."""


def outcome(data: bytes) -> Outcome:
    """Read from a shard what became of its tiles, without its pixels."""
    table = pq.read_table(io.BytesIO(data), columns=_OUTCOME)
    return Outcome(table=table, sums=json.loads(table.schema.metadata[b"sums"]))


def read_chips(data: bytes, wanted: Collection[str] | None = None) -> list[Chip]:
    """Return the chips of a shard in the order of their tile ids; `wanted` leaves only those."""
    table = pq.read_table(io.BytesIO(data), columns=["tile_id", "shape", "chip", "valid"])
    dtype = np.dtype(table.schema.metadata[b"dtype"].decode())
    if wanted is not None:  # before rows become Python's, which costs more than all else
        table = table.filter(pc.is_in(table["tile_id"], pa.array(list(wanted), table["tile_id"].type)))
    return [_chip(entry, dtype) for entry in table.to_pylist() if entry["chip"] is not None]


def _chip(entry: dict[str, Any], dtype: np.dtype[Any]) -> Chip:
    bands, height, width = entry["shape"]
    pixels = np.frombuffer(entry["chip"], dtype).reshape(bands, height, width)
    if entry["valid"] is None:
        valid = np.ones((height, width), bool)
    else:
        bits = np.unpackbits(np.frombuffer(entry["valid"], np.uint8), count=height * width)
        valid = bits.reshape(height, width).astype(bool)
    return Chip(tile_id=entry["tile_id"], pixels=pixels, valid=valid)
