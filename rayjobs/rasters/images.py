"""Scenes of an image folder: each picture one scene without coordinates, its class from its folder or from a table."""

from __future__ import annotations

import csv
import io
from pathlib import PurePosixPath

from rayjobs.errors import ConfigError, EmptySearchError
from rayjobs.rasters.candidates import BandFile, Candidate
from rayjobs.rasters.section import ImagesSource
from rayjobs.storage import open_store, read_uri


def list_images(source: ImagesSource) -> list[Candidate]:
    """Return the pictures below the folder.

    Raises:
        EmptySearchError: there is none.
        ConfigError: the table of labels lacks a column, or lists a picture twice.
    """
    store = open_store(source.root)
    endings = tuple(ending.lower() for ending in source.extensions)
    below = store.list()
    keys = [key for key in below if key.lower().endswith(endings)]
    if not keys:
        raise EmptySearchError(_no_picture(source, below))
    labels = _labels(source, keys)
    prefix = f"{source.name}-" if source.name else ""
    return [
        Candidate(
            scene_id=prefix + key,
            files=(BandFile(uri=store.address(key)),),
            label=label,
            resolution_m=source.resolution_m,
            picture=True,
        )
        for key, label in labels.items()
    ]


def _no_picture(source: ImagesSource, below: list[str]) -> str:
    if not below:
        return f"there is no folder {source.root}, or it is empty; `root` of the source must name a folder of pictures"
    endings = ", ".join(source.extensions)
    found = f"no picture ({endings}) is among the {len(below):,} files below {source.root}"
    return f"{found}; one is {below[0]}; check `root` and `extensions`"


def _labels(source: ImagesSource, keys: list[str]) -> dict[str, str | None]:
    """Return the class of each picture to take; None where it has none."""
    if source.csv is not None:
        return _from_table(source.csv, source)
    if source.labels == "none":
        return dict.fromkeys(keys)
    flat = [key for key in keys if "/" not in key]
    if flat:
        raise ConfigError(f"{source.root} holds pictures outside of class folders ({flat[0]}); move them, or set `labels: none`")
    return {key: PurePosixPath(key).parts[0] for key in keys}


def _from_table(uri: str, source: ImagesSource) -> dict[str, str | None]:
    table = csv.DictReader(io.StringIO(read_uri(uri).decode("utf-8-sig"), newline=""))
    for column in (source.csv_file_column, source.csv_label_column):
        if column not in (table.fieldnames or ()):
            raise ConfigError(f"{uri} has no column {column!r}; it has {', '.join(table.fieldnames or ('no line of names',))}")
    labels: dict[str, str | None] = {}
    for row in table:
        key, label = row[source.csv_file_column], row[source.csv_label_column]
        if not key:
            raise ConfigError(f"{uri}, line {table.line_num}: no file is named; correct the table")
        if labels.setdefault(key, label or None) != (label or None):
            raise ConfigError(f"{uri}, line {table.line_num}: {key} has two labels, {labels[key]!r} and {label!r}; keep one")
    if not labels:
        raise EmptySearchError(f"{uri} lists no picture")
    return labels
