"""The unlabelled tiles made to hold as many of each class, as far as a head can tell."""

from __future__ import annotations

import numpy as np

from rayjobs.geo import FloatArray, IntArray


def balanced(probabilities: FloatArray, *, least: int, rng: np.random.Generator) -> IntArray:
    """Return the indices of the tiles to choose among, ascending: as many of each pseudo-label as of the rarest.

    The pseudo-label of a tile is its most likely class. Rare classes are kept whole, and of the others a sample: what is drawn from the
    rest then shows every class, however rare (the iterative re-balancing of unlabelled imagery by pseudo-labels of SpaceML).

    Args:
        probabilities: (tiles, classes).
        least: tiles kept of each class at least, if it has as many: where a class is hardly seen, the others do not vanish with it.
        rng: of the sample.
    """
    pseudo = probabilities.argmax(1)
    of_class = [np.flatnonzero(pseudo == name) for name in np.unique(pseudo)]
    kept = max(least, min(map(len, of_class), default=0))
    return np.sort(np.concatenate([rng.choice(tiles, min(kept, len(tiles)), replace=False) for tiles in of_class] or [pseudo]))
