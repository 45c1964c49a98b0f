"""What `rayjobs train --dry-run` refuses before anything is read: the workspace, the backbone, a run of another experiment."""

from __future__ import annotations

import dataclasses
import io
import signal
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray.train.torch

from rayjobs.config import build
from rayjobs.console import Console
from rayjobs.errors import CheckpointError, ConfigError, NotFoundError, RayjobsError, TrainingError
from rayjobs.experiment import Experiment
from rayjobs.models.pretrained import require_weights
from rayjobs.storage import Lease, open_store, read_uri
from rayjobs.tiles.table import SCHEMA, geoparquet_bytes
from rayjobs.train import job, loop
from rayjobs.train.patience import check_patience
from rayjobs.train.state import save
from tests.small_run import EPOCHS, opened


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
    job._pinned(made, workspace, source).begin()
    job._pinned(made, workspace, source).begin()
    with pytest.raises(ConfigError, match=r"begun with another experiment \(train.steps_per_epoch: null -> 4\)"):
        job.preview(experiment(train={"steps_per_epoch": 4}))


FREE = {"train": {"ask_every": 3, "checkpoint_steps": 7, "num_workers": 2}, "mining": {"num_cpus": 2.0, "num_gpus": 0.5}}


def test_what_decides_nothing_that_is_learned_may_change(experiment):
    made, changed = experiment(), experiment(**FREE)
    workspace = made.open_workspace()
    source = workspace.set.draft("s1").publish({"parents": {}})
    job._pinned(made, workspace, source).begin()
    assert job._pinned(changed, workspace, source).begun()


def published_target(workspace, version, bands=("red", "green", "blue"), split="train", name="other", **manifest):
    known = {"tile_id": "a", "scene_id": "s", "place_id": "p", "block_id": "b", "split": split}
    columns = {field.name: [known.get(field.name) if field.nullable or field.name in known else 0] for field in SCHEMA}
    tiles = pa.table({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}, SCHEMA)
    draft = workspace.named_set(name).draft(version)
    draft.write("tiles.parquet", geoparquet_bytes(tiles))
    draft.publish({"parents": {}, "bands": list(bands), **manifest})


ADAPTED = {"adaptation": {"target": "other"}, "model": {"backbone": "resnet10t", "domain_whitening": {}}}


def test_the_set_that_is_adapted_to_decides_what_is_learned(experiment):
    made = experiment(**ADAPTED)
    workspace = made.open_workspace()
    source = workspace.set.draft("s1").publish({"parents": {}})
    with pytest.raises(NotFoundError, match=r"sample a set named other, or correct adaptation\.target"):
        job._pinned(made, workspace, source)
    published_target(workspace, "o1")
    job._pinned(made, workspace, source).begin()
    published_target(workspace, "o2")
    with pytest.raises(ConfigError, match="target_version: 'o1' -> 'o2'"):
        job._pinned(made, workspace, source).begun()


def test_a_set_of_other_bands_or_without_training_tiles_cannot_be_adapted_to(experiment):
    made = experiment(**ADAPTED)
    manifest = {"bands": ["red", "green", "blue"], "band_mean": [1.0] * 3, "band_std": [1.0] * 3, "tile_size": 32, "resolution_m": None}
    source, ground = SimpleNamespace(manifest=manifest | {"dtype": "uint8"}), SimpleNamespace(classes=0)
    workspace = made.open_workspace()
    published_target(workspace, "o1")
    job.check(made, source, ground)
    published_target(workspace, "o2", bands=("red", "nir"))
    with pytest.raises(CheckpointError, match="red, nir"):
        job.check(made, source, ground)
    published_target(workspace, "o3", split="test")
    with pytest.raises(ConfigError, match="no tile in its train split"):
        job.check(made, source, ground)


def test_a_name_is_not_taken_by_what_is_refused(experiment):
    refused, corrected = experiment(tiles={"size": None}), experiment(tiles={"size": None}, model={"input_size": 64})
    workspace = refused.open_workspace()
    manifest = {"bands": ["red"], "band_mean": [1.0], "band_std": [1.0], "tile_size": None, "resolution_m": None, "dtype": "uint8"}
    draft = workspace.set.draft("s1")
    draft.write("tiles.parquet", geoparquet_bytes(SCHEMA.empty_table()))
    draft.publish({"parents": {}, "counts": {}} | manifest)
    with pytest.raises(RayjobsError) as refusal:
        job.run(refused, Console(io.StringIO(), io.StringIO()))
    assert "begun with another experiment" not in str(refusal.value)
    job._pinned(corrected, workspace, workspace.set.current()).begun()


def test_a_run_that_has_a_checkpoint_needs_nothing_of_the_run_that_it_began_with(tmp_path):
    uri = f"file:{tmp_path}"
    with Lease(open_store(uri), "runs/x/lease") as lease:
        run = opened(uri, lease.token)
        run.state.epoch = EPOCHS
        assert save(run.plan, run.state, run.objective, last=True)
    known = {"band_mean": [1.0], "band_std": [1.0], "tile_size": 8, "resolution_m": None, "dtype": "uint8", "counts": {}}
    published_target(run.workspace, "s1", bands=["a"], name="x", **known)
    done = dataclasses.replace(run.plan.experiment, model=dataclasses.replace(run.plan.experiment.model, pretrained="run:gone"))
    console = Console(io.StringIO(), io.StringIO())
    assert job.run(done, console).epochs == EPOCHS
    new = dataclasses.replace(done, workspace=dataclasses.replace(done.workspace, run="new"))
    with pytest.raises(NotFoundError, match="which run:gone names"):
        job.run(new, console)
    assert not job._pinned(new, new.open_workspace(), new.open_workspace().set.current()).begun()


@pytest.mark.parametrize("weights", ["nowhere.safetensors", "picture.safetensors"])
def test_weights_that_cannot_be_had_are_refused_by_the_plan(weights, tmp_path):
    (tmp_path / "picture.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"model\.pretrained"):
        require_weights(str(tmp_path / weights), "resnet18")


def test_more_epochs_than_names_can_sort_are_refused(experiment):
    assert experiment(train={"epochs": 9999})
    with pytest.raises(ConfigError, match="9999"):
        experiment(train={"epochs": 10000})


def test_a_run_that_ended_short_of_its_epochs_is_no_success(experiment):
    two, three = (experiment(train={"epochs": epochs}) for epochs in (2, 3))
    with pytest.raises(TrainingError, match="ended after 0 of 2 epochs"):
        job._check_reached_end(two)
    two.open_workspace().checkpoints.draft("epoch-0002").publish({"epoch": 2})
    job._check_reached_end(two)
    with pytest.raises(TrainingError, match="ended after 2 of 3 epochs"):
        job._check_reached_end(three)


def test_a_run_whose_patience_came_to_its_end_is_one(experiment):
    made = experiment(train={"epochs": 9, "patience": 1})
    made.open_workspace().checkpoints.draft("epoch-0002").publish({"epoch": 2, "over": True})
    job._check_reached_end(made)


def test_weights_of_another_run_are_those_of_its_newest_checkpoint(experiment):
    made = experiment(model={"pretrained": "run:simclr"})
    with pytest.raises(NotFoundError, match="train run 'simclr', which run:simclr names, first"):
        made.with_weights()
    donor = experiment(workspace={"uri": made.workspace.uri, "run": "simclr"}).open_workspace()
    for epoch in (1, 2):
        draft = donor.checkpoints.draft(f"epoch-000{epoch}")
        draft.write("model.safetensors", f"weights {epoch}".encode())
        draft.publish({"epoch": epoch})
    assert read_uri(made.with_weights().model.pretrained) == b"weights 2"
    assert experiment(model={"pretrained": "none"}).with_weights().model.pretrained == "none"


@pytest.mark.parametrize(
    ("given", "watched", "message"),
    [
        ({}, True, r"tune\.scheduler"),
        ({"model": {"projection": "hash"}}, False, "rounded"),
        ({"loss": {"kind": "magnet"}}, False, "clusters"),
    ],
)
def test_patience_without_a_loss_to_look_at_is_refused(experiment, given, watched, message):
    with pytest.raises(ConfigError, match=message):
        check_patience(experiment(train={"patience": 2}, **given), None, None, watched=watched)
    check_patience(experiment(**given), None, None, watched=watched)


def test_ctrl_c_stays_ours_while_ray_trains():
    assert hasattr(ray.train.torch.TorchTrainer, "_register_sigint_handler"), "the hook that we leave empty is Ray's"
    before = signal.getsignal(signal.SIGINT)
    job._Trainer._register_sigint_handler(SimpleNamespace(), None)
    assert signal.getsignal(signal.SIGINT) is before


class Told:
    """A plan whose driver keeps what it is told."""

    def __init__(self, *, together=True, failed_before=()):
        self.errors, self._failed, self._together = [], set(failed_before), together

    def failures(self):
        return self._failed

    def tell_failure(self, error):
        self.errors.append(error)
        return self._together


@pytest.mark.parametrize("error", [TrainingError("the loss is not finite"), ConfigError("no such key")])
def test_what_no_restart_mends_is_told_and_ends_the_worker(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(loop, "_train", fail)
    met = Told()
    loop.loop({"plan": met})
    assert met.errors == [error]
    with pytest.raises(type(error)):  # one rank alone: the others would wait for it for ever
        loop.loop({"plan": Told(together=False)})


def test_a_worker_that_is_started_again_after_such_a_failure_ends_at_once(monkeypatch):
    monkeypatch.setattr(loop, "_train", lambda _: pytest.fail("it trains"))
    loop.loop({"plan": Told(failed_before={1})})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, []),
        ({"train": {"batch_size": 512}}, ["train.batch_size 512 is more than the 40 tiles"]),
        ({"train": {"num_workers": 5, "cpus_per_worker": 2}, "ray": {"num_cpus": 4}}, ["want 10 CPUs, and this machine has 4"]),
        ({"train": {"num_workers": 5}, "ray": {"num_cpus": 4, "address": "head:6379"}}, []),
        ({"train": {"sync_batch_norm": True}, "ray": {"gpu": "no"}}, ["works on GPUs alone"]),
        ({"model": {"domain_whitening": {"group_size": 32}}}, ["covariance of 32 features from 32 tiles at a time"]),
        ({"model": {"domain_whitening": {"group_size": 8}}}, []),
        ({"model": {"domain_whitening": {"group_size": 8}}, "train": {"micro_batch": 6}}, ["from 6 tiles at a time"]),
    ],
)
def test_the_plan_says_what_is_hardly_meant(experiment, keys, said, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    keys = keys | {"train": {"batch_size": 32} | keys.get("train", {})}
    found = job._cautions(experiment(**keys), SimpleNamespace(anchors=range(40)))
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))
