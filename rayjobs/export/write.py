"""What runs on a worker: write the chips of one shard in another form."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from tensorboard.summary.writer.record_writer import RecordWriter

from rayjobs.export.examples import example
from rayjobs.tiles.chips import Chip, read_chips, shard_name
from rayjobs.tiles.render import picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rayjobs.storage import Store, Version

UNLABELLED = "unlabelled"
"""Folder of pictures that have no class."""
_UNFIT = re.compile(r"""[\x00-\x1f\x7f/\\:*?"<>|%]|^[. ]|[. ]$""")
"""Characters that a folder's name cannot have everywhere."""
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)
"""What Windows takes for a device."""
_LONGEST = 255
"""Bytes of a folder's name."""
_PICTURE_BANDS = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What all shards have in common."""

    source: Version
    """The set."""
    store: Store
    """Where files go."""
    form: str
    """Of `FORMS`."""


def export_shard(entry: Mapping[str, Any], *, plan: ExportPlan) -> dict[str, Any]:
    """Write the chips of a shard.

    Args:
        entry: `shard` (its number) and `tiles`, the rows of the tile table of those to write.
        plan: what all shards share.

    Returns:
        `tiles` and `files` written.
    """
    rows = {row["tile_id"]: row for row in entry["tiles"]}
    chips = read_chips(plan.source.read(shard_name(entry["shard"])), rows.keys())
    files = 0
    for name, data in FORMS[plan.form](entry["shard"], [(rows[chip.tile_id], chip) for chip in chips], plan.source.manifest):
        plan.store.write(name, data)
        files += 1
    return {"tiles": len(chips), "files": files}


def _image_folder(_: int, pairs: Sequence[tuple[Mapping[str, Any], Chip]], manifest: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield a PNG of each tile, in a folder by its class."""
    for row, chip in pairs:
        sink = io.BytesIO()
        PIL.Image.fromarray(_shown(chip, manifest)).save(sink, "PNG")
        yield f"{class_folder(row['label'])}/{chip.tile_id}.png", sink.getvalue()


def class_folder(label: str | None) -> str:
    """Return the folder of a class, one level deep and of no other class: its name, where that can be one on Linux, macOS and Windows.

    Other characters are written as %XX, the bytes of UTF-8: those that separate or control, dots and blanks at the ends, `%` itself,
    and the first of a class that is called as the folder of tiles without one, or as a device of Windows. A name that is too long is cut,
    and ends in `%-` and 16 digits of its SHA-256. Classes that differ by upper and lower case alone have one folder where a system does
    not tell these apart.
    """
    if not label:
        return UNLABELLED
    name = _UNFIT.sub(lambda found: _written(found[0]), label)
    if name.casefold() == UNLABELLED or _DEVICE.fullmatch(name):
        name = _written(name[0]) + name[1:]
    if len(name.encode()) > _LONGEST:
        digest = f"%-{hashlib.sha256(label.encode()).hexdigest()[:16]}"  # no other name has it: else a % is before two digits
        name = name.encode()[: _LONGEST - len(digest)].decode(errors="ignore") + digest
    return name


def _written(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _shown(chip: Chip, manifest: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a chip as (h, w) or (h, w, 3): its own values where a picture can hold them, else stretched as in all our pictures."""
    if chip.pixels.dtype == np.uint8 and len(chip.pixels) in _PICTURE_BANDS:
        return np.ascontiguousarray(chip.pixels[0] if len(chip.pixels) == 1 else np.moveaxis(chip.pixels, 0, -1))
    return picture(chip, manifest["bands"], manifest["band_mean"], manifest["band_std"])


def _told(row: Mapping[str, Any], chip: Chip) -> dict[str, Any]:
    """Return what is known of a tile beside its pixels."""
    taken = row["datetime"]
    corners = [None] * 4 if row["geometry"] is None else [float(edge) for edge in shapely.from_wkb(row["geometry"]).bounds]
    bands, height, width = chip.pixels.shape
    return {
        "tile_id": chip.tile_id,
        "scene_id": row["scene_id"],
        "date": None if taken is None else taken.isoformat(),
        "label": row["label"],
        "split": row["split"],
        "bands": bands,
        "height": height,
        "width": width,
        "dtype": str(chip.pixels.dtype),
        **dict(zip(("west", "south", "east", "north"), corners, strict=True)),
        "pixels": np.ascontiguousarray(chip.pixels).tobytes(),
        "valid": chip.valid.astype(np.uint8).tobytes(),
    }


def _parquet(shard: int, pairs: Sequence[tuple[Mapping[str, Any], Chip]], _: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield a table with a row for each tile."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_told(row, chip) for row, chip in pairs], schema=SCHEMA), sink, compression="zstd")
    yield f"part-{shard:05d}.parquet", sink.getvalue()


def _tfrecord(shard: int, pairs: Sequence[tuple[Mapping[str, Any], Chip]], _: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield a file of records with an Example for each tile."""
    sink = io.BytesIO()
    records = RecordWriter(sink)
    for row, chip in pairs:
        records.write(example(_told(row, chip)))
    yield f"part-{shard:05d}.tfrecord", sink.getvalue()


_TEXTS = ("tile_id", "scene_id", "date", "label", "split")
SCHEMA = pa.schema(
    {
        **dict.fromkeys(_TEXTS, pa.string()),
        **dict.fromkeys(("bands", "height", "width"), pa.int32()),
        "dtype": pa.string(),
        **dict.fromkeys(("west", "south", "east", "north"), pa.float64()),
        "pixels": pa.large_binary(),
        "valid": pa.binary(),
    }
)
"""Columns of the Parquet form, and features of an Example: `pixels` are (bands, height, width) values of `dtype`, `valid` (height, width)
bytes of 0 and 1, both row by row; west, south, east and north are degrees, null for plain pictures."""

FORMS: dict[str, Callable[[int, Any, Mapping[str, Any]], Iterator[tuple[str, bytes]]]] = {
    "imagefolder": _image_folder,
    "parquet": _parquet,
    "tfrecord": _tfrecord,
}
"""What yields name and bytes of the files of a shard, by form."""
