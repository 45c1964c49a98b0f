"""The trial of an index version: its encoder must make of stored tiles the vectors that the index holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.errors import FingerprintError
from rayjobs.retrieval.kinds import least_cosine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rayjobs.serve.answers import Answers

Array = np.ndarray[Any, Any]

LEAST_COSINE = 0.999
"""Between a stored vector and the same tile's embedding made anew: what other devices, drivers and batch sizes change is far below.
Of codes it is `least_cosine`."""


def compare(answers: Answers, embed: Callable[[Sequence[tuple[Array, Array]]], Array], count: int) -> None:
    """Embed some stored tiles anew and compare.

    Args:
        answers: the index version.
        embed: from pixels (bands, height, width) and valid (height, width) of each tile to (tiles, dim) float32 vectors.
        count: tiles; 0 compares nothing.

    Raises:
        FingerprintError: a vector differs.
        StorageError: the tiles' pixels are gone.
    """
    if count == 0:
        return
    chips, stored = answers.stored(count)
    if not chips:  # all tiles are deleted
        return
    anew = embed([(chip.pixels, chip.valid) for chip in chips])
    cosines, least = np.sum(_unit(stored) * _unit(anew), axis=1), least_cosine(stored, LEAST_COSINE)
    worst = int(np.argmin(cosines))
    if not cosines[worst] >= least:
        raise FingerprintError(
            f"index {answers.version}: tile {chips[worst].tile_id} embedded anew has cosine {cosines[worst]:.4f} to its stored vector, not "
            f"{least:g} or more; encoder and index do not belong together: publish the index again with `rayjobs index`"
        )


def _unit(vectors: Array) -> Array:
    wide = vectors.astype(np.float64)
    unit: Array = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
