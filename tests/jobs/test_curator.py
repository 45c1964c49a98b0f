"""The walk of docs/curator.md, command by command: a Landsat scene from a map server, and a map of land cover in place of the person.

`RAYJOBS_WALK=whole` takes the whole scene and 200 labels, as a person would; else a corner of it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import secrets
import shlex
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject, transform_bounds

from rayjobs.labels.store import LabelStore
from rayjobs.storage import Artefact, open_store
from rayjobs.tiles.table import read_tiles
from tests import map_server
from tests.faults.running import Running
from tests.map_server import SIDE
from tests.three_nodes import ROOT, RayCluster, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LAYER, DATE, GRID, LEVEL = "HLS_S30_Nadir_BRDF_Adjusted_Reflectance", "2024-06-15", "fine", 7
PIXEL = map_server.LEVELS[GRID][LEVEL]
COVER = {41: "forest", 42: "forest", 43: "forest", 52: "shrub", 71: "grassland", 31: "barren", 21: "developed", 22: "developed"}
ITEMS, TILE = "workspace/imagery/curator/0123456789abcdef/items.json", "0123456789abcdef0123"
"""In the document."""
WHOLE = os.environ.get("RAYJOBS_WALK") == "whole"
SIZE, BUDGET = ((704, 1128), 200) if WHOLE else ((256, 320), 24)
"""Rows and columns of the scene that are served, and labels that are given."""

SMALL = {
    "tiles.splits": {"train": 0.7, "val": 0, "test": 0.3, "block_m": 1500}, "model.input_size": 32, "train.epochs": 1,
    "train.steps_per_epoch": 1, "train.batch_size": 8, "train.tiles_per_group": 2, "label.seed_tiles": 8, "label.round_tiles": 8,
}  # fmt: skip


def commands():
    """Return the commands of the document, each as words."""
    text = (ROOT / "docs" / "curator.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert all(line.startswith("rayjobs ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def served_picture(data):
    """Return 8-bit colours (h, w, 3) on the grid of the server, and row and column of their first tile."""
    height, width = SIZE
    bands = []
    for band in "432":
        with rasterio.open(data("zion_north") / f"landsat_b{band}.tif") as file:
            values, crs, transform = file.read(1, window=((0, height), (0, width))).astype(np.float32), file.crs, file.transform
            bounds = rasterio.transform.array_bounds(height, width, transform)
        low, high = np.percentile(values[values < 65535], [1, 99])
        bands.append(np.where(values < 65535, np.clip((values - low) / (high - low) * 254 + 1, 1, 255), 0).astype(np.uint8))
    west, south, east, north = transform_bounds(crs, "EPSG:4326", *bounds)
    row, col = int((90 - north) / PIXEL // SIDE), int((west + 180) / PIXEL // SIDE)
    rows, cols = (int(-(-extent // (SIDE * PIXEL))) for extent in (90 - row * SIDE * PIXEL - south, east + 180 - col * SIDE * PIXEL))
    grid = rasterio.Affine(PIXEL, 0, -180 + col * SIDE * PIXEL, 0, -PIXEL, 90 - row * SIDE * PIXEL)
    picture = np.zeros((3, rows * SIDE, cols * SIDE), np.uint8)
    where = {"src_transform": transform, "src_crs": crs, "dst_transform": grid, "dst_crs": "EPSG:4326"}
    reproject(np.stack(bands), picture, resampling=Resampling.nearest, **where)
    return np.moveaxis(picture, 0, -1), (row, col), [west, south, east, north]


def test_from_an_archive_to_a_labelled_set_and_a_better_model(cluster, s3_server, data, tmp_path):
    os.environ.update(s3_server.environment)
    workspace = s3_server.bucket(f"curator-{secrets.token_hex(4)}")
    picture, at, bbox = served_picture(data)
    with map_server.serve(
        tmp_path, {LAYER: {"title": "HLS nadir", "format": "image/png", "times": [DATE, "2024-06-20"]}}, [GRID]
    ) as server:
        server.publish(LAYER, GRID, DATE, LEVEL, at, picture)
        source = {"kind": "gibs", "layer": LAYER, "dates": [DATE], "url": server.rest, "channels": 3, "nodata": 0}
        keys = {"rasters.sources": [source], "rasters.aoi": bbox, "fetch.requests_per_second": 500, "serve.port": free_port()}
        keys["rasters.label_map"] = {"uri": str(data("zion_north") / "nlcd2011.tif"), "classes": COVER}
        keys |= {"label.oracle": "tiles", "label.oracle_class": "forest", "label.budget": BUDGET} | ({} if WHOLE else SMALL)
        with contextlib.ExitStack() as stack:
            walk = Walk(cluster, workspace, keys, tmp_path, server.rest, stack)
            for words in commands():
                walk.step(words)
    assert walk.done == ["fetch", "fetch", "fetch", "sample", "train", "index", "serve", "query", "label", "train", "index", "labels"]
    said = LabelStore(open_store(workspace), "forest").events()
    assert len(said) == len({event.tile_id for event in said}) == BUDGET
    written = {path.name: len(list(path.iterdir())) for path in (tmp_path / "forest").iterdir() if path.is_dir()}
    assert sum(written.values()) == BUDGET
    assert {"positive", "negative"} <= set(written)
    logging.getLogger(__name__).info("%s s; measured %s", list(zip(walk.done, walk.seconds, strict=True)), walk.measured)


def ended(service):
    """End a service as a person does; one that is killed leaves its application on the cluster."""
    service.signal(signal.SIGTERM)
    try:
        assert service.ended(120).code == 0, service.err
    finally:
        service.kill()


@dataclass
class Walk:
    """The commands of the document, on a cluster and a workspace of ours."""

    cluster: RayCluster
    workspace: str
    keys: dict[str, Any]
    """Where this walk differs from the experiment file; what a command of the document says itself stands."""
    folder: Path
    capabilities: str
    """Where the map server's lie."""
    stack: contextlib.ExitStack
    """Ends the service."""
    known: dict[str, str] = field(default_factory=dict)
    """What earlier commands named, by what stands for it in the document."""
    done: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def step(self, words):
        verb, *rest = [functools.reduce(lambda text, name: text.replace(name, self.known[name]), self.known, word) for word in words]
        begun = time.monotonic()
        if verb == "serve":
            service = Running(self.cluster.start("serve", *self.told(rest)))
            self.stack.callback(ended, service)
            service.wait_for("ready: ", seconds=300)
        else:
            rest = [*rest, "--url", self.capabilities, "--json"] if "--layers" in rest else self.told(rest)
            found = self.cluster.run({"labels": "labelling"}.get(verb, verb), *rest)
            assert found.code == 0, found.err
            self.learn(verb, found.result)
        self.done.append(verb)
        self.seconds.append(round(time.monotonic() - begun, 1))

    def told(self, words):
        named = {word.removeprefix("--") for word in words}
        words = [str(self.folder / word) if before == "--output" else word for before, word in zip(["", *words], words, strict=False)]
        keys = [part for key, value in self.keys.items() if key not in named for part in (f"--{key}", json.dumps(value))]
        return [*words, "--workspace.uri", self.workspace, "--json", *keys]

    def learn(self, verb, result):
        if verb == "fetch" and result.get("items"):
            assert result["complete"]
            self.known[ITEMS] = result["items"]
        if verb == "sample":
            tiles = read_tiles(Artefact(open_store(self.workspace), "sets", "curator").current().read("tiles.parquet")).to_pylist()
            forest = [tile for tile in tiles if tile["label"] == "forest"]
            self.known[TILE] = max(forest, key=lambda tile: tile["label_purity"])["tile_id"]
        if verb == "query":
            assert self.known[TILE] not in {feature["id"] for feature in result["features"]}
        if verb == "label":
            self.measured = result["measured"]
