from __future__ import annotations

import pytest

from rayjobs.evaluate.job import _cautions


@pytest.mark.parametrize(
    ("ks", "gallery", "units", "words"),
    [((1, 10), 500, 30, []), ((1, 10), 9, 30, ["evaluate.ks"]), ((1,), 500, 9, ["9 independent units"]), ((10,), 10, 3, ["units", "[10]"])],
)
def test_a_report_says_what_keeps_its_figures_from_saying_much(ks, gallery, units, words):
    found = _cautions(ks, gallery, units)
    assert len(found) == len(words)
    assert all(word in caution for word, caution in zip(words, found, strict=True))
