"""Labels for other programs: CSV, GeoJSON, an image folder, and the triplets that metric learning asks for. Nothing is ever moved.

An image folder holds copies. It is of one taxonomy, which its `_labels.json` names, and pictures go from no other folder: `rayjobs export`
and the labels of another taxonomy give theirs the same names.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayjobs.errors import ConfigError, LabelError
from rayjobs.labels.current import Current
from rayjobs.labels.taxonomy import UNSURE
from rayjobs.tiles.render import pictures_of, png

if TYPE_CHECKING:
    from rayjobs.storage import Version

_COLUMNS = ("tile_id", "label", "agreement", "votes", "people", "at")
_EXPORTED = re.compile(r"[0-9a-f]{20}\.png")
"""Names of the files in an image folder that are ours."""
_MARK, _OTHER_MARK = "_labels.json", "_export.json"
"""What says of which taxonomy an image folder is; the same of a folder that `rayjobs export` wrote."""
_AT_ONCE = 1000
"""Pictures that are held in memory."""


def rows_of(current: Mapping[str, Current]) -> list[dict[str, Any]]:
    """Return what is held of each tile as plain values, sorted by tile id; `label` is null where people are unsure."""
    return [
        {
            "tile_id": tile,
            "label": one.label,
            "agreement": round(one.agreement, 4),
            "votes": sum(one.votes.values()),
            "people": len(one.people),
            "at": one.at.isoformat(),
        }
        for tile, one in sorted(current.items())
    ]


def as_csv(current: Mapping[str, Current]) -> bytes:
    """Return a header and one line per tile; an empty `label` says unsure."""
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows_of(current))
    return sink.getvalue().encode()


def as_geojson(current: Mapping[str, Current], grounds: Mapping[str, Mapping[str, Any] | None]) -> bytes:
    """Return a FeatureCollection, one feature per tile.

    Args:
        current: what is held of each tile.
        grounds: footprints as GeoJSON geometries by tile id, in WGS 84; those of other tiles are null.
    """
    features = [
        {"type": "Feature", "id": row["tile_id"], "geometry": grounds.get(row["tile_id"]), "properties": row} for row in rows_of(current)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


def label_table(current: Mapping[str, Current]) -> pa.Table:
    """Return tiles with a class, sorted by id: columns `tile_id` and `label`. Unsure ones are left out."""
    held = [(tile, one.label) for tile, one in sorted(current.items()) if one.label is not None]
    return pa.table(
        {"tile_id": pa.array([tile for tile, _ in held], pa.string()), "label": pa.array([label for _, label in held], pa.string())}
    )


def with_labels(tiles: pa.Table, labels: pa.Table) -> pa.Table:
    """Return a tile table whose `label` is that of `labels` (`tile_id`, `label`), null for other tiles; the rows keep their order."""
    known = dict(zip(labels["tile_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    column = pa.array([known.get(tile) for tile in tiles["tile_id"].to_pylist()], pa.string())
    return tiles.set_column(tiles.column_names.index("label"), pa.field("label", pa.string()), column)


def triplets(labels: pa.Table, count: int, *, seed: int = 0) -> pa.Table:
    """Return triplets drawn at random: each an anchor, another tile of its class, and one of another class.

    Classes are equally likely as an anchor's, whatever their size, among those with two tiles; so are the classes of negatives.

    Args:
        labels: columns `tile_id` and `label`.
        count: how many.
        seed: the same seed draws the same.

    Returns:
        Columns `anchor_id`, `positive_id`, `negative_id`.

    Raises:
        LabelError: no class has two tiles, or there is one class alone.
    """
    tiles, names = np.array(labels["tile_id"].to_pylist(), object), np.array(labels["label"].to_pylist(), object)
    members = [tiles[names == name] for name in sorted(set(names))]
    pairs = [number for number, of_class in enumerate(members) if len(of_class) > 1]
    if len(members) < 2 or not pairs:  # noqa: PLR2004  a triplet is of two classes
        raise LabelError(f"{len(tiles)} labelled tiles of {len(members)} classes make no triplet; label two of one and one of another")
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(count):
        own = int(rng.choice(pairs))
        other = int(rng.choice([number for number in range(len(members)) if number != own]))
        anchor, positive = rng.choice(members[own], 2, replace=False)
        drawn.append((anchor, positive, rng.choice(members[other])))
    columns = ("anchor_id", "positive_id", "negative_id")
    return pa.table({name: pa.array([row[place] for row in drawn], pa.string()) for place, name in enumerate(columns)})


def check_image_folder(folder: Path, taxonomy: str) -> None:
    """Refuse a folder that holds anything but the labels of a taxonomy, or what an export of them that was ended left.

    Nor may folders in it be links: pictures would be written, and removed, where these lead.

    Raises:
        ConfigError: says what it holds.
        OSError: it cannot be read.
    """
    there = sorted(folder.iterdir()) if folder.exists() else []
    held = {path.name for path in there if not path.name.startswith(".")}
    if _OTHER_MARK in held:
        raise ConfigError(f"{folder} holds what `rayjobs export` wrote, whose pictures would be removed; choose another folder (--output)")
    if _MARK in held:
        marked = (folder / _MARK).read_text(encoding="utf-8", errors="replace")
        if marked != _mark(taxonomy):
            raise ConfigError(
                f"{folder} holds other labels ({_MARK}: {marked[:100]!r}), whose pictures would be removed; choose another folder "
                "(--output), or empty it"
            )
    elif held:
        raise ConfigError(
            f"{folder} holds files already, and no {_MARK} that says of which taxonomy; choose an empty folder (--output), or empty it"
        )
    link = next((path for path in there if path.is_symlink() and path.is_dir()), None)
    if link is not None:
        raise ConfigError(
            f"{link} is a link to a folder, whose pictures would be removed; remove the link, or choose another folder (--output)"
        )


def _mark(taxonomy: str) -> str:
    return json.dumps({"taxonomy": taxonomy})


def write_image_folder(current: Mapping[str, Current], source: Version, folder: Path, *, taxonomy: str) -> dict[str, int]:
    """Write the labelled tiles of a set as PNG, each in a folder named after its class: `<folder>/<class>/<tile_id>.png`, or `unsure`.

    Tiles that were exported before under another class go to their new one; those that have lost their label since go.

    Args:
        current: what is held of each tile.
        source: the set.
        folder: is made; one that is there is empty, or of an earlier export of the same taxonomy.
        taxonomy: its name.

    Returns:
        Pictures of each folder.

    Raises:
        ConfigError: the folder holds something else.
        StorageError: the set cannot be read.
        OSError: the folder cannot be written.
    """
    check_image_folder(folder, taxonomy)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), (folder / _MARK).open("x", encoding="utf-8") as mark:  # the first of two writers has it
        mark.write(_mark(taxonomy))
    check_image_folder(folder, taxonomy)
    written: dict[str, int] = {}
    for before in folder.glob("*/*.png"):
        if _EXPORTED.fullmatch(before.name) and before.stem not in current:
            before.unlink()
    for some in _batches(sorted(current)):
        for tile, pixels in pictures_of(source, set(some)).items():
            label = current[tile].label or UNSURE
            for other in folder.glob(f"*/{tile}.png"):
                other.unlink()
            (folder / label).mkdir(parents=True, exist_ok=True)
            (folder / label / f"{tile}.png").write_bytes(png(pixels))
            written[label] = written.get(label, 0) + 1
    return dict(sorted(written.items()))


def _batches(tiles: Sequence[str]) -> Iterable[Sequence[str]]:
    return (tiles[start : start + _AT_ONCE] for start in range(0, len(tiles), _AT_ONCE))
