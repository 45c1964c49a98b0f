"""Where the segments of an index version are searched: in this process, or wherever else something answers as `Shards` says."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rayjobs.retrieval.kinds import KINDS, Effort
from rayjobs.retrieval.planner import TUNED_AT, Nearest, Task, nearest
from rayjobs.retrieval.segments import load_segment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rayjobs.retrieval.manifest import IndexManifest
    from rayjobs.retrieval.segments import Segment
    from rayjobs.storage import Version

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Shards(Protocol):
    """The vectors of one index version. Segments have the numbers of their places in the manifest."""

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""

    @property
    def cost_ns(self) -> float:
        """About how long this process searches all segments without a filter, nanoseconds; infinite where it waits for others."""

    def nearest(self, queries: Vectors, tasks: Sequence[Task]) -> list[Nearest]:
        """Search some segments for (q, dim) float32 queries: what `planner.nearest` returns, for each task."""

    def vectors_of(self, parts: Sequence[tuple[int, IntArray]]) -> list[Vectors]:
        """Return vectors by number of the segment and rows within it: (n, dim) float32 for each part."""


class LocalShards:
    """Segments that are searched in this process."""

    def __init__(self, segments: Sequence[Segment], *, effort: Effort | None = None) -> None:
        """Take loaded segments.

        Args:
            segments: of one index version.
            effort: of approximate searches without a filter, from the manifest.
        """
        self.segments = tuple(segments)
        """They themselves."""
        self._effort = effort or Effort()

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.segments[0].dimension

    @functools.cached_property
    def cost_ns(self) -> float:
        """About how long a search of all segments takes; see `Shards`."""
        return sum(KINDS[one.kind].cost_ns(one.index if one.base is None else one.base, self._effort, TUNED_AT) for one in self.segments)

    def nearest(self, queries: Vectors, tasks: Sequence[Task]) -> list[Nearest]:
        """Search some segments; see `Shards`."""
        return [nearest(self.segments[task.number], queries, task, self._effort) for task in tasks]

    def vectors_of(self, parts: Sequence[tuple[int, IntArray]]) -> list[Vectors]:
        """Return vectors of some rows; see `Shards`."""
        return [self.segments[number].vectors_of(rows) for number, rows in parts]


def load_shards(version: Version, manifest: IndexManifest, cache: Path, *, part: int = 0, parts: int = 1) -> LocalShards:
    """Load the segments of an index version, or every `parts`-th of them from the one of number `part`.

    Args:
        version: the index version.
        manifest: its manifest.
        cache: folder for copies of files that lie in a bucket.
        part: from 0.
        parts: in how many the segments are divided.

    Raises:
        IndexCorruptError: a file differs from its digest, or is not what the manifest says.
    """
    segments = [load_segment(version, entry, manifest, cache) for entry in manifest.segments[part::parts]]
    return LocalShards(segments, effort=manifest.effort)
