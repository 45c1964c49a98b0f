"""What a run keeps in the workspace and takes up again: damaged checkpoints, storage that fails, runs that go on as if nothing had been."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import os

import numpy as np
import pytest
import torch

from rayjobs.errors import CheckpointError, PublishConflictError, StorageError, TrainingError
from rayjobs.storage import Lease, open_store
from rayjobs.train import state as states
from rayjobs.train.batches import EpochPlan
from rayjobs.train.mine import Mined
from rayjobs.train.state import publish_mined, save, taken_up
from rayjobs.train.step import train_epoch
from tests.small_run import COUNT, CPU, EPOCHS, IDS, opened

STEPS = 4


@pytest.fixture(params=["file", "s3"])
def uri(request, tmp_path):
    if request.param == "file":
        return f"file:{tmp_path}/workspace"
    return request.getfixturevalue("s3").bucket(f"state-{os.urandom(6).hex()}")


@pytest.fixture
def make(uri):
    """Make a run as a worker does, on a plan whose lease is held."""
    workspace = opened(uri, "").workspace
    with Lease(workspace.store, workspace.lease) as lease:
        yield functools.partial(opened, uri, lease.token)


class CutOffError(Exception):
    """What a SIGKILL is to a test."""


def train(run, *, until=None):
    """Train to the end with a checkpoint after every epoch, or be cut off after so many steps, when a checkpoint has just been made."""
    state = run.state

    def after_step():
        if len(state.losses) == until:
            save(run.plan, state, run.objective)
            raise CutOffError

    while state.epoch < EPOCHS:
        rng = np.random.default_rng(state.epoch)
        if state.batches is None:
            members = np.stack([rng.permutation(COUNT)[:4] for _ in range(STEPS)])
            state.batches = EpochPlan(members=members, groups=np.tile([0, 0, 1, 1], (STEPS, 1)))
        train_epoch(run.on, state, state.batches, after_step)
        state.epoch, state.step, state.batches = state.epoch + 1, 0, None
        save(run.plan, state, run.objective, last=state.epoch == EPOCHS)
    return run


def weights(run):
    return torch.cat([value.double().flatten() for value in run.state.module.state_dict().values()])


def test_a_run_that_was_cut_off_within_epochs_ends_as_one_that_was_not(make):
    cut_off = []
    for until in (3, 4, 6):
        run = make()
        cut_off.append(len(run.state.losses))
        with pytest.raises(CutOffError):
            train(run, until=until)
    again = train(make())
    assert cut_off == [0, 3, 4]
    assert [message["step"] for message in again.told if message["kind"] == "resumed"] == [2]
    whole = again.workspace.checkpoints
    for key in whole.store.list(whole.prefix):
        whole.store.delete(key)
    straight = train(make())
    assert straight.told[0]["kind"] != "resumed"
    assert list(straight.state.losses) == list(again.state.losses)
    assert len(straight.state.losses) == STEPS * EPOCHS
    torch.testing.assert_close(weights(straight), weights(again), rtol=0, atol=0)
    assert whole.finished() == ["epoch-0002", "epoch-0003"]


def published(make, count):
    run = make()
    for epoch in range(1, count + 1):
        run.state.epoch = epoch
        run.state.module.projection.bias.data.fill_(epoch)
        save(run.plan, run.state, run.objective)
    return run


DAMAGES = {
    "missing": lambda store, key, _: store.delete(key),
    "cut short": lambda store, key, data: store.write(key, data[: len(data) // 2]),
    "another": lambda store, key, data: store.write(key, data[:-1] + bytes([data[-1] ^ 1])),
}


@pytest.mark.parametrize(("damage", "file"), list(itertools.product(DAMAGES, ["state.pt", "model.safetensors", "manifest.json"])))
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(make, damage, file):
    if (damage, file) == ("another", "manifest.json"):
        pytest.skip("one bit of a manifest's white space changes nothing")
    checkpoints = published(make, 3).workspace.checkpoints
    key = f"{checkpoints.prefix}epoch-0003/{file}"
    DAMAGES[damage](checkpoints.store, key, checkpoints.store.read(key))
    again = make()
    assert again.state.epoch == 2
    if (damage, file) != ("missing", "manifest.json"):  # then it is none, and there is nothing to say
        [said] = [message["text"] for message in again.told if message["kind"] == "damaged"]
        assert "epoch-0003" in said
        assert "epoch-0002 before it is taken" in said
    assert checkpoints.current().version == "epoch-0002"
    again.state.epoch = 3
    again.state.module.projection.bias.data.fill_(3)
    save(again.plan, again.state, again.objective)
    assert checkpoints.current().version == "epoch-0003"
    assert checkpoints.current().damage() is None


@pytest.mark.parametrize("spoilt", [("module",), ("average",), ("module", "average")])
def test_weights_that_are_not_finite_are_not_published(make, spoilt):
    run = published(make, 2)
    run.state.epoch = 3
    for name in spoilt:
        module = run.state.module if name == "module" else run.state.average.module
        module.projection.bias.data[0] = torch.nan
    with pytest.raises(TrainingError, match=r"not finite after 3 epochs.*lower train\.learning_rate"):
        save(run.plan, run.state, run.objective, last=True)
    assert run.workspace.checkpoints.current().version == "epoch-0002"


def test_a_gradient_that_is_not_finite_in_the_last_step_ends_the_run(make):
    run = published(make, 1)
    weight = run.state.module.projection.weight
    seen = itertools.count(1)
    weight.register_hook(lambda gradient: gradient * torch.nan if next(seen) == 2 * STEPS else gradient)  # the loss was finite before it
    with pytest.raises(TrainingError, match="weights are not finite"):
        train(run)
    assert math.isfinite(run.state.losses[-1])
    assert run.workspace.checkpoints.finished() == ["epoch-0001", "epoch-0002"]


def changed(make, epoch, change):
    """Publish a checkpoint that is whole, and of which `change` has spoilt the contents of state.pt, as files by name."""
    run = make()
    run.state.epoch = epoch
    files = states._saved(run.state, run.objective)
    change(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_saved", lambda *_: files)
        patch.setattr(states, "all_finite", lambda _: True)
        save(run.plan, run.state, run.objective)
    assert run.workspace.checkpoints.current().damage() is None


def spoil(run):
    run.state.epoch = 3
    for module in (run.state.module, run.state.average.module):
        module.projection.bias.data.fill_(torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "all_finite", lambda _: True)
        save(run.plan, run.state, run.objective)
    assert run.workspace.checkpoints.current().version == "epoch-0003"


@pytest.mark.parametrize("kept", [1, 2])
def test_an_unusable_checkpoint_is_withdrawn_so_that_training_can_publish_it_again(make, kept):
    spoil(published(make, 2))
    again = make(keep_checkpoints=kept)
    assert again.state.epoch == 2
    [said] = [message["text"] for message in again.told if message["kind"] == "damaged"]
    assert "epoch-0003 cannot be used" in said
    assert "epoch-0002 before it is taken" in said
    checkpoints = again.workspace.checkpoints
    assert checkpoints.current().version == "epoch-0002"
    again.state.epoch, again.state.step = 2, 2
    again.state.batches = EpochPlan(members=np.zeros((STEPS, 4), np.int64), groups=np.zeros((STEPS, 4), np.int64))
    save(again.plan, again.state, again.objective)
    assert checkpoints.finished()[-1] == "epoch-0002-step-00000002"
    again.state.epoch, again.state.step = 3, 0
    save(again.plan, again.state, again.objective)
    assert checkpoints.finished() == ["epoch-0002-step-00000002", "epoch-0003"][-kept:]
    assert make().state.epoch == 3


def test_a_training_state_of_another_layout_is_withdrawn_and_the_one_before_taken(make):
    published(make, 2)
    changed(make, 3, lambda saved: saved.pop("optimizer"))
    again = make()
    assert again.state.epoch == 2
    [said] = [message["text"] for message in again.told if message["kind"] == "damaged"]
    assert "epoch-0003 cannot be used (state.pt: optimizer" in said
    assert again.workspace.checkpoints.finished() == ["epoch-0002"]


def test_a_checkpoint_of_another_epoch_than_its_name_says_is_withdrawn(make):
    published(make, 1)
    changed(make, 2, lambda saved: saved.update(epoch=1))
    assert make().state.epoch == 1


def test_without_any_sound_checkpoint_it_begins_anew(make):
    checkpoints = published(make, 2).workspace.checkpoints
    for name in checkpoints.finished():
        checkpoints.store.delete(f"{checkpoints.prefix}{name}/state.pt")
    again = make()
    assert again.state.epoch == 0
    assert len([message for message in again.told if message["kind"] == "damaged"]) == 2
    assert checkpoints.current() is None


def test_a_version_that_was_not_made_current_in_time_is_taken(make):
    checkpoints = published(make, 2).workspace.checkpoints
    checkpoints.store.write(checkpoints.pointer, b'{"version": "epoch-0001"}')
    assert make().state.epoch == 2
    assert checkpoints.current().version == "epoch-0002"
    checkpoints.store.write(checkpoints.pointer, b"{")
    assert make().state.epoch == 2
    assert checkpoints.current().version == "epoch-0002"


def test_what_a_killed_command_left_unfinished_is_swept_and_counts_for_nothing(make):
    checkpoints = published(make, 2).workspace.checkpoints
    checkpoints.store.write(f"{checkpoints.prefix}epoch-0002-step-00000003/state.pt", b"half")
    run = make()
    run.state.epoch = 3
    save(run.plan, run.state, run.objective)
    assert checkpoints.finished() == ["epoch-0002", "epoch-0003"]
    assert not checkpoints.store.list(f"{checkpoints.prefix}epoch-0002-step")


def refused(monkeypatch, times, error=StorageError):
    """Have the next writes to the workspace fail."""
    left = itertools.count()
    real = states.Lease.held

    def held(*given):
        if next(left) < times:
            raise error("the store said 503 SlowDown")
        return real(*given)

    monkeypatch.setattr(states.Lease, "held", staticmethod(held))


def test_a_checkpoint_that_fails_is_said_counted_and_made_up_for_by_the_next(make, monkeypatch):
    run = published(make, 1)
    refused(monkeypatch, 1)
    run.state.epoch = 2
    assert save(run.plan, run.state, run.objective) is False
    assert run.state.failed_uploads == 1
    assert run.told[-1] == {"kind": "upload_failed", "what": "checkpoint epoch-0002", "reason": "the store said 503 SlowDown", "wait": None}
    assert run.workspace.checkpoints.current().version == "epoch-0001"
    run.state.epoch = 3
    assert save(run.plan, run.state, run.objective) is True
    assert run.workspace.checkpoints.current().version == "epoch-0003"
    assert make().state.failed_uploads == 1


def test_the_last_checkpoint_is_tried_again_until_it_must_fail(make, monkeypatch):
    monkeypatch.setattr(states.time, "sleep", lambda _: None)
    run = published(make, 1)
    run.state.epoch = 2
    refused(monkeypatch, 3)
    assert save(run.plan, run.state, run.objective, last=True)
    refused(monkeypatch, 99)
    run.state.epoch = 3
    with pytest.raises(StorageError, match="the last checkpoint could not be published"):
        save(run.plan, run.state, run.objective, last=True)
    refused(monkeypatch, 1, PublishConflictError)
    with pytest.raises(PublishConflictError):
        save(run.plan, run.state, run.objective)


def test_a_run_that_another_command_took_over_ends(make):
    run = published(make, 1)
    store, lease = run.workspace.store, run.workspace.lease
    found = store.read_tagged(lease)
    store.write(lease, found.data.replace(run.plan.lease.encode(), b"0" * 32))
    with pytest.raises(TrainingError, match="taken over"):
        save(run.plan, run.state, run.objective)
    store.write(lease, found.data)


def mined(seed):
    rng = np.random.default_rng(seed)
    candidates = np.stack([(tile + 1 + rng.permutation(COUNT - 1)[:2]) % COUNT for tile in range(COUNT)])
    scores = rng.random((COUNT, 2)).astype(np.float32)
    return Mined(candidates=candidates, scores=scores, positives=candidates[:, :0], positive_scores=scores[:, :0], refused={}, search="")


def test_a_mining_table_that_fails_is_used_and_published_with_the_next_checkpoint(make, monkeypatch):
    run = published(make, 1)
    real = states.publish_table
    monkeypatch.setattr(states, "publish_table", lambda *_: (_ for _ in ()).throw(StorageError("503")))
    publish_mined(run.plan, run.state, mined(0), IDS)
    np.testing.assert_array_equal(run.state.mined.negatives, mined(0).candidates)
    assert (run.state.generation, run.state.failed_uploads) == (1, 1)
    assert run.workspace.mining.current() is None
    run.state.epoch = 2
    assert not save(run.plan, run.state, run.objective), "a checkpoint names no generation that is not there"
    monkeypatch.setattr(states, "publish_table", real)
    run.state.epoch = 3
    assert save(run.plan, run.state, run.objective)
    again = make()
    np.testing.assert_array_equal(again.state.mined.negatives, mined(0).candidates)
    assert (again.state.epoch, again.state.generation) == (3, 1)


def damaged(table):
    table.store.write(f"{table.prefix}generation-0002/mined.parquet", b"PAR1")


def of_other_tiles(table):
    """Publish in its place one that is whole, and speaks of tiles that this run does not have."""
    table.store.delete(f"{table.prefix}generation-0002/manifest.json")
    draft = table.draft("generation-0002")
    draft.write("mined.parquet", mined(2).parquet([f"other {name}" for name in IDS]))
    draft.publish({"generation": 2})


def test_what_is_no_table_makes_way_for_a_generation(make):
    run = published(make, 1)
    draft = run.workspace.mining.draft("generation-0001")
    draft.write("mined.parquet", b"no table")
    draft.publish({"generation": 1})
    publish_mined(run.plan, run.state, mined(0), IDS)
    np.testing.assert_array_equal(run.state.mined.negatives, mined(0).candidates)
    assert run.workspace.mining.at("generation-0001").read("mined.parquet") == mined(0).parquet(IDS)


@pytest.mark.parametrize("spoil", [damaged, of_other_tiles])
def test_a_mining_generation_that_cannot_be_used_is_said_and_the_one_before_taken(make, spoil):
    run = published(make, 1)
    for epoch in (1, 2):
        run.state.epoch = epoch
        publish_mined(run.plan, run.state, mined(epoch), IDS)
    run.state.epoch = 3
    save(run.plan, run.state, run.objective)
    spoil(run.workspace.mining)
    again = make()
    assert (again.state.epoch, again.state.generation) == (3, 1)
    np.testing.assert_array_equal(again.state.mined.negatives, mined(1).candidates)
    [said] = [message["text"] for message in again.told if message["kind"] == "damaged"]
    assert "generation-0002" in said
    assert "generation-0001 before it is taken" in said


def test_state_holds_tensors_and_plain_values_alone(make):
    run = make()
    with pytest.raises(CutOffError):
        train(run, until=2)
    version = run.workspace.checkpoints.current()
    assert version.version == "epoch-0000-step-00000002"
    assert torch.load(io.BytesIO(version.read("state.pt")), weights_only=True)["batches"]["members"].shape == (STEPS, 4)


def test_a_run_that_goes_on_asks_for_no_pretrained_weights(tmp_path):
    uri = f"file:{tmp_path}/workspace"
    with Lease(open_store(uri), "runs/x/lease") as lease:
        run = opened(uri, lease.token)
        model = dataclasses.replace(run.plan.experiment.model, pretrained=str(tmp_path / "gone.safetensors"))
        plan = dataclasses.replace(run.plan, experiment=dataclasses.replace(run.plan.experiment, model=model))
        with pytest.raises(CheckpointError, match="gone"):
            taken_up(plan, run.objective, CPU, IDS)
        run.state.epoch = 1
        assert save(run.plan, run.state, run.objective)
        again = taken_up(plan, run.objective, CPU, IDS)
        assert again.epoch == 1
        for name, value in run.state.module.state_dict().items():
            torch.testing.assert_close(again.module.state_dict()[name], value, rtol=0, atol=0)
        checkpoint = run.workspace.checkpoints.current()
        run.workspace.store.write(checkpoint.prefix + "state.pt", b"damaged")
        with pytest.raises(CheckpointError, match="gone"):  # rather than go on from weights at random
            taken_up(plan, run.objective, CPU, IDS)
