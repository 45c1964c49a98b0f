"""The files of a round: the queue, what the head says of every tile, the labelled set, and the report with its curve."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pyarrow as pa
import yaml
from matplotlib.figure import Figure

from rayjobs.labels.queue import FILE
from rayjobs.tiles.table import geoparquet_bytes, read_geoparquet

if TYPE_CHECKING:
    from rayjobs.label.known import Known
    from rayjobs.label.round import Round
    from rayjobs.storage import Version

PREDICTIONS, LABELLED, REPORT, CURVE = "predictions.parquet", "labelled.csv", "report.json", "curve.png"
EXPERIMENT = "experiment.yaml"
"""The experiment of the command that made the round."""
_PLACE = ("tile_id", "scene_id", "datetime", "geometry")
_SURE = 0.5
"""A tile is in the labelled set by what the head says where it gives its class more than this."""
_DRAWN = {"AP": "average precision", "balanced_accuracy": "balanced accuracy"}


def files_of(known: Known, found: Round, earlier: Sequence[Mapping[str, Any]], by_oracle: Collection[str] = ()) -> dict[str, bytes]:
    """Return the files of a round by name; those that need a head only where there is one.

    Args:
        known: what has been said.
        found: the round.
        earlier: rows of the rounds before.
        by_oracle: ids of the tiles of which the oracle alone has said something.
    """
    rounds = [*earlier, found.entry]
    files = {FILE: _queue(known, found), REPORT: json.dumps({"rounds": rounds}, indent=1, allow_nan=False).encode(), CURVE: curve(rounds)}
    if found.probabilities is not None:
        files |= {PREDICTIONS: _predictions(known, found.probabilities), LABELLED: _labelled(known, found.probabilities, by_oracle)}
    return files


def rounds_of(version: Version | None) -> list[dict[str, Any]]:
    """Return the rows of all rounds up to a version; none where it is a queue that another program published."""
    if not _has(version, REPORT):
        return []
    found: list[dict[str, Any]] = json.loads(version.read(REPORT))["rounds"]
    return found


def examples_named(version: Version) -> tuple[str, ...]:
    """Return `label.examples` of the command that made a round; none of a queue that another program published."""
    return tuple(yaml.safe_load(version.read(EXPERIMENT))["label"]["examples"]) if _has(version, EXPERIMENT) else ()


def predicted_by(version: Version | None, classes: Sequence[str]) -> dict[str, int]:
    """Return the class that a version's head gave each tile, by id; nothing where it had none, or other classes."""
    if not _has(version, PREDICTIONS) or version.manifest.get("classes") != list(classes):
        return {}
    table = read_geoparquet(version.read(PREDICTIONS))
    places = {name: place for place, name in enumerate(classes)}
    return {tile: places[name] for tile, name in zip(table["tile_id"].to_pylist(), table["predicted"].to_pylist(), strict=True)}


def _has(version: Version | None, name: str) -> TypeGuard[Version]:
    return version is not None and name in {entry.name for entry in version.files}


def _queue(known: Known, found: Round) -> bytes:
    """Return what the labelling page takes from: tile, rank from 0, the class that the head expects and its probability, round."""
    count = len(found.queue)
    likely = None if found.probabilities is None else found.probabilities[found.queue]
    columns = {
        "tile_id": pa.array([known.tile_ids[tile] for tile in found.queue.tolist()], pa.string()),
        "rank": pa.array(range(count), pa.int32()),
        "label": pa.array([None] * count if likely is None else [known.classes[name] for name in likely.argmax(1)], pa.string()),
        "probability": pa.array([None] * count if likely is None else likely.max(1), pa.float32()),
        "round": pa.array([found.entry["round"]] * count, pa.int32()),
    }
    return geoparquet_bytes(pa.table(columns))


def _predictions(known: Known, probabilities: np.ndarray[Any, Any]) -> bytes:
    """Return the probability map: every tile with its footprint, the class expected, and the label that it has."""
    table = known.table.select([name for name in _PLACE if name in known.table.column_names])
    values = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.astype(np.float32).reshape(-1)), len(known.classes))
    more = {
        "predicted": pa.array([known.classes[name] for name in probabilities.argmax(1)]),
        "probability": pa.array(probabilities[:, known.sought], pa.float32()),
        "probabilities": values,
        "label": pa.array([known.classes[said] if said >= 0 else None for said in known.said.tolist()], pa.string()),
    }
    for name, column in more.items():
        table = table.append_column(name, column)
    return geoparquet_bytes(table)


def _labelled(known: Known, probabilities: np.ndarray[Any, Any], by_oracle: Collection[str]) -> bytes:
    """Return the labelled set: what people or the oracle said, and where nobody did, the class that the head gives more than one half."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["tile_id", "label", "probability", "by"])
    for tile, said, likely in zip(known.tile_ids, known.said.tolist(), probabilities, strict=True):
        label = said if said >= 0 else int(likely.argmax())
        if said >= 0 or likely[label] > _SURE:
            by = "head" if said < 0 else "oracle" if tile in by_oracle else "people"
            rows.writerow([tile, known.classes[label], f"{likely[label]:.4f}", by])
    return text.getvalue().encode()


def curve(rounds: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG: what was measured, and how many of what is sought were found, over the labels spent."""
    figure = Figure(figsize=(8, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (metric, words) in enumerate(_DRAWN.items()):
        for part, line in (("measured", "-"), ("validated", ":")):
            points = [(row["labels"], row[part][metric]) for row in rounds if metric in row.get(part, {})]
            if points:
                left.plot(*zip(*points, strict=True), f"C{number}o{line}", markersize=3, label=f"{words}, {_WHERE[part]}")
    left.set(xlabel="labels", ylim=(0, 1.02))
    if left.lines:
        left.legend(frameon=False, fontsize=8)
    for number, name in enumerate(rounds[-1]["by_class"]):
        right.plot(
            [row["labels"] for row in rounds],
            [row["by_class"].get(name, 0) for row in rounds],
            f"C{number}o-",
            markersize=3,
            label=name[:24],
        )
    known = [(row["labels"], row["expected_left"]) for row in rounds if math.isfinite(row.get("expected_left", math.nan))]
    if known:
        right.plot(*zip(*known, strict=True), "k:", label="expected to be left")
    right.set(xlabel="labels", ylabel="tiles")
    right.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


_WHERE = {"measured": "held-out tiles", "validated": "labelled tiles, unseen"}
