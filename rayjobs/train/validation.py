"""How an encoder is measured while it learns. What a good embedding is, training does not know: whoever calls it brings the measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Tiles that are not trained on, and what is told of their embeddings after each epoch that ends with a checkpoint."""

    tiles: pa.Table
    """Rows of the set's tile table, sorted by `tile_id`."""
    measure: Callable[[np.ndarray[Any, np.dtype[np.float32]]], Mapping[str, float]]
    """From (tiles, dim) float32 to figures by name. Called on rank 0; travels to the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who looks on while a run trains, such as a sweep."""

    validation: Validation
    heard: Callable[[int, Mapping[str, float]], None]
    """Called on the driver's side with the epochs that are done and all metrics of the last; those of `validation` begin with `val/`."""
