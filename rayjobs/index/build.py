"""What runs on a worker: build one segment of an index and write it."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayjobs.retrieval.segments import build_segment
from rayjobs.storage import Store, Version, deposit

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What every segment has in common."""

    store: Store
    prefix: str
    """Folder of the index version in the workspace, ending in `/`."""
    embeddings: Version


def write_segment(entry: Mapping[str, Any], *, plan: BuildPlan) -> dict[str, Any]:
    """Build a segment out of some parts of the embedding table.

    Args:
        entry: `name` of the segment and the `parts` it is made of.
        plan: what all segments share.

    Returns:
        `entry` (the segment's entry in the manifest, as a dict) and `digests` of its files.
    """
    parts = [pq.read_table(io.BytesIO(plan.embeddings.read(part))) for part in entry["parts"]]
    table = pa.concat_tables(part.replace_schema_metadata(None) for part in parts).sort_by("tile_id").combine_chunks()
    column = table["embedding"].combine_chunks()
    vectors = np.ascontiguousarray(column.flatten().to_numpy().reshape(-1, column.type.list_size))
    segment, files = build_segment(entry["name"], vectors, table.drop_columns(["embedding"]))
    digests = [deposit(plan.store, plan.prefix, name, data) for name, data in files.items()]
    return {"entry": dataclasses.asdict(segment), "digests": [dataclasses.asdict(entry) for entry in digests]}
