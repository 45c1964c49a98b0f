"""Make a taxonomy, show how far it is labelled, and take labels in and out of the workspace."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import shapely

from rayjobs import command
from rayjobs.errors import ConfigError, LabelError, StorageError
from rayjobs.experiment import load
from rayjobs.labels.events import LabelEvent, check_person
from rayjobs.labels.export import as_csv, as_geojson, check_image_folder, label_table, triplets, write_image_folder
from rayjobs.labels.store import LabelStore
from rayjobs.labels.table import read_labels
from rayjobs.labels.taxonomy import LabelClass, publish_taxonomy, taxonomy_names
from rayjobs.tiles.table import read_geoparquet, read_tiles

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rayjobs.labels.current import Current
    from rayjobs.storage import Artefact
    from rayjobs.workspace import Workspace

_DESCRIPTION = """Make a taxonomy, show how far it is labelled, and take labels in and out of the workspace.

  show     all taxonomies, or one with its classes and people
  create   a taxonomy, or its next version: --class once for each class, NAME or NAME:KEY; --formerly NEW=OLD renames one
  import   labels of a CSV with the columns tile_id and label (empty: unsure); the same file again changes nothing
  export   current labels to --output: .csv, .geojson, .parquet (tile_id, label), or a folder of pictures, one folder per class"""
_AT_ONCE = 10_000
"""Imported events that become one segment."""
_TILE_ID = re.compile(r"[0-9a-f]{20}")
_FILES = (".csv", ".geojson", ".parquet")
_TABLES = (".csv", ".parquet")


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs labels`."""
    made = command.parser("labels", _DESCRIPTION)
    made.add_argument("action", choices=tuple(ACTIONS), help="what to do")
    made.add_argument("--taxonomy", metavar="NAME", help="which taxonomy; show without it lists all")
    made.add_argument("--class", dest="classes", metavar="NAME[:KEY]", action="append", default=[], help="a class, for create")
    made.add_argument(
        "--formerly", metavar="NEW=OLD", action="append", default=[], help="what a --class was called before, for create: renames it"
    )
    made.add_argument("--input", metavar="FILE", type=Path, help="what to import: a CSV")
    made.add_argument("--person", metavar="NAME", help="who gave the imported labels")
    made.add_argument("--output", metavar="PATH", type=Path, help="where to export to")
    made.add_argument(
        "--triplets", metavar="COUNT", type=int, help="export so many triplets drawn from the labels instead (.csv, .parquet)"
    )
    return made


def run(options: argparse.Namespace, overrides: Sequence[str], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Do what is asked for, and return what came of it; with `--dry-run` only what it would do. `say` takes lines for people."""
    if options.action != "show" and options.taxonomy is None:
        raise ConfigError(f"labels {options.action} needs --taxonomy NAME")
    workspace = load(options.config, overrides).open_workspace()
    workspace.store.check()
    return ACTIONS[options.action](options, workspace, say)


def _show(options: argparse.Namespace, workspace: Workspace, say: Callable[[str], None]) -> dict[str, Any]:
    if options.taxonomy is None:
        names = taxonomy_names(workspace.store)
        if not names:
            say("no taxonomy yet; `rayjobs labels create` makes one")
        return {name: len(LabelStore(workspace.store, name).events()) for name in names}
    labels = LabelStore(workspace.store, options.taxonomy)
    taxonomy = labels.taxonomy()
    with labels.tally() as tally:
        return {
            "taxonomy": taxonomy.name,
            "version": taxonomy.version,
            "events": len(labels.events()),
            "classes": {one.name: tally.by_class[one.name] for one in taxonomy.classes},
            "unsure": tally.by_class[None],
            "people": {person: pace.events for person, pace in tally.pace().items()},
        }


def _create(options: argparse.Namespace, workspace: Workspace, _: Callable[[str], None]) -> dict[str, Any]:
    parts = [given.partition(":") for given in options.classes]
    formerly = _formerly(options.formerly, [name for name, _, _ in parts])
    classes = [LabelClass(name=name, key=key, formerly=tuple(formerly[name])) for name, _, key in parts]
    if options.dry_run:
        return {"taxonomy": options.taxonomy, "classes": [one.name for one in classes]}
    made = publish_taxonomy(workspace.store, options.taxonomy, classes)
    return {"taxonomy": made.name, "version": made.version, "classes": [one.name for one in made.classes]}


def _formerly(given: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names that each class had, as `--formerly` says. Raises `ConfigError`."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for one in given:
        new, _, old = one.partition("=")
        if new not in found or not old:
            raise ConfigError(f"--formerly {one[:140]!r} must be NEW=OLD, where a --class is NEW and the version before has the class OLD")
        found[new].append(old)
    return found


def _import(options: argparse.Namespace, workspace: Workspace, say: Callable[[str], None]) -> dict[str, Any]:
    if options.input is None or options.person is None:
        raise ConfigError("labels import needs --input FILE and --person NAME")
    labels = LabelStore(workspace.store, options.taxonomy)
    events = _events_of(_read(options.input), str(options.input), _person(options.person), labels)
    if options.dry_run:
        return {"events": len(events)} | _told_unknown({event.tile_id for event in events}, workspace, say)
    done = [labels.append(events[start : start + _AT_ONCE]) for start in range(0, len(events), _AT_ONCE)]
    counted = {"accepted": sum(one.accepted for one in done), "already": sum(one.already for one in done)}
    return counted | _told_unknown({event.tile_id for event in events}, workspace, say)


def _told_unknown(tiles: set[str], workspace: Workspace, say: Callable[[str], None]) -> dict[str, int]:
    """Count the labelled tiles that no set knows, and tell of them; nothing where the sets cannot be read."""
    try:
        unknown = _unknown(tiles, workspace)
    except StorageError as error:  # labels come in and go out all the same
        say(f"labels           the sets cannot be read, to see whether they know the tiles: {error}")
        return {}
    return _told(unknown, say)


def _told(unknown: set[str], say: Callable[[str], None]) -> dict[str, int]:
    if unknown:
        say(f"labels           {len(unknown):,} labelled tiles are in no set of the workspace, such as {min(unknown)}")
    return {"tiles_in_no_set": len(unknown)}


def _unknown(tiles: Iterable[str], workspace: Workspace) -> set[str]:
    """Return those tiles that no set of the workspace knows; sets beside the experiment's are read only while some are left."""
    left = set(tiles) - _tiles_of(workspace.set)
    if left:
        keys = (key.split("/") for key in workspace.store.list("sets/"))
        for name in sorted({parts[1] for parts in keys if len(parts) > 2} - {workspace.set.name}):  # noqa: PLR2004  sets/NAME/...
            left -= _tiles_of(workspace.named_set(name)) if left else set()
    return left


def _tiles_of(tiles: Artefact) -> set[str]:
    """Return the ids of a set's tiles; none of one that was never published."""
    version = tiles.current()
    return set() if version is None else set(read_geoparquet(version.read("tiles.parquet"))["tile_id"].to_pylist())


def _person(name: str) -> str:
    try:
        return check_person(name)
    except ValueError as error:
        raise ConfigError(f"--person: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--input {path}: {error.strerror}") from error


def _events_of(data: bytes, file: str, person: str, labels: LabelStore) -> list[LabelEvent]:
    """Return an event for each row; its id follows from content and row, so that a file that is imported again brings nothing new.

    Raises:
        ConfigError: a row is wrong; says which of which file.
    """
    rows, taxonomy = read_labels(data, file), labels.taxonomy()
    for number, (tile, label) in enumerate(rows, 1):  # all of them, before the first is taken down
        if not _TILE_ID.fullmatch(tile):
            raise ConfigError(f"{file}, row {number}: the tile_id is {tile[:40]!r}; one has 20 digits of 0-9 and a-f")
        try:
            if label:
                taxonomy.check(label)
        except LabelError as error:
            raise ConfigError(f"{file}, row {number}: {error}") from None
    now, digest = datetime.datetime.now(datetime.UTC), hashlib.sha256(data).hexdigest()
    return [
        LabelEvent(
            event_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{labels.name} {person} {digest} {number}")),
            tile_id=tile,
            kind="label" if label else "unsure",
            label=label or None,
            person=person,
            at=now,
            taxonomy_version=taxonomy.version,
            origin="import",
        )
        for number, (tile, label) in enumerate(rows)
    ]


def _export(options: argparse.Namespace, workspace: Workspace, say: Callable[[str], None]) -> dict[str, Any]:
    path: Path | None = options.output
    if path is None or (path.suffix and path.suffix not in _FILES):
        raise ConfigError(f"labels export needs --output: a file that ends in {', '.join(_FILES)}, or a folder")
    if options.triplets is not None and options.triplets < 1:
        raise ConfigError(f"--triplets {options.triplets}: give 1 or more")
    if options.triplets is not None and path.suffix not in _TABLES:
        raise ConfigError(f"--triplets is a table; export it to {' or '.join(_TABLES)}")
    with LabelStore(workspace.store, options.taxonomy).tally() as tally:
        current = dict(tally.current)
    if options.triplets is None:
        told = _told_unknown(set(current), workspace, say)
    else:
        unknown = _unknown(current, workspace)
        told = _told(unknown, say)
        current = {tile: one for tile, one in current.items() if tile not in unknown}
    try:
        if options.dry_run:
            if not path.suffix:
                check_image_folder(path, options.taxonomy)
            return {"tiles": len(current), "output": str(path), **told}
        if not path.suffix:
            source = workspace.set.require("the pictures of an image folder come from the set; run `rayjobs sample` first")
            pictures = write_image_folder(current, source, path, taxonomy=options.taxonomy)
            return {"written": str(path), "pictures": pictures, "left_out": len(current) - sum(pictures.values()), **told}
        content = _written(options, current, workspace)
        _put(path, content)
    except OSError as error:
        raise ConfigError(f"--output {error.filename or path}: {error.strerror}") from error
    counted = {"tiles": len(current)} if options.triplets is None else {"triplets": options.triplets}
    return {"written": str(path), **counted, "bytes": len(content), **told}


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: what lies there stays until then. Raises `OSError`, of this path."""
    target = path.resolve()  # where it is a link, it stays one
    aside = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with aside.open("xb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())  # before it has its name: a file that is named is whole
        aside.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _written(options: argparse.Namespace, current: Mapping[str, Current], workspace: Workspace) -> bytes:
    """Return the content of a file in the form of its ending."""
    form = options.output.suffix
    if options.triplets is not None:
        return _as_table(triplets(label_table(current), options.triplets), form)
    if form == ".geojson":
        return as_geojson(current, _grounds(current, workspace))
    return as_csv(current) if form == ".csv" else _as_table(label_table(current), form)


def _as_table(table: pa.Table, form: str) -> bytes:
    sink = io.BytesIO()
    if form == ".csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _grounds(current: Mapping[str, Current], workspace: Workspace) -> dict[str, dict[str, Any] | None]:
    """Return the footprints of labelled tiles, as the set knows them."""
    source = workspace.set.require("footprints come from the set; run `rayjobs sample` first, or export to .csv")
    tiles = read_tiles(source.read("tiles.parquet"))
    known = zip(tiles["tile_id"].to_pylist(), tiles["geometry"].to_pylist(), strict=True)
    return {
        tile: None if ground is None else shapely.geometry.mapping(shapely.from_wkb(ground)) for tile, ground in known if tile in current
    }


ACTIONS = {"show": _show, "create": _create, "import": _import, "export": _export}
"""What each word does."""
