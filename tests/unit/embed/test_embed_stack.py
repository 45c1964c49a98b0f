from __future__ import annotations

import numpy as np
import pytest
import torch

from rayjobs.embed.stack import stack, stack_arrays
from rayjobs.tiles.chips import Chip

RNG = np.random.default_rng(0)


def chip(height: int, width: int, dtype: str = "uint8") -> Chip:
    valid = RNG.random((height, width)) < 0.9
    return Chip(tile_id="", pixels=RNG.integers(0, 200, (3, height, width)).astype(dtype), valid=valid)


def test_chips_of_the_wanted_size_stay_as_they_are():
    chips = [chip(16, 16) for _ in range(4)]
    pixels, valid = stack(chips, 16)
    np.testing.assert_array_equal(pixels, np.stack([entry.pixels for entry in chips]))
    np.testing.assert_array_equal(valid, np.stack([entry.valid for entry in chips]))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float32"])
@pytest.mark.parametrize("others", [[], [(20, 20)], [(16, 16)], [(40, 10), (16, 16)]])
def test_what_a_chip_becomes_does_not_depend_on_its_batch(dtype, others):
    one = chip(20, 20, dtype)
    alone_pixels, alone_valid = stack([one], 16)
    pixels, valid = stack([one, *(chip(*shape, dtype) for shape in others)], 16)
    assert pixels.shape[2:] == valid.shape[1:] == (16, 16)
    assert torch.equal(pixels[0], alone_pixels[0])
    assert torch.equal(valid[0], alone_valid[0])


def test_an_even_picture_stays_even():
    even = Chip(tile_id="", pixels=np.full((2, 30, 50), 7000, np.uint16), valid=np.ones((30, 50), bool))
    pixels, valid = stack([even], 16)
    assert pixels.unique().tolist() == [7000]
    assert valid.all()


def test_between_two_codes_of_a_map_there_is_none():
    rng = np.random.default_rng(5)
    values = rng.choice([0, 9], (1, 40, 40)).repeat(2, axis=0).astype(np.uint8)
    pixels, _ = stack_arrays([(values, np.ones((40, 40), bool))], 32, nearest=[1])
    assert set(pixels[0, 1].unique().tolist()) == {0, 9}
    assert len(pixels[0, 0].unique()) > 2
