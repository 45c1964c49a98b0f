"""What of a training state is refused before it is taken up: every part, missing or of another shape."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayjobs.errors import CheckpointError
from rayjobs.metric.section import MiningSection
from rayjobs.models.checkpoint import read_training_state, training_state_bytes
from rayjobs.train import state as states
from rayjobs.train.batches import EpochPlan
from rayjobs.train.layout import all_finite, check_counts, check_fits, read_mined
from rayjobs.train.mine import SCHEMA, from_table
from rayjobs.train.optimizers import MOMENTS
from rayjobs.train.step import train_epoch
from tests.small_run import COUNT, opened

IDS = ["a", "b", "c"]
MINING = MiningSection(negatives=2, positives=1)
STEPS = 2
ONE = torch.ones(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run after a step, so that the optimizer has moments."""
    made = opened(f"file:{tmp_path_factory.mktemp('layout')}", "token")
    members = np.arange(4 * STEPS).reshape(STEPS, 4)
    made.state.batches = EpochPlan(members=members, groups=np.tile([0, 0, 1, 1], (STEPS, 1)))
    train_epoch(made.on, made.state, made.state.batches)
    return made


def checked(run, change=lambda _: None):
    saved = read_training_state(training_state_bytes(states._saved(run.state, run.objective)))
    change(saved)
    check_counts(saved)
    check_fits(saved, states._saved(run.state, run.objective), run.state.optimizer, MOMENTS["adamw"], tiles=COUNT)


def test_what_is_kept_can_be_taken_up(run):
    checked(run)


LAYOUTS = {
    "another format": lambda saved: saved.update(format=1),
    "a least loss that is no number": lambda saved: saved.update(least=float("nan")),
    "no format": lambda saved: saved.pop("format"),
    "no epoch": lambda saved: saved.pop("epoch"),
    "a step that is no number": lambda saved: saved.update(step="two"),
    "a generation below nothing": lambda saved: saved.update(generation=-1),
    "no optimizer": lambda saved: saved.pop("optimizer"),
    "no group": lambda saved: saved["optimizer"]["param_groups"].clear(),
    "a group of other parameters": lambda saved: saved["optimizer"]["param_groups"][0].update(params=[10**9]),
    "moments of another optimizer": lambda saved: saved["optimizer"]["state"].update({0: {"momentum_buffer": ONE}}),
    "moments of another shape": lambda saved: saved["optimizer"]["state"].update({0: dict.fromkeys(("exp_avg", "exp_avg_sq"), ONE)}),
    "moments of no parameter": lambda saved: saved["optimizer"]["state"].update({10**9: {}}),
    "no memory": lambda saved: saved["objective"].pop("memory"),
    "a memory of another size": lambda saved: saved["objective"]["memory"].update(embeddings=ONE),
    "no average": lambda saved: saved.pop("average"),
    "weights that are not finite": lambda saved: saved.update(module={name: value * torch.nan for name, value in saved["module"].items()}),
    "clusters of other tiles": lambda saved: saved.update(
        clusters={"centres": ONE[:, None], "classes": ONE, "of_item": ONE, "variance": 1.0}
    ),
    "batches of a step beyond them": lambda saved: saved.update(step=STEPS + 1),
    "batches that point to no tile": lambda saved: saved["batches"]["members"].fill_(COUNT),
    "batches without groups": lambda saved: saved["batches"].pop("groups"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_is_refused(run, layout):
    with pytest.raises(CheckpointError, match=r"state\.pt.*take another checkpoint"):
        checked(run, LAYOUTS[layout])


def test_finite_numbers():
    assert all_finite({})
    assert all_finite({"a": ONE, "b": torch.tensor(3)})
    assert not all_finite({"a": ONE, "b": torch.tensor([1.0, torch.inf])})


ROW = {"anchor_id": "a", "candidate_id": "b", "kind": "negative", "rank": 1, "score": 0.5}


def parquet(*rows, schema=SCHEMA):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), buffer)
    return buffer.getvalue()


def test_a_mining_table_of_this_run_is_read():
    table = read_mined(parquet(ROW, ROW | {"candidate_id": "c", "rank": 2}, ROW | {"kind": "positive"}), IDS, MINING)
    hard = from_table(table, IDS)
    assert hard.negatives[0].tolist() == [1, 2]
    assert hard.positives[0].tolist() == [1]
    assert not read_mined(parquet(), IDS, MINING).num_rows


TABLES = {
    "no file of that kind": b"PAR1 is not enough",
    "no rank": parquet(ROW, schema=SCHEMA.remove(3)),
    "ranks as text": parquet({**ROW, "rank": "1"}, schema=SCHEMA.set(3, pa.field("rank", pa.string()))),
    "a tile that is not known": parquet(ROW | {"candidate_id": "z"}),
    "no anchor": parquet(ROW | {"anchor_id": None}),
    "itself": parquet(ROW | {"candidate_id": "a"}),
    "rank 0": parquet(ROW | {"rank": 0}),
    "a rank that would fill the memory": parquet(ROW | {"rank": 2**31 - 1}),
    "more positives than are mined": parquet(ROW | {"kind": "positive", "rank": 2}),
    "another kind": parquet(ROW | {"kind": "neutral"}),
    "more rows than are mined": parquet(*[ROW] * 10),
}


@pytest.mark.parametrize("table", TABLES)
def test_another_mining_table_is_refused(table):
    with pytest.raises(CheckpointError, match=r"mined\.parquet .*take another generation"):
        read_mined(TABLES[table], IDS, MINING)
