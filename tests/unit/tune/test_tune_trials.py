"""Trials: what they are called, and what is written down of them."""

from __future__ import annotations

import pytest

from rayjobs.config import build
from rayjobs.errors import DamagedError
from rayjobs.experiment import Experiment
from rayjobs.tune.trials import Trial, all_known, keep, known, name_of


@pytest.fixture
def workspace(tmp_path):
    raw = {"name": "small", "workspace": {"uri": f"file:{tmp_path}"}, "rasters": {"sources": [{"kind": "images", "root": "x"}]}}
    return build(Experiment, raw).open_workspace()


def test_equal_values_have_one_name_and_others_another():
    first = {"loss": {"kind": "triplet", "margin": 0.2}, "model.dim": 64}
    same = {"model.dim": 64, "loss": {"margin": 0.2, "kind": "triplet"}}
    assert name_of("s", first) == name_of("s", same)
    assert len({name_of("s", {**first, "model.dim": dim}) for dim in range(100)}) == 100


def test_what_is_written_down_is_read_back(workspace):
    trial = Trial(run="s-1", values={"loss": {"kind": "triplet"}, "model.dim": 64}).heard(1, 0.25).heard(2, 0.5)
    keep(workspace, trial)
    assert known(workspace, "s-1") == trial
    assert (trial.value, trial.history) == (0.5, {1: 0.25, 2: 0.5})
    assert known(workspace, "s-2") is None
    keep(workspace, Trial(run="s-0", values={}, ended="failed", failure="why"))
    assert [found.run for found in all_known(workspace)] == ["s-0", "s-1"]


@pytest.mark.parametrize("text", [b"", b"[]", b'{"run": "s-1", "values": {}, "ended": "perhaps"}'])
def test_what_is_no_record_is_named(workspace, text):
    workspace.store.write("sweeps/small/trials/s-1.json", text)
    with pytest.raises(DamagedError, match=r"trials/s-1\.json is no record of a trial; delete it"):
        known(workspace, "s-1")
