"""`rayjobs index delete`: tiles that are found no more, by id, area or scene; nothing is rewritten."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from rayjobs.errors import ConfigError, NoTilesError, QueryError, first_few
from rayjobs.geo import parse_bbox
from rayjobs.index.versions import FORMAT, Contents, Published, Result, name_of, newest, publish, writing
from rayjobs.retrieval.filters import SearchFilter, passing
from rayjobs.retrieval.metadata import Metadata
from rayjobs.retrieval.places import area_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Artefact, Lease

DESCRIPTION = """Publish a version in which some tiles are found no more, neither by searches nor by their ids.

Their rows stay in the segments, and their ids go to the version's tombstones, until `rayjobs index compact` takes them out. The version
before holds them still, so that `rollback` brings them back. Tiles that are deleted stay out when the set is appended again."""

_TILE_ID = re.compile(r"[0-9a-f]{20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What was asked to be deleted, compared with what is there."""

    ids: tuple[str, ...]
    """Tiles that can be found, sorted."""
    deleted_before: int
    """Tiles that were deleted already."""
    unknown: tuple[str, ...]
    """Ids that the index does not hold."""


def add_options(made: argparse.ArgumentParser) -> None:
    """Take exactly one way to say which tiles."""
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--ids", metavar="FILE", type=Path, help="tiles whose ids stand in a text file, one a line")
    which.add_argument("--area", metavar="FILE", type=Path, help="tiles whose footprint meets the polygons of a GeoJSON file")
    which.add_argument(
        "--bbox", metavar=("W", "S", "E", "N"), nargs=4, type=float, help="tiles whose footprint's box meets a box, in degrees"
    )
    which.add_argument("--scene", metavar="NAME", nargs="+", help="tiles of some scenes")


def preview(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """Return which tiles would be deleted."""
    parent = newest(experiment.open_workspace().index)
    found = chosen(parent, options)
    return {"parent": parent.version.version, "would_delete": len(found.ids), **_counts(found)}


def run(experiment: Experiment, options: argparse.Namespace, console: Console) -> Result:
    """Publish the index without the tiles."""
    workspace = experiment.open_workspace()
    workspace.store.check()
    with writing(workspace.index) as lease:
        parent = newest(workspace.index)
        found = chosen(parent, options)
        if found.unknown:
            named = first_few(found.unknown, between=", ")
            console.say(f"index            caution: {len(found.unknown):,} ids are not in the index, and left alone: {named}")
        if not found.ids:
            console.say("index            all these tiles were deleted before")
            return parent.result("delete", fresh=False, deleted_now=0, **_counts(found))
        version = delete(workspace.index, parent, found.ids, experiment, lease, console)
        return version.result("delete", fresh=True, deleted_now=len(found.ids), **_counts(found))


def _counts(found: Chosen) -> dict[str, int]:
    return {"deleted_before": found.deleted_before, "unknown": len(found.unknown)}


def chosen(parent: Published, options: argparse.Namespace) -> Chosen:
    """Find the tiles that the options name.

    Raises:
        ConfigError: an option that cannot be read.
        NoTilesError: the index holds no such tile, and held none.
    """
    asked = ids_of(options.ids) if options.ids else filter_of(options)
    dead, there = set(parent.tombstones), sorted(_there(parent, asked))
    live = tuple(tile_id for tile_id in there if tile_id not in dead)
    known = {*there, *parent.removed}
    unknown = tuple(tile_id for tile_id in asked if tile_id not in known) if isinstance(asked, list) else ()
    before = (len(there) - len(live)) if not isinstance(asked, list) else len(asked) - len(live) - len(unknown)
    if not live and not before:
        raise NoTilesError(f"index {parent.version.manifest['name']} holds no tile {_words(options)}; nothing was deleted")
    return Chosen(ids=live, deleted_before=before, unknown=unknown)


def _words(options: argparse.Namespace) -> str:
    if options.ids:
        return f"of those that {options.ids} names"
    if options.area:
        return f"that meets the area {options.area}"
    return f"that meets the box {options.bbox}" if options.bbox else f"of scene {', '.join(options.scene)}"


def _there(parent: Published, asked: list[str] | SearchFilter) -> list[str]:
    """Return the ids of tiles in segments that are asked for, whether deleted or not."""
    with tempfile.TemporaryDirectory(prefix="rayjobs-") as folder:
        segments = [_metadata(parent, entry.name, Path(folder)) for entry in parent.manifest.segments]
        if isinstance(asked, list):
            rows = [metadata.rows_of(asked) for metadata in segments]
        else:
            rows = [np.flatnonzero(mask) for mask in passing(segments, asked)]
        return [tile_id.decode() for metadata, of_segment in zip(segments, rows, strict=True) for tile_id in metadata.ids[of_segment]]


def _metadata(parent: Published, name: str, folder: Path) -> Metadata:
    """Map what is known of a segment's rows, its digest compared."""
    path = folder / f"{name}.parquet"
    path.write_bytes(parent.version.read(path.name))
    found = Metadata.open(path, folder, sha256=parent.version.entry(path.name).sha256)
    path.unlink()
    return found


def ids_of(path: Path) -> list[str]:
    """Return the distinct ids of a text file, sorted.

    Raises:
        ConfigError: it cannot be read, holds none, or a line is no id.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids {path}: cannot be read as text ({error}); write one tile id a line") from error
    found = {line.strip(): number for number, line in enumerate(lines, start=1) if line.strip()}
    wrong = next((f"line {number}, {line[:40]!r}" for line, number in found.items() if not _TILE_ID.fullmatch(line)), None)
    if wrong or not found:
        fault = f"{wrong} is no tile id; these have 20 digits and letters from a to f" if wrong else "names no tile"
        raise ConfigError(f"--ids {path}: {fault}; write one id a line, as the `tile_id` of a hit")
    return sorted(found)


def filter_of(options: argparse.Namespace) -> SearchFilter:
    """Return the tiles of an area, a box or scenes as a search's filter.

    Raises:
        ConfigError: an area or a box that cannot be read.
    """
    if options.scene:
        return SearchFilter(scenes=tuple(options.scene))
    try:
        if options.bbox:
            return SearchFilter(bbox=parse_bbox(options.bbox))
        return SearchFilter(intersects=_area(options.area))
    except (ValueError, QueryError) as error:
        named = f"--area {options.area}" if options.area else f"--bbox {' '.join(map(str, options.bbox))}"
        raise ConfigError(f"{named}: {error}") from error


def delete(index: Artefact, parent: Published, ids: Sequence[str], experiment: Experiment, lease: Lease, console: Console) -> Published:
    """Publish a version with the segments of `parent` in which tiles are deleted.

    Args:
        index: the index.
        parent: its current version.
        ids: of tiles that it holds.
        experiment: kept beside it.
        lease: on writing the index.
        console: told of the end.

    Raises:
        PublishConflictError: `parent` is not current any more.
    """
    tombstones = sorted({*parent.tombstones, *ids})
    draft = index.draft(name_of("delete", FORMAT, parent.version.version, *tombstones), after=parent.version)
    draft.adopt(parent.version, [*parent.shared(), *parent.files_of(parent.manifest.segments)])
    contents = Contents(
        action="delete",
        manifest=dataclasses.replace(parent.manifest, deleted=len(tombstones)),
        spec=parent.spec,
        parents={**parent.version.manifest["parents"], "index": parent.version.version},
        build=parent.version.manifest["build"],
        tombstones=tombstones,
        removed=parent.removed,
    )
    return publish(draft, contents, experiment, lease, console)


def _area(path: Path) -> Any:
    """Return all polygons of a GeoJSON file as one geometry."""
    try:
        document = json.loads(path.read_bytes())
        features = document["features"] if document["type"] == "FeatureCollection" else [document]
        shapes = [feature["geometry"] if feature["type"] == "Feature" else feature for feature in features]
        parts = [part for shape in shapes for part in ([shape["coordinates"]] if shape["type"] == "Polygon" else _parts(shape))]
    except OSError as error:
        raise ConfigError(f"--area {path}: cannot be read ({error.strerror}); name a GeoJSON file") from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ConfigError(f"--area {path}: is no GeoJSON of polygons ({error})") from error
    area = area_of({"type": "MultiPolygon", "coordinates": parts})
    if not area.is_valid:
        raise ValueError(f"its polygons are not valid ({shapely.is_valid_reason(area)}); mend them, for example with a buffer of 0")
    return area


def _parts(shape: Mapping[str, Any]) -> list[Any]:
    if shape["type"] != "MultiPolygon":
        raise ValueError(f"a {shape['type']} has no area")
    return list(shape["coordinates"])
