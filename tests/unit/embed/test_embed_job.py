"""Which encoder embeds, and what a person is told of it before anything is computed; without Ray."""

from __future__ import annotations

import io

import pytest
import yaml

from rayjobs.config import build, to_dict
from rayjobs.console import Console
from rayjobs.embed import job
from rayjobs.embed.encoder import chosen_encoder, tell_encoder
from rayjobs.errors import NotFoundError
from rayjobs.experiment import Experiment
from rayjobs.index import job as index_job
from rayjobs.models import encoder
from rayjobs.models.checkpoint import from_files, to_files
from rayjobs.models.spec import statistics_spec


@pytest.fixture
def experiment(tmp_path):
    def make(**sections):
        sources = [{"kind": "images", "root": "pictures"}]
        return build(
            Experiment, {"name": "small", "workspace": {"uri": str(tmp_path / "workspace")}, "rasters": {"sources": sources}, **sections}
        )

    return make


@pytest.fixture
def trained(experiment):
    """A workspace with a set of 30 tiles and a run with one checkpoint."""
    made = experiment()
    workspace = made.open_workspace()
    workspace.set.draft("s1").publish(
        {"parents": {}, "counts": {"kept": 30, "by_split": {"train": 20, "test": 10}}, "shards": 1, "bands": ["red"], "dtype": "uint8"}
    )
    spec = statistics_spec(bands=("red",), mean=(0.0,), std=(1.0,), tile_size=8, resolution_m=None, dtype="uint8")
    files = to_files(encoder.build(spec, 0), spec)
    fingerprint = from_files(model_json=files["model.json"], tensors=files["model.safetensors"]).fingerprint
    draft = workspace.checkpoints.draft("epoch-0004")
    for name, data in files.items():
        draft.write(name, data)
    draft.publish({"parents": {}, "encoder_fingerprint": fingerprint, "counts": {}})
    workspace.store.write(workspace.pinned, yaml.safe_dump({"decided": {"model": to_dict(made.model)}}).encode())
    return fingerprint


def told(made):
    screen = io.StringIO()
    tell_encoder(chosen_encoder(made), Console(io.StringIO(), screen), "index")
    return screen.getvalue().splitlines()


def test_the_checkpoint_is_named(trained, experiment):
    [line] = told(experiment())
    assert line.split(maxsplit=1)[1] == f"checkpoint epoch-0004 of run small, encoder {trained[:12]}"


def test_model_keys_that_have_no_say_are_named(trained, experiment):
    _, caution = told(experiment(model={"backbone": "resnet34", "dim": 64}))
    assert "caution: run small was trained with other keys (model.backbone: 'resnet18' -> 'resnet34'; model.dim: null -> 64)" in caution
    assert "--workspace.run NAME" in caution
    assert job.preview(experiment(model={"dim": 64}))["cautions"] == list(chosen_encoder(experiment(model={"dim": 64})).cautions)


def test_a_plan_says_whether_it_was_done_already(trained, experiment):
    made = experiment(index={"splits": ["test"]})
    plan = index_job.preview(made)
    assert (plan["tiles"], plan["published_already"], plan["cautions"]) == (10, False, [])
    workspace = made.open_workspace()
    table = workspace.embeddings().draft(job.table_version(workspace.set.current(), trained, ("test",))).publish({"parents": {}})
    assert job.preview(made)["published_already"]
    assert not index_job.preview(made)["published_already"]
    workspace.index.draft(index_job._version_name(made.index, table)).publish(
        {"parents": {}, "build": index_job._version_name(made.index, table)}
    )
    assert index_job.preview(made)["published_already"]
    assert not index_job.preview(experiment())["published_already"], "all splits are another table"


def test_tiles_of_no_split_are_counted_where_only_splits_are_indexed(experiment):
    counts = {"kept": 35, "by_split": {"none": 5, "test": 10, "train": 20}}
    source = experiment().open_workspace().set.draft("s1").publish({"parents": {}, "counts": counts})
    assert index_job.unassigned(source, ("train", "val", "test")) == 5
    assert index_job.unassigned(source, None) == 0, "every tile is indexed"


def test_without_a_run_the_remedy_is_named(experiment):
    with pytest.raises(NotFoundError, match="rayjobs train"):
        chosen_encoder(experiment())
