"""Pictures of a sweep can be drawn of whatever a sweep may hold."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from rayjobs.tune.pictures import _places, best_so_far, curves, importance_chart, parallel


def entry(number, value, **values):
    return {"number": number, "run": f"r{number}", "value": value, "values": values, "ended": "finished", "history": [[1, value]]}


MIXED = [entry(1, 0.2, a=1, b="x", c=True), entry(2, 0.2, a=2.5, b=None, d=[0.5, 1.0]), entry(3, 0.9, a=1e-6, b="$y$", c=False)]
MANY = [entry(number, number / 40, rate=10.0 ** -(number / 10)) for number in range(40)]


@pytest.mark.parametrize("trials", [MIXED[:1], MIXED, MANY], ids=["one", "mixed", "many"])
def test_pictures_are_drawn(trials):
    drawn = [
        parallel(trials, "MAP@R", "r3"),
        curves(trials, "MAP@R", "r3"),
        best_so_far(trials, "MAP@R"),
        importance_chart({"a": 0.7, "b": 0.3}),
    ]
    for data in drawn:
        image = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("L"))
        assert min(image.shape) > 50
        assert image.std() > 3, "something is drawn"


def test_values_stand_on_their_axis_in_order_and_absent_ones_below():
    places, ticks = _places([4, None, 1, 2])
    np.testing.assert_allclose(places, [1, -0.08, 0, 0.5])
    assert ticks == {"1": 0, "2": 0.5, "4": 1, "none": -0.08}
    many = [10.0**-power for power in range(20)]
    places, ticks = _places(many)
    np.testing.assert_allclose(places, np.linspace(1, 0, 20), atol=1e-12)
    assert ticks == {"1e-19": 0, "1": 1}
