"""Answers in place of people, for studies of how many labels it takes."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayjobs.errors import ConfigError, StorageError
from rayjobs.labels.events import LabelEvent
from rayjobs.labels.table import read_labels
from rayjobs.storage import read_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.label.section import LabelSection
    from rayjobs.labels.taxonomy import Taxonomy

PERSON = "oracle"
_TILES = "tiles"
_NAMESPACE = uuid.UUID("6f1c1d0c-6a3f-5d0e-9a53-0e2a8f1f3a77")


def answers(settings: LabelSection, tiles: pa.Table, classes: Sequence[str], sought: str) -> dict[str, str]:
    """Return what the oracle knows: the class of tiles, by id; nothing where there is no oracle.

    Args:
        settings: the section.
        tiles: with `tile_id` and `label`.
        classes: of the taxonomy.
        sought: the class that `label.oracle_class` stands for.

    Raises:
        ConfigError: its file cannot be read; it knows none of these tiles, or nothing of what is sought.
    """
    if settings.oracle is None:
        return {}
    ids = tiles["tile_id"].to_pylist()
    if settings.oracle == _TILES:
        said = list(zip(ids, tiles["label"].to_pylist(), strict=True))
    else:
        said = read_labels(_file(settings.oracle), f"label.oracle {settings.oracle}")
    ours = set(ids)
    known = {tile: label for tile, label in said if label and tile in ours}
    if not known:  # it would be unsure of all that it is asked, and what it has said once stays
        raise ConfigError(
            f"the oracle {settings.oracle} knows none of the {len(ids)} tiles of this set; name a CSV with the columns tile_id,label "
            "whose ids are those of the set's tiles"
        )
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


def _file(uri: str) -> bytes:
    try:
        return read_uri(uri)
    except StorageError as error:
        raise ConfigError(f"label.oracle: {error}; name a CSV with the columns tile_id,label, or `{_TILES}`") from error


def check_same_question(
    settings: LabelSection, taxonomy: Taxonomy, said: Sequence[LabelEvent], knows: Mapping[str, str], before: Mapping[str, Any] | None
) -> None:
    """Refuse an oracle that is asked for something else than an oracle has answered before: its labels would mix, and stay.

    Args:
        settings: the section.
        taxonomy: whose labels are given.
        said: all events of it.
        knows: the class of tiles, by id, of which this oracle knows.
        before: `oracle_class` of the oracle that answered last, where a round tells.

    Raises:
        ConfigError: `label.oracle_class` is another one, or this oracle says something else of a tile.
    """
    undone = {event.undoes for event in said}
    held = {event.tile_id: event.label for event in said if event.origin == "oracle" and event.label and event.event_id not in undone}
    if settings.oracle is None or not held:
        return
    remedy = "the labels would mix; name another label.taxonomy"
    if before is not None and before["oracle_class"] != settings.oracle_class:
        raise ConfigError(
            f"label.oracle_class is {settings.oracle_class or 'null'}, and taxonomy {taxonomy.name} holds {len(held)} answers of an oracle "
            f"for {before['oracle_class'] or 'null'}: {remedy}, or go on with that class"
        )
    for tile, label in held.items():
        former = taxonomy.renamed.get(label, label)
        if knows.get(tile, former) != former:
            raise ConfigError(
                f"label.oracle {settings.oracle} says {knows[tile]} of tile {tile}, and taxonomy {taxonomy.name} holds an oracle's answer "
                f"{former} of it: {remedy}"
            )


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
