"""The experiments that ship with the project, and the page that maps the keys of earlier systems to ours."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from rayjobs.config import build, keys, to_dict
from rayjobs.experiment import Experiment, load
from rayjobs.rasters.label_map import LabelMap
from rayjobs.sample.plan import plan_set

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
EARLIER = (
    "network loss alt_loss single_class_classifiers multi_class_classifiers image_size batch_size mining min_pos_dist max_pos_dist "
    "min_neg_dist max_neg_dist margin validation_nb validation_map norm_output supervised output_size singleClassTreshold valIteration "
    "random_reset name HARD_NEGATIVE HARD_POSITIVE RANDOM_HARD_NEGATIVE RANDOM_HARD_POSITIVE"
)
"""Keys of the first earlier system's JSON, and the values of its `mining`."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_loads_and_is_named_after_its_file(path):
    found = load(path)
    assert found.name == path.stem
    assert build(Experiment, to_dict(found)) == found
    assert f"`{path.name}`" in (CONFIGS / "README.md").read_text(encoding="utf-8")


def test_the_published_settings_are_those_of_the_first_system():
    unsupervised, supervised = load(CONFIGS / "osm-unsupervised-magnet.yaml"), load(CONFIGS / "osm-supervised-triplet.yaml")
    for found in (unsupervised, supervised):
        assert (found.model.backbone, found.model.dim, found.tiles.size) == ("resnext50_32x4d", 64, 96)
        assert (found.tiles.min_pos_dist, found.tiles.max_pos_dist) == (1.0, 5.0)
        assert (found.mining.every, found.miner.kind) == (0, "none")
        assert len(LabelMap(**found.rasters.label_map.arguments()).names) == 13
    assert (unsupervised.loss.form, unsupervised.loss.alpha, unsupervised.train.batch_size // unsupervised.train.tiles_per_group) == (
        "spatial",
        0.5,
        12,
    )
    assert (supervised.loss.margin, supervised.loss.distance, supervised.train.batch_size // supervised.train.tiles_per_group) == (
        0.5,
        "squared",
        12,
    )
    assert (supervised.tiles.min_label_purity, supervised.tiles.sampler.random_reset) == (0.8, 0.0)


def test_tile2vec_has_ground_for_every_split(data):
    found = load(CONFIGS / "tile2vec.yaml")
    (source,) = to_dict(found)["rasters"]["sources"]
    local = source | {"uris": [str(data("naip_nd") / "m_*.tif")]}
    plan = plan_set(build(Experiment, to_dict(found) | {"rasters": to_dict(found)["rasters"] | {"sources": [local]}}).rasters, found.tiles)
    assert len({scene.datetime.date() for scene in plan.scenes}) == 4
    tiles = plan.tiles.to_pylist()
    assert min(Counter(row["split"] for row in tiles if row["split"]).values()) > 100
    assert len({row["block_id"] for row in tiles if row["split"] == "test"}) >= 15, "units enough for an interval"


def test_aid_is_measured_on_classes_that_do_not_train(data):
    found = load(CONFIGS / "aid-class-disjoint.yaml")
    (source,) = to_dict(found)["rasters"]["sources"]
    local = source | {"root": str(data("aid_15classes"))}
    plan = plan_set(build(Experiment, to_dict(found) | {"rasters": to_dict(found)["rasters"] | {"sources": [local]}}).rasters, found.tiles)
    classes = {split: {row["label"] for row in plan.tiles.to_pylist() if row["split"] == split} for split in ("train", "val", "test")}
    assert [len(found) for found in classes.values()] == [8, 0, 7]
    assert not classes["train"] & classes["test"]
    assert plan.tiles.num_rows == 900


def test_mars_is_tested_observation_by_observation(data):
    found = load(CONFIGS / "mars-hash.yaml")
    (source,) = to_dict(found)["rasters"]["sources"]
    folder = data("hirise_mars")
    local = source | {"root": str(folder / "images"), "csv": str(folder / "labels.csv")}
    rasters = build(Experiment, to_dict(found) | {"rasters": to_dict(found)["rasters"] | {"sources": [local]}}).rasters
    tested: Counter[str] = Counter()
    for fold in range(5):
        splits = dataclasses.replace(found.tiles.splits, fold=fold)
        tiles = plan_set(rasters, dataclasses.replace(found.tiles, splits=splits)).tiles.to_pylist()
        assert Counter(row["split"] for row in tiles)["test"] in {133, 134}
        observations = [{row["observation"] for row in tiles if row["split"] == split} for split in ("train", "val", "test")]
        assert sum(map(len, observations)) == len(set().union(*observations)) == 70
        tested.update(row["tile_id"] for row in tiles if row["split"] == "test")
    assert (len(tested), set(tested.values())) == (667, {1})


def rows(page: str) -> list[tuple[str, str]]:
    """The rows of a page's tables: earlier key, ours."""
    cells = [line.strip("| ").split(" | ", 1) for line in page.splitlines() if line.startswith("| ")]
    return [(one[0], one[1]) for one in cells if len(one) == 2]


def test_every_key_of_the_first_system_is_mapped():
    page = (CONFIGS / "README.md").read_text(encoding="utf-8").split("\n## ")
    (section,) = [part for part in page if part.startswith("Metric embeddings for satellite image classification")]
    mapped = {word: ours for earlier, ours in rows(section) for word in re.findall(r"\w+", earlier)}
    assert set(EARLIER.split()) <= set(mapped)
    assert not [key for key in EARLIER.split() if "not built" in mapped[key]]


def test_every_key_that_the_page_names_exists():
    known = {key.path for key in keys(Experiment)}
    sections = {path.split(".")[0] for path in known}
    named = {
        word
        for _, ours in rows((CONFIGS / "README.md").read_text(encoding="utf-8"))
        for word in re.findall(r"`(\w+(?:\.\w+)+)", ours)
        if word.split(".")[0] in sections
    }
    assert len(named) > 40
    assert not [word for word in named if word not in known and not any(path.startswith(f"{word}.") for path in known)]
