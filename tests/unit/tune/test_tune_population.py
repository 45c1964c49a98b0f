"""Population based training: which values may change, and that a run which begins at another's checkpoint begins there."""

from __future__ import annotations

import dataclasses

import pytest

from rayjobs.errors import ConfigError
from rayjobs.storage import Lease, open_store
from rayjobs.train.state import save
from rayjobs.tune.population import Place, begin_at, mutations, within
from rayjobs.tune.space import parse
from tests.small_run import opened


def test_numbers_of_the_training_may_change_and_those_of_the_encoder_not():
    space = parse(
        {
            "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
            "loss.margin": [0.1, 0.2, 0.4],
            "model.dim": [64, 128],
            "train.supervision": ["labels", "geography"],
            "train.epochs": [1, 2],
            "memory.size": {"integer": [0, 64]},
            "mining.negatives": [1, 5],
            "loss": [{"kind": "triplet", "margin": {"uniform": [0, 1]}}, {"kind": "magnet"}],
        }
    )
    found = mutations(space)
    assert set(found) == {"train.learning_rate", "loss.margin"}
    assert found["loss.margin"] == [0, 1, 2]
    assert all(1e-4 <= found["train.learning_rate"].sample() <= 1e-2 for _ in range(50))
    with pytest.raises(ConfigError, match=r"tune\.space has none that can"):
        mutations(parse({"model.dim": [64, 128]}))


def test_values_that_the_scheduler_multiplied_stay_in_their_range():
    space = parse({"train.learning_rate": {"uniform": [0.1, 0.2]}, "model.dim": [1, 2, 3]})
    assert within(space, {"train.learning_rate": 0.24, "model.dim": 2}) == {"train.learning_rate": 0.2, "model.dim": 2}
    assert within(space, {"train.learning_rate": 0.08, "model.dim": 0}) == {"train.learning_rate": 0.1, "model.dim": 0}


def test_a_run_that_begins_at_another_has_its_weights_and_goes_on_from_there(tmp_path):
    uri = f"file:{tmp_path}"
    with Lease(open_store(uri), "runs/x/lease") as lease:
        donor = opened(uri, lease.token)
        donor.state.epoch = 2
        donor.state.validated = {"val/recall@10": 0.5}
        assert save(donor.plan, donor.state, donor.objective)
    place = Place(trial="t1", run="x", version="epoch-0002")
    experiment = donor.plan.experiment
    begun = dataclasses.replace(experiment, workspace=dataclasses.replace(experiment.workspace, run=f"y-{place.lineage('t2')}"))
    begin_at(place, begun)
    begin_at(place, begun)
    taken = begun.open_workspace().checkpoints.current()
    assert taken.damage() is None
    assert taken.manifest["validation"] == {"val/recall@10": 0.5}
    original = donor.workspace.checkpoints.current()
    assert {entry.name: entry.sha256 for entry in taken.files} == {entry.name: entry.sha256 for entry in original.files}


def test_places_are_told_apart():
    places = [Place(trial="t", run=run, version=version) for run in "ab" for version in ("epoch-0001", "epoch-0002")]
    assert len({place.lineage(trial) for place in places for trial in ("t", "u")}) == 8
