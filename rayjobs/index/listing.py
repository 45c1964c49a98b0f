"""`rayjobs index list`: the versions of the index, the newest last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayjobs.errors import DamagedError, IndexCorruptError, NotFoundError
from rayjobs.index.versions import Published
from rayjobs.retrieval.kinds import KINDS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Artefact

DESCRIPTION = "Show the versions of the index: what made each, its tiles, its kind and recall, and which one is current."

_COLUMNS = ("version", "action", "created", "rows", "deleted", "segments", "kind", "recall", "parent")


def add_options(made: argparse.ArgumentParser) -> None:
    """Take no options of its own."""


def preview(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Return the versions: looking changes nothing."""
    del options
    index = experiment.open_workspace().index
    return {"index": index.name, "current": index.leads_to(), "versions": versions(index)}


def run(experiment: Experiment, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the versions."""
    found = preview(experiment, options)
    if options.json:
        return found
    for line in lines(found["versions"]):
        console.result(line)
    return {"index": found["index"], "current": found["current"]}


def versions(index: Artefact) -> list[dict[str, Any]]:
    """Return what each version says of itself, the first published first.

    Raises:
        NotFoundError: there is none yet.
    """
    current, names = index.leads_to(), index.finished()
    if not names:
        raise NotFoundError(f"{index.store.address(index.prefix)} holds nothing yet; run `rayjobs index` first")
    found = [{**_described(index, name), "current": name == current} for name in names]
    return sorted(found, key=lambda entry: (entry["created"] or "", entry["current"]))


def _described(index: Artefact, name: str) -> dict[str, Any]:
    try:
        published = Published.of(index.at(name))
    except (DamagedError, IndexCorruptError) as error:
        return {**dict.fromkeys(_COLUMNS), "version": name, "damaged": str(error)}
    manifest, said = published.manifest, published.version.manifest
    estimate = manifest.recall
    return {
        "version": name,
        "action": said.get("action"),
        "created": said["created"],
        "rows": manifest.stored - manifest.deleted,
        "deleted": manifest.deleted,
        "segments": len(manifest.segments),
        "kind": manifest.kind,
        "recall": 1.0 if KINDS[manifest.kind].exact else estimate.value if estimate else None,
        "parent": said["parents"].get("index"),
        "damaged": None,
    }


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the versions as a table for people; `*` marks the current one."""
    table: list[tuple[str, ...]] = [("", *_COLUMNS)]
    table += [("*" if entry["current"] else "", *(_shown(entry, name) for name in _COLUMNS)) for entry in found]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _shown(entry: Mapping[str, Any], name: str) -> str:
    value = entry[name]
    if name == "action" and entry["damaged"]:
        return "damaged"
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value).partition("+")[0]
