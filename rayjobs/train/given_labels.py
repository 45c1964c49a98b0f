"""Labels that people gave, in place of the set's own: as they were when the run began, kept beside it, since people go on labelling."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayjobs.errors import TrainingError
from rayjobs.labels.export import label_table, with_labels
from rayjobs.labels.store import LabelStore
from rayjobs.storage import keep_first

if TYPE_CHECKING:
    from rayjobs.experiment import Experiment


def keep_labels(experiment: Experiment) -> None:
    """Write the labels beside the run, if it takes some and none are there: all workers, and the command that goes on, train on these."""
    if experiment.train.labels_from is not None:
        workspace, sink = experiment.open_workspace(), io.BytesIO()
        pq.write_table(_now(experiment), sink, compression="zstd")
        keep_first(workspace.store, workspace.run_labels, sink.getvalue())


def labelled(tiles: pa.Table, experiment: Experiment, what: str = "training") -> pa.Table:
    """Return tiles with the labels that people gave them, those without one left out; the table as it is where the set's own count.

    Args:
        tiles: rows of the tile table.
        experiment: with its `train.labels_from`.
        what: they are, for the message.

    Raises:
        TrainingError: nobody has labelled any of them.
    """
    if experiment.train.labels_from is None:
        return tiles
    workspace = experiment.open_workspace()
    kept = workspace.store.read_tagged(workspace.run_labels)
    labels = _now(experiment) if kept is None else pq.read_table(io.BytesIO(kept.data))
    found = with_labels(tiles, labels)
    found = found.filter(pc.is_valid(found["label"]))
    if not found.num_rows:
        raise TrainingError(
            f"none of {tiles.num_rows:,} {what} tiles is among the {labels.num_rows:,} labels of train.labels_from "
            f"{experiment.train.labels_from}; label tiles of this set, and begin another run (--workspace.run)"
        )
    return found


def _now(experiment: Experiment) -> pa.Table:
    with LabelStore(experiment.open_workspace().store, str(experiment.train.labels_from)).tally() as tally:
        return label_table(tally.current)
