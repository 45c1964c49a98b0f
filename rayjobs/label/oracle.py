"""Answers in place of people, for studies of how many labels it takes."""

from __future__ import annotations

import csv
import datetime
import io
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayjobs.errors import ConfigError
from rayjobs.labels.events import LabelEvent
from rayjobs.storage import read_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.label.section import LabelSection
    from rayjobs.labels.taxonomy import Taxonomy

PERSON = "oracle"
_TILES = "tiles"
_COLUMNS = ("tile_id", "label")
_NAMESPACE = uuid.UUID("6f1c1d0c-6a3f-5d0e-9a53-0e2a8f1f3a77")


def answers(settings: LabelSection, tiles: pa.Table, classes: Sequence[str], sought: str) -> dict[str, str]:
    """Return what the oracle knows: the class of tiles, by id; nothing where there is no oracle.

    Args:
        settings: the section.
        tiles: with `tile_id` and `label`.
        classes: of the taxonomy.
        sought: the class that `label.oracle_class` stands for.

    Raises:
        ConfigError: it knows nothing, or nothing of what is sought.
    """
    if settings.oracle is None:
        return {}
    ids, labels = (tiles[name].to_pylist() for name in _COLUMNS) if settings.oracle == _TILES else _read(settings.oracle)
    known = {tile: label for tile, label in zip(ids, labels, strict=True) if label}
    if not known:
        raise ConfigError(f"the oracle {settings.oracle} has no label; name a CSV with the columns {','.join(_COLUMNS)}")
    if settings.oracle_class is None:
        return known
    others = [name for name in classes if name != sought]
    if len(others) != 1:
        raise ConfigError(f"label.oracle_class wants a taxonomy of two classes, and this one has {len(classes)}; leave it out")
    if settings.oracle_class not in known.values():
        raise ConfigError(
            f"the oracle knows no {settings.oracle_class!r}, but {', '.join(sorted(set(known.values())))}; correct label.oracle_class"
        )
    return {tile: sought if label == settings.oracle_class else others[0] for tile, label in known.items()}


def _read(uri: str) -> tuple[list[str], list[str]]:
    rows = list(csv.DictReader(io.StringIO(read_uri(uri).decode("utf-8-sig"))))
    if not rows or not set(_COLUMNS) <= set(rows[0]):
        raise ConfigError(f"{uri} is no CSV with the columns {','.join(_COLUMNS)}; correct label.oracle")
    return [row["tile_id"] for row in rows], [row["label"] for row in rows]


def events(taxonomy: Taxonomy, tiles: Sequence[str], known: dict[str, str]) -> list[LabelEvent]:
    """Return what the oracle says of tiles: unsure where it does not know. Asked again of a tile, it sends the same event."""
    now = datetime.datetime.now(datetime.UTC)
    return [
        LabelEvent(
            event_id=str(uuid.uuid5(_NAMESPACE, f"{taxonomy.name} {tile}")),
            tile_id=tile,
            kind="label" if tile in known else "unsure",
            label=known.get(tile),
            person=PERSON,
            at=now,
            taxonomy_version=taxonomy.version,
            origin="oracle",
        )
        for tile in tiles
    ]
