"""The `index` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section


@section
class IndexSection:
    """What kind of index is built, and how it is laid out."""

    kind: Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_pq", "ivf_rabitq", "sq8", "binary", "hamming", "hamming_ivf"] = "auto"
    """`auto` chooses by the number of tiles, `recall` and `bytes_per_vector`, and says why; `flat` is exact. Of codes
    (`model.projection: hash`) there are `hamming`, which is exact, and `hamming_ivf`, beside the others."""
    recall: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.97
    """Share of the true ten nearest that a search shall find; how hard it tries is set by it, on a sample, when the index is built."""
    bytes_per_vector: Annotated[float, pydantic.Field(gt=0)] = 64
    """Memory that `auto` may take for each tile; the vectors themselves are mapped from disk and not counted."""
    rows_per_segment: Annotated[int, pydantic.Field(ge=1)] = 1_000_000
    """Vectors in one immutable piece."""
    training_rows: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Vectors on which the kinds that train are trained; default by the size of a segment: 64 for each list, 10,000 at least."""
    splits: tuple[str, ...] | None = None
    """Splits to index; default every tile."""
