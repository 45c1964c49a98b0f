"""The table in which labels come from other programs: a CSV in UTF-8 with the columns `tile_id` and `label`."""

from __future__ import annotations

import csv
import io

from rayjobs.errors import ConfigError

_COLUMNS = {"tile_id", "label"}


def read_labels(data: bytes, source: str) -> list[tuple[str, str]]:
    """Return tile id and label of each row, at least one; an empty label says unsure.

    Args:
        data: the file's bytes; further columns are passed over.
        source: what an error calls it.

    Raises:
        ConfigError: it is no such table, or a row lacks one of the two; says which.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{source} is no CSV in UTF-8: {error}") from None
    if not rows or not rows[0].keys() >= _COLUMNS:
        raise ConfigError(f"{source} has no rows with the columns tile_id and label; give it a header line with both")
    short = next((number for number, row in enumerate(rows) if not row["tile_id"] or row["label"] is None), None)
    if short is not None:
        raise ConfigError(f"{source}, row {short + 1}: lacks its tile_id or its label; an empty label, after a comma, says unsure")
    return [(row["tile_id"], row["label"]) for row in rows]
