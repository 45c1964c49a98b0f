from __future__ import annotations

import numpy as np
import pytest

from rayjobs.tiles import chips


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_shard_gives_back_its_chips_and_tells_of_every_tile(dtype):
    rng = np.random.default_rng(0)
    pixels = (rng.random((3, 5, 7)) * 200).astype(dtype)
    valid = rng.random((5, 7)) < 0.7
    rows = [
        chips.row_without_pixels("c", chips.SPARSE, "too few valid pixels", 0.2),
        chips.row(chips.Chip(tile_id="b", pixels=pixels, valid=valid), label_fractions=[0.25, 0.75], label_coverage=1.0),
        chips.row_without_pixels("a", chips.UNREADABLE, "cut short"),
        chips.row(chips.Chip(tile_id="d", pixels=pixels[:, :4, :4], valid=np.ones((4, 4), bool))),
    ]
    data = chips.shard_bytes(rows, dtype, {"count": 3})

    found = chips.read_chips(data)
    assert [chip.tile_id for chip in found] == ["b", "d"]
    assert found[0].pixels.dtype == dtype
    assert np.array_equal(found[0].pixels, pixels)
    assert np.array_equal(found[0].valid, valid)
    assert np.array_equal(found[1].pixels, pixels[:, :4, :4])
    assert found[1].valid.all()
    assert [chip.tile_id for chip in chips.read_chips(data, {"d", "c"})] == ["d"]

    told = chips.outcome(data)
    assert told.table["tile_id"].to_pylist() == ["a", "b", "c", "d"]
    assert told.table["status"].to_pylist() == [chips.UNREADABLE, chips.KEPT, chips.SPARSE, chips.KEPT]
    assert told.sums == {"count": 3}


def test_the_same_rows_give_the_same_bytes():
    chip = chips.Chip(tile_id="b", pixels=np.ones((1, 2, 2), np.uint8), valid=np.ones((2, 2), bool))
    rows = [chips.row(chip), chips.row_without_pixels("a", chips.SPARSE, "no")]
    assert chips.shard_bytes(rows, "uint8", None) == chips.shard_bytes(rows[::-1], "uint8", None)
