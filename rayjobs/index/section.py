"""The `index` section of the experiment file."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from rayjobs.config import section


@section
class IndexSection:
    """How the index is laid out."""

    kind: Literal["flat"] = "flat"
    """`flat`: exact. (Compressed kinds are not built yet.)"""
    rows_per_segment: Annotated[int, pydantic.Field(ge=1)] = 1_000_000
    """Vectors in one immutable piece."""
    splits: tuple[str, ...] | None = None
    """Splits to index; default every tile."""
