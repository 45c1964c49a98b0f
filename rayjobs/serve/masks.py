"""Masks of rows as they are sent to another process: by the few rows that are in or out where that is short, else as bits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

_BITS_OF_A_ROW = 64


class PackedMask(NamedTuple):
    """A mask of rows."""

    size: int
    """Rows that it speaks of."""
    form: Literal["in", "out", "bits"]
    numbers: np.ndarray[Any, Any]
    """int64 rows that are in, or out, ascending; or uint8 bits, the first row's highest."""


def packed(mask: BoolArray) -> PackedMask:
    """Pack a mask (rows,)."""
    size, inside = len(mask), int(np.count_nonzero(mask))
    if inside * _BITS_OF_A_ROW < size:
        return PackedMask(size, "in", np.flatnonzero(mask))
    if (size - inside) * _BITS_OF_A_ROW < size:
        return PackedMask(size, "out", np.flatnonzero(~mask))
    return PackedMask(size, "bits", np.packbits(mask))


def unpacked(mask: PackedMask) -> BoolArray:
    """Return the mask (rows,)."""
    if mask.form == "bits":
        return np.unpackbits(mask.numbers, count=mask.size).astype(np.bool_)
    found = np.full(mask.size, mask.form == "out")
    found[mask.numbers] = mask.form == "in"
    return found
