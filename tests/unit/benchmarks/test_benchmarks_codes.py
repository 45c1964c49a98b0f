"""The benchmark of codes, small: its numpy side beside distances counted bit by bit, and the whole, which compares its sides itself."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import codes


def test_a_scan_finds_the_nearest_ties_by_row():
    held, query = codes.made(4000, 1), codes.made(1, 2)[0]
    bits = np.unpackbits(held, axis=1) != np.unpackbits(query)
    wanted = sorted(range(4000), key=lambda row: (bits[row].sum(), row))
    for count in (1, 10, 500):
        distances, rows = codes.scanned(held, query, count)
        assert rows.tolist() == wanted[:count]
        assert distances.tolist() == [bits[row].sum() for row in wanted[:count]]


@pytest.mark.usefixtures("capsys")
def test_every_figure_is_there():
    figures = codes.run(codes.Sizes(rows=3000, per_segment=1500, alone=2, together=4, scans=1, rounds=2))
    ratios = {f"codes_{name}_at_{count}_{side}_ratio" for name in ("alone", "together") for count in (10, 64) for side in ("qps", "numpy")}
    assert ratios < set(figures)
    assert figures["codes_rows"] == 3000
    assert figures["codes_bytes_per_vector"] == pytest.approx(16, abs=0.1)
