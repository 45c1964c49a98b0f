from __future__ import annotations

import numpy as np
import pytest

from rayjobs.errors import TrainingError
from rayjobs.tiles.neighbours import Neighbourhood
from rayjobs.train.batches import ByGeography, ByLabel, plan_epoch


def line(count):
    """Tiles in a row, each alike with the next."""
    return Neighbourhood.from_pairs(np.column_stack([np.arange(count - 1), np.arange(1, count)]), count)


def plan(supervision, **changed):
    settings = {"steps": 5, "batch": 12, "group": 2, "mined": None, "mined_share": 0.5} | changed
    return plan_epoch(supervision, np.random.default_rng([0, 1]), **settings)


def test_groups_of_geography_are_neighbours():
    found = plan(ByGeography(line(50)))
    pairs = found.members.reshape(5, 6, 2)
    assert (np.abs(pairs[:, :, 0] - pairs[:, :, 1]) == 1).all()
    assert np.array_equal(found.groups, np.repeat(np.arange(30), 2).reshape(5, 12))


def test_every_anchor_comes_before_any_comes_again():
    found = plan(ByGeography(line(30)))
    assert np.array_equal(np.sort(found.members.reshape(-1, 2)[:, 0]), np.arange(30))


def test_groups_of_labels_are_of_one_class_and_unknown_ones_stay_out():
    labels = np.array([0] * 40 + [1] * 5 + [2] * 3 + [-1] * 10)
    found = plan(ByLabel(labels), group=3)
    assert (labels[found.members] == found.groups).all()
    assert np.ptp(np.bincount(found.groups[:, ::3].ravel())) <= 1


def test_mined_negatives_join_their_anchors():
    mined = np.stack([(np.arange(50) + 25) % 50, np.full(50, -1)], axis=1)
    found = plan(ByGeography(line(50)), mined=mined)
    anchors = found.members.reshape(5, 6, 2)[:, :, 0]
    for of_batch in anchors:
        assert np.array_equal(of_batch[4:], (of_batch[:2] + 25) % 50)


def test_a_plan_is_a_function_of_its_seed():
    again = [plan(ByGeography(line(50))).members for _ in range(2)]
    assert np.array_equal(*again)


def test_nothing_alike_is_an_error_with_a_remedy():
    with pytest.raises(TrainingError, match="max_pos_dist"):
        ByGeography(Neighbourhood.from_pairs(np.empty((0, 2), np.int64), 4))
    with pytest.raises(TrainingError, match="label more"):
        ByLabel(np.array([0, 0, 0, 1, -1]))
