"""What is asked of a source that would list more than anybody wants: an area and a span of time."""

from __future__ import annotations

from dataclasses import dataclass

import shapely

from rayjobs.rasters import dates


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Where and when."""

    area: shapely.Geometry | None = None
    """WGS 84, cut at the antimeridian; None: everywhere."""
    span: dates.Interval | None = None
    """None: ever."""
