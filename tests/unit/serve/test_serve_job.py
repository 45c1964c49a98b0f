"""What `rayjobs serve --dry-run` says of the index that would be served."""

from __future__ import annotations

import pytest

from rayjobs.config import build
from rayjobs.experiment import Experiment
from rayjobs.serve import job
from rayjobs.storage import open_store
from tests.unit.serve.served_index import COUNT, DIM, publish


@pytest.mark.parametrize(("shards", "rows"), [(1, COUNT), (2, COUNT - 5), (5, COUNT - 5)])
def test_the_plan_says_what_the_largest_shard_maps(tmp_path, shards, rows):
    version = publish(open_store(f"file:{tmp_path}"))
    rasters = {"sources": [{"kind": "files", "uris": ["none.tif"]}]}
    sections = {"name": "places", "workspace": {"uri": f"file:{tmp_path}"}, "rasters": rasters, "serve": {"shards": shards}}
    planned = job.preview(build(Experiment, sections))
    assert (planned["index_version"], planned["rows"], planned["shards"]) == (version.version, COUNT, shards)
    headers = planned["mapped_bytes_per_shard"] - rows * DIM * 4
    assert 0 < headers < 200
