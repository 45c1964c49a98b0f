"""The study of periodic mining: the test part is opened once per seed with what validation chose, and places are found on other dates."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import periodic_mining as study
from rayjobs.experiment import Experiment


class Told:
    """A task whose third candidate with mining, and second without, are the best by validation, and others by test."""

    partitions, losses = (0,), ("triplet",)

    def __init__(self):
        self.asked = []

    def validated(self, key, settings, partition):
        self.asked.append(("validated", (*key, partition), settings))
        return 0.5 + 0.1 * (key[-1] == {"without": "1", "with": "2"}[key[3]])

    def tested(self, key, settings, partition):
        self.asked.append(("tested", (*key, partition), settings))
        return 0.4 if key[3] == "with" else 0.3


def test_the_test_part_is_opened_with_what_validation_chose():
    told = Told()
    found = study.compared(told, "AID", "triplet", 0)
    assert found == pytest.approx({"without": 0.3, "without, as set": 0.3, "with": 0.4, "with, as set": 0.4})
    opened = [settings for what, _, settings in told.asked if what == "tested"]
    candidates = [study.WITHOUT["triplet"][1], study.WITHOUT["triplet"][0], study.WITH["triplet"][2], study.WITH["triplet"][0]]
    assert opened == [study.LOSSES["triplet"] | candidate | {"train.seed": seed} for candidate in candidates for seed in study.SEEDS]
    assert len({key for _, key, _ in told.asked}) == len(told.asked), "each measurement has its own name"


@pytest.mark.parametrize("base", [study.OF_PICTURES, study.OF_DATES])
def test_both_sides_have_one_budget(base):
    def budget(experiment: Experiment):
        train = experiment.train
        return (train.epochs, train.steps_per_epoch, train.batch_size, train.tiles_per_group, train.learning_rate, train.seed)

    for loss, settings in study.LOSSES.items():
        assert len(study.WITHOUT[loss]) == len(study.WITH[loss])
        sides = {}
        for side, candidates in (("without", study.WITHOUT[loss]), ("with", study.WITH[loss])):
            sides[side] = [study.class_disjoint.experiment_of("", base | settings | candidate) for candidate in candidates]
        assert len({budget(experiment) for side in sides.values() for experiment in side}) == 1
        assert {experiment.mining.every for experiment in sides["without"]} == {0}
        assert all(experiment.mining.every for experiment in sides["with"])


def test_a_place_is_found_on_other_dates_among_tiles_that_share_no_ground_with_it():
    rng = np.random.default_rng(0)
    rows, cols, _ = np.meshgrid([0, 32, 64, 96], [0, 32, 64], range(3), indexing="ij")
    tiles = pa.table({"row": rows.ravel(), "col": cols.ravel()})
    vectors = rng.normal(size=(tiles.num_rows, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = study.found_on_other_dates(vectors, study.Images(tiles=tiles, pixels=np.empty((tiles.num_rows, 3, 1, 1))))
    precisions = []
    for query, (row, col) in enumerate(zip(rows.ravel(), cols.ravel(), strict=True)):
        ranked = []
        for other in np.argsort(-vectors @ vectors[query], kind="stable"):
            apart = max(abs(row - rows.ravel()[other]), abs(col - cols.ravel()[other]))
            if other != query and (apart == 0 or apart >= 64):
                ranked.append(apart == 0)
        first = ranked[:2]  # R: two other dates
        precisions.append(sum(sum(first[: place + 1]) / (place + 1) for place, hit in enumerate(first) if hit) / 2)
    assert found["MAP@R"] == pytest.approx(np.mean(precisions))
    assert 0 < found["MAP@R"] < 1
