"""`rayjobs sample` in this process: what Ray Data would do on a cluster is done here, one shard after the other."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from rayjobs.config import build
from rayjobs.console import Console
from rayjobs.experiment import Experiment
from rayjobs.sample import job
from rayjobs.storage import Artefact, Version
from rayjobs.tiles.table import read_geoparquet

ALL_TRAIN = {"train": 1.0, "val": 0.0, "test": 0.0}


class _Rows:
    """Of Ray Data what the job asks for; functions travel as they would."""

    def __init__(self, rows):
        self.rows = rows

    def map(self, function, **_):
        return _Rows(map(pickle.loads(pickle.dumps(function)), self.rows))

    def iter_rows(self):
        return iter(self.rows)


@dataclass(frozen=True)
class Sampled:
    """What a command did."""

    result: job.Result
    artefact: Artefact
    said: list[str]
    """Lines on the person's screen."""
    version: Version
    """What was current afterwards."""

    @property
    def tiles(self) -> list[dict[str, Any]]:
        return self.table("tiles.parquet").to_pylist()

    def table(self, name: str) -> pa.Table:
        return read_geoparquet(self.version.read(name))


@pytest.fixture
def experiment(tmp_path) -> Callable[..., Experiment]:
    """Make an experiment of sources, with keys of `rasters` and `tiles`."""

    def make(*sources: dict, rasters: dict | None = None, tiles: dict | None = None) -> Experiment:
        return build(
            Experiment,
            {
                "name": "made-up",
                "workspace": {"uri": str(tmp_path / "workspace")},
                "rasters": {"sources": list(sources)} | (rasters or {}),
                "tiles": {"size": 16, "sampler": {"kind": "grid"}, "splits": ALL_TRAIN} | (tiles or {}),
            },
        )

    return make


@pytest.fixture
def sample(experiment, monkeypatch) -> Callable[..., Sampled]:
    """Run `rayjobs sample` on an experiment made as by `experiment`."""
    monkeypatch.setattr("ray.data.from_items", lambda items, **_: _Rows(items))
    monkeypatch.setattr(job, "joined", lambda *_, **__: contextlib.nullcontext())

    def run(*sources: dict, **sections: dict) -> Sampled:
        made = experiment(*sources, **sections)
        screen = io.StringIO()
        result = job.run(made, Console(io.StringIO(), screen))
        artefact = made.open_workspace().set
        return Sampled(result, artefact, screen.getvalue().splitlines(), artefact.current())

    return run
