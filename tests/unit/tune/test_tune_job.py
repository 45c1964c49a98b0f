"""What `rayjobs tune` refuses before anything starts, and which trial is best."""

from __future__ import annotations

import pytest

from rayjobs.config import build
from rayjobs.errors import ConfigError, TrainingError
from rayjobs.experiment import Experiment
from rayjobs.tune import job
from rayjobs.tune.section import TuneSection
from rayjobs.tune.trials import Trial


def experiment(tmp_path, **tune):
    raw = {
        "name": "small",
        "workspace": {"uri": f"file:{tmp_path}"},
        "rasters": {"sources": [{"kind": "images", "root": "x"}]},
        "tune": tune,
    }
    return build(Experiment, raw)


@pytest.mark.parametrize(
    "key", ["tiles.size", "rasters.bands", "workspace.run", "evaluate.ks", "train.num_workers", "ray.gpu", "tune.seed"]
)
def test_keys_that_trials_share_cannot_be_tried(tmp_path, key):
    with pytest.raises(ConfigError, match=f"tune.space.{key} cannot be tried"):
        job._space(experiment(tmp_path, space={key: [1, 2]}))


def test_a_sweep_of_another_experiment_is_refused(tmp_path):
    begun = experiment(tmp_path, space={"model.dim": [64, 128]})
    workspace = begun.open_workspace()
    source = workspace.set.draft("s1").publish({"parents": {}})
    job._pinned(begun, workspace, source).begin()
    job._pinned(begun, workspace, source).begin()
    with pytest.raises(ConfigError, match=r"sweep 'small' was begun with another experiment \(tune.space.model.dim: \[64, 128\] -> \[64\]"):
        job._pinned(experiment(tmp_path, space={"model.dim": [64]}), workspace, source).begin()
    free = experiment(tmp_path, space={"model.dim": [64, 128]}, concurrent=3, max_failures=0)
    assert job._pinned(free, workspace, source).begun()


def test_two_that_both_choose_values_are_refused():
    with pytest.raises(ConfigError, match="optuna is not told"):
        build(TuneSection, {"search": "optuna", "scheduler": {"kind": "pbt"}})


def test_the_best_is_the_one_that_finds_best_at_its_end():
    early = Trial(run="a", values={}, history={1: 0.9, 2: 0.3}, ended="finished")
    pruned = Trial(run="b", values={}, history={1: 0.8}, ended="pruned")
    good = Trial(run="c", values={}, history={1: 0.1, 2: 0.4}, ended="finished")
    assert job._best([early, pruned, good]) is good


def test_a_sweep_without_a_finished_trial_says_what_the_first_failed_with():
    failed = Trial(run="b", values={}, ended="failed", failure="out of memory")
    with pytest.raises(TrainingError, match="none of 2 trials came to its end: b with out of memory"):
        job._best([Trial(run="a", values={}, ended="pruned"), failed])
