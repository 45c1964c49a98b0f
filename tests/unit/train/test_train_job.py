"""What `rayjobs train --dry-run` refuses before anything is read: the workspace, the backbone, a run of another experiment."""

from __future__ import annotations

import pytest

from rayjobs.config import build
from rayjobs.errors import ConfigError, NotFoundError
from rayjobs.experiment import Experiment
from rayjobs.train import job


@pytest.fixture
def experiment(tmp_path):
    def make(**sections):
        raw = {
            "name": "small",
            "workspace": {"uri": str(tmp_path / "workspace")},
            "rasters": {"sources": [{"kind": "images", "root": "x"}]},
        }
        return build(Experiment, raw | sections)

    return make


def test_a_file_in_the_workspaces_place(experiment, tmp_path):
    (tmp_path / "workspace").write_text("a file")
    with pytest.raises(ConfigError, match=r"choose another workspace\.uri"):
        job.preview(experiment())


def test_a_mistyped_backbone_is_told_before_the_set_is_asked_for(experiment):
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet81'; near it are .*resnet18"):
        job.preview(experiment(model={"backbone": "resnet81"}))
    with pytest.raises(NotFoundError, match="rayjobs sample"):
        job.preview(experiment())


def test_a_run_of_another_experiment_is_refused_in_a_plan_too(experiment):
    made = experiment()
    workspace = made.open_workspace()
    source = workspace.set.draft("s1").publish({"parents": {}})
    job._pin(made, workspace, source)
    job._pin(made, workspace, source)
    with pytest.raises(ConfigError, match=r"begun with another experiment \(train.steps_per_epoch: null -> 4\)"):
        job.preview(experiment(train={"steps_per_epoch": 4}))
