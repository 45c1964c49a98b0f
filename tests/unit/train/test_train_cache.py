from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from rayjobs.storage import FileDigest
from rayjobs.train import cache


def rows(count: int, start: int = 0) -> dict[str, np.ndarray]:
    index = np.arange(start, start + count)
    return {
        "index": index,
        "pixels": np.tile(index[:, None, None, None], (1, 2, 4, 4)).astype(np.uint8),
        "valid": np.ones((count, 4, 4), bool),
    }


def test_chips_come_back_by_their_index(tmp_path):
    cache.fill(tmp_path / "chips", iter([rows(3, 4), rows(4)]), 7)
    found = cache.opened(tmp_path / "chips")
    np.testing.assert_array_equal(found.pixels[:, 0, 0, 0], np.arange(7))
    assert found.valid.all()


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield rows(3)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        cache.fill(tmp_path / "chips", broken(), 7)
    assert not list(tmp_path.iterdir())


def test_the_folder_is_named_by_what_the_chips_are_made_of():
    def source(*digests: str) -> SimpleNamespace:
        names = ["tiles.parquet", "chips/part-00000.parquet", "experiment.yaml"]
        return SimpleNamespace(files=[FileDigest(name, digest, 1) for name, digest in zip(names, digests, strict=True)])

    def folder(*digests: str, tiles: str = "pqr", size: int = 8):
        return cache.cache_folder(source(*digests), pa.table({"tile_id": list(tiles)}), size)

    one = folder("a", "b", "c")
    assert one == folder("a", "b", "other")
    others = [folder("a", "x", "c"), folder("x", "b", "c"), folder("a", "b", "c", tiles="pq"), folder("a", "b", "c", size=9)]
    assert len({one, *others}) == 5


def test_chips_that_nobody_opened_for_days_go(tmp_path):
    for name in ("ours", "stale", "fresh", ".left-by-a-killed-worker"):
        (tmp_path / name).mkdir()
    for name in ("ours", "stale", ".left-by-a-killed-worker"):
        os.utime(tmp_path / name, (0, 0))
    cache.drop_old(tmp_path / "ours")
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "fresh"}
    cache.drop_old(tmp_path / "nowhere" / "chips")
