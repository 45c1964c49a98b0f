"""The driver's side of `rayjobs export`: which chips of the set, in which form, and where to."""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import ray.data

from rayjobs import command
from rayjobs.cluster.session import joined
from rayjobs.errors import ConfigError, NoTilesError
from rayjobs.experiment import load
from rayjobs.export.write import FORMS, ExportPlan, export_shard
from rayjobs.storage import keep_first, open_store
from rayjobs.tiles.section import SPLITS
from rayjobs.tiles.table import read_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from rayjobs.console import Console
    from rayjobs.experiment import Experiment
    from rayjobs.storage import Store, Version

_DESCRIPTION = """Write the chips of a set as other programs read them.

imagefolder: a PNG of each tile in a folder by its class, its own values where these are bytes of one band or three, else stretched.
parquet: tables with a row for each tile, its pixels as they are. tfrecord: records of tf.train.Example with the same fields."""
_NAME = "_export.json"
"""Says which export a folder holds, and once it is whole how many `tiles` and `files`; readers of folders of Parquet pass over names that
begin so."""
_COLUMNS = ["tile_id", "scene_id", "datetime", "label", "split", "geometry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What `rayjobs export` tells at its end."""

    set: str
    """Version of the set."""
    form: str
    to: str
    """Address of the folder."""
    tiles: int
    files: int


def parser() -> argparse.ArgumentParser:
    """Return the options of `rayjobs export`."""
    made = command.parser("export", _DESCRIPTION)
    made.add_argument("--form", choices=FORMS, default="imagefolder", help="what to write (imagefolder)")
    made.add_argument("--split", choices=SPLITS, help="tiles of this split alone (default: all)")
    made.add_argument("--to", metavar="URI", help="folder (default: exports/SET/VERSION/FORM/SPLIT of the workspace, all without --split)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb from a command line; return 0 (done), 1 (failed) or 2 (usage)."""
    options, overrides = parser().parse_known_args(arguments)

    def act(console: Console) -> dict[str, Any]:
        experiment = load(options.config, overrides)
        source = experiment.open_workspace().set.require("run `rayjobs sample` first")
        tiles = _wanted(source, options.split)
        export = {"set": source.manifest["name"], "version": source.version, "form": options.form, "split": options.split}
        to = options.to or source.store.address("/".join(["exports", *(value or "all" for value in export.values())]))
        store = open_store(to)
        store.check("folder (--to)")
        _check_folder(store, export)
        if options.dry_run:
            told = {"set": source.version, "form": options.form, "to": to, "tiles": tiles.num_rows}
            return told | {"chip_bytes": _chip_bytes(source, tiles)}
        keep_first(store, _NAME, json.dumps(export).encode())
        _check_folder(store, export)
        plan = ExportPlan(source=source, store=store, form=options.form)
        done = run(experiment, plan, tiles, to, console)
        store.write(_NAME, json.dumps(export | {"tiles": done.tiles, "files": done.files}).encode())
        return asdict(done)

    return command.execute("export", options, act)


def _wanted(source: Version, split: str | None) -> pa.Table:
    """Return the tiles to write.

    Raises:
        NoTilesError: there is none.
    """
    tiles = read_tiles(source.read("tiles.parquet"))
    if split is not None:
        tiles = tiles.filter(pc.equal(tiles["split"], split))
    if not tiles.num_rows:
        raise NoTilesError(f"the set {source.manifest['name']} {source.version} has no tile of the split {split}; leave out --split")
    return tiles


def _check_folder(store: Store, export: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but this export, or what a command that was ended left of it.

    Raises:
        ConfigError: says what it holds.
    """
    found = store.read_tagged(_NAME)
    if found is None and store.list():
        raise ConfigError(f"{store.uri} holds files already, and no {_NAME} that says of which export; choose an empty folder (--to)")
    held = export if found is None else json.loads(found.data)
    if any(held.get(name) != value for name, value in export.items()):
        told = ", ".join(f"{name} {held.get(name) or 'all'}" for name in export)
        raise ConfigError(f"{store.uri} holds another export ({told}), and both would be mixed; choose another folder (--to), or empty it")


def _chip_bytes(source: Version, tiles: pa.Table) -> int:
    """Return what the pixels of tiles take, before compression."""
    pixels = sum(height * width for height, width in zip(tiles["height"].to_pylist(), tiles["width"].to_pylist(), strict=True))
    return int(pixels * len(source.manifest["bands"]) * np.dtype(source.manifest["dtype"]).itemsize)


def run(experiment: Experiment, plan: ExportPlan, tiles: pa.Table, to: str, console: Console) -> Result:
    """Have every shard written, anywhere on the cluster. Run again, it writes the same files again."""
    workspace = experiment.open_workspace()
    shards = sorted(pc.unique(tiles["shard"]).to_pylist())
    entries = [{"shard": shard, "tiles": tiles.filter(pc.equal(tiles["shard"], shard)).select(_COLUMNS).to_pylist()} for shard in shards]
    files = 0
    with (
        joined(experiment.ray, workspace=workspace.store.uri, target=plan.store.uri, shared=workspace.shared, say=console.say),
        console.stage("export/write", tiles.num_rows, "tiles") as stage,
    ):
        rows = ray.data.from_items(entries, override_num_blocks=len(entries))
        for report in rows.map(functools.partial(export_shard, plan=plan), num_cpus=1).iter_rows():
            files += report["files"]
            stage.advance(report["tiles"], files=files)
    return Result(set=plan.source.version, form=plan.form, to=to, tiles=tiles.num_rows, files=files)
