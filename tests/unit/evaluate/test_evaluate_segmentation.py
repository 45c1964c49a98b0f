"""The segmentation probe on real ground: the Zion scene with its land cover, sampled in this process."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from rayjobs.config import build as build_section
from rayjobs.console import Console
from rayjobs.errors import ConfigError
from rayjobs.evaluate.segmentation import MAJORITY, segment
from rayjobs.experiment import Experiment
from rayjobs.models.checkpoint import to_files
from rayjobs.models.encoder import build
from rayjobs.models.spec import ModelSpec, statistics_spec
from rayjobs.rasters.label_map import LabelMap
from rayjobs.rasters.scenes import read_scenes
from rayjobs.sample import job
from rayjobs.tiles.table import read_geoparquet

CLASSES = {11: "water", 31: "barren", 41: "forest", 42: "forest", 43: "forest", 52: "shrub", 71: "grass"}


class _Rows:
    """Of Ray Data what the sampling job asks for."""

    def __init__(self, rows):
        self.rows = rows

    def map(self, function, **_):
        return _Rows(map(function, self.rows))

    def iter_rows(self):
        return iter(self.rows)


@pytest.fixture(scope="module")
def zion(data, tmp_path_factory):
    """A set of the Zion scene, and its label map."""
    root = data("zion_north")
    source = {"kind": "files", "uris": [str(root / "landsat_b*.tif")], "pattern": r"landsat_(?P<band>b\d)\.tif$", "name": "zion"}
    raw = {
        "name": "zion",
        "workspace": {"uri": str(tmp_path_factory.mktemp("zion"))},
        "rasters": {"sources": [source], "bands": ["b5", "b4", "b3"], "label_map": {"uri": str(root / "nlcd2011.tif"), "classes": CLASSES}},
        "tiles": {"size": 24, "sampler": {"kind": "random", "count": 160}, "splits": {"block_m": 3000}},
    }
    experiment = build_section(Experiment, raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.data.from_items", lambda items, **_: _Rows(items))
        patch.setattr(job, "joined", lambda *_, **__: contextlib.nullcontext())
        job.run(experiment, Console(io.StringIO(), io.StringIO()))
    return experiment.open_workspace().set.require(""), LabelMap(**experiment.rasters.label_map.arguments())


def files_of(spec):
    files = to_files(build(spec), spec)
    return {"model_json": files["model.json"], "tensors": files["model.safetensors"]}


@pytest.fixture(scope="module")
def encoders(zion):
    manifest = zion[0].manifest
    imagery = {"bands": ("b5", "b4", "b3"), "mean": manifest["band_mean"], "std": manifest["band_std"], "dtype": "uint16", "tile_size": 24}
    network = imagery | {"mean": tuple(imagery["mean"]), "std": tuple(imagery["std"])}
    return {
        "image-statistics": files_of(statistics_spec(**imagery, resolution_m=30.0)),
        "trained": files_of(ModelSpec(backbone="resnet10t", dim=16, input_size=64, resolution_m=30.0, **network)),
    }


@pytest.fixture(scope="module")
def report(zion, encoders):
    return segment(*zion, encoders, split="test", ours="trained", resamples=200)


def test_the_report_has_a_row_for_each_encoder_and_for_the_majority_class(report):
    json.dumps(report, allow_nan=False)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [MAJORITY, "image-statistics", "trained"]
    assert rows["trained"]["trained_minus"] is None
    for name, row in rows.items():
        assert list(row["iou"]) == ["water", "barren", "forest", "shrub", "grass"]
        known = [value for value in row["iou"].values() if value is not None]
        assert row["metrics"]["mIoU"]["value"] == pytest.approx(np.mean(known))
        for metric, entry in row["metrics"].items():
            assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
            if name != "trained":
                gap = rows["trained"]["metrics"][metric]["value"] - entry["value"]
                assert row["trained_minus"][metric]["value"] == pytest.approx(gap)


def test_spectra_tell_more_than_the_majority(report):
    rows = {row["name"]: row["metrics"] for row in report["rows"]}
    assert rows["image-statistics"]["mIoU"]["value"] > rows[MAJORITY]["mIoU"]["value"] + 0.02


def test_the_majority_row_is_a_count_of_pixels(zion, report):
    source, label_map = zion
    tiles = read_geoparquet(source.read("tiles.parquet"))
    (scene,) = read_scenes(read_geoparquet(source.read("scenes.parquet")))
    counts = {}
    for split in ("train", "test"):
        windows = np.array([[row[key] for key in ("row", "col", "height", "width")] for row in tiles.to_pylist() if row["split"] == split])
        counts[split] = np.bincount(np.concatenate([part[part >= 0] for part in label_map.classes_many(scene.grid, windows)]), minlength=5)
    assert list(report["protocol"]["tested_pixels"].values()) == counts["test"].tolist()
    share = counts["test"][counts["train"].argmax()] / counts["test"].sum()
    majority = report["rows"][0]["metrics"]
    assert majority["pixel_accuracy"]["value"] == pytest.approx(share)
    assert majority["mIoU"]["value"] == pytest.approx(share / np.count_nonzero(counts["test"]))


def test_the_sample_of_tiles_is_bounded_and_repeatable(zion, encoders):
    plain = {"trained": encoders["image-statistics"]}
    found = segment(*zion, plain, split="val", ours="trained", tiles=9, cells=200, resamples=100, seed=5)
    assert found["protocol"]["fitted_tiles"] == 9 == found["protocol"]["tested_tiles"]
    assert found == segment(*zion, plain, split="val", ours="trained", tiles=9, cells=200, resamples=100, seed=5)


def test_ground_without_classes_is_refused(zion, encoders):
    nowhere = LabelMap(uri=zion[1].uri, classes={250: "never"})
    with pytest.raises(ConfigError, match="no pixel"):
        segment(zion[0], nowhere, encoders, split="test", ours="trained")
