"""The sheet of queries and their neighbours, side by side for each way of seeing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from rayjobs.embed.job import Embeddings, read_embeddings
from rayjobs.retrieval.neighbours import nearest
from rayjobs.tiles.neighbours import outlines, overlapping_pairs
from rayjobs.tiles.render import pictures_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rayjobs.experiment import Experiment

_ROWS = ("image-statistics", "random-init", "trained")
_QUERIES = 3
_NEIGHBOURS = 5
_OVERLAPPING = 9
"""A tile of a grid with half a tile's stride, and the eight that share its ground: they are no finds."""
_INCH = 0.85


def chosen_queries(experiment: Experiment) -> list[str]:
    """Return three test tiles, spread evenly over those sorted by contrast: plain, middling and structured ground."""
    source = experiment.open_workspace().set.require("run `rayjobs sample` first")
    found = _read(experiment, "image-statistics")
    bands = len(source.manifest["bands"])
    contrast = found.vectors[:, bands : 2 * bands].mean(axis=1)
    test = np.flatnonzero(pc.equal(found.table["split"], experiment.evaluate.split).to_numpy(zero_copy_only=False))
    ordered = test[np.argsort(contrast[test], kind="stable")]
    places = [int(len(ordered) * share) for share in (0.3, 0.6, 0.9)]
    return [found.table["tile_id"][int(ordered[place])].as_py() for place in places]


def write_sheet(experiment: Experiment, path: Path) -> None:
    """Write queries and their nearest test tiles as one picture."""
    source = experiment.open_workspace().set.require("run `rayjobs sample` first")
    queries = chosen_queries(experiment)
    answers = {name: _neighbours(_read(experiment, name), queries, experiment.evaluate.split) for name in _ROWS}
    wanted = {tile for of_row in answers.values() for ids in of_row for tile in ids} | set(queries)
    images = pictures_of(source, wanted)
    _draw(queries, answers, images, path)


def _read(experiment: Experiment, name: str) -> Embeddings:
    artefact = experiment.open_workspace().embeddings(name)
    return read_embeddings(artefact.require("run `rayjobs evaluate` first"))


def _neighbours(found: Embeddings, queries: Sequence[str], split: str) -> list[list[str]]:
    inside = found.table["split"].to_numpy(zero_copy_only=False) == split
    ids = np.asarray(found.table["tile_id"].to_pylist())[inside]
    vectors = found.vectors[inside]
    position = {tile_id: number for number, tile_id in enumerate(ids.tolist())}
    rows = np.array([position[tile_id] for tile_id in queries])
    same_ground = {frozenset(pair) for pair in overlapping_pairs(outlines(found.table.filter(pa.array(inside)))).tolist()}
    ranking = nearest(vectors[rows], vectors, _NEIGHBOURS + _OVERLAPPING, "euclidean")
    return [
        [str(ids[hit]) for hit in hits.tolist() if hit != row and frozenset((row, hit)) not in same_ground][:_NEIGHBOURS]
        for row, hits in zip(rows.tolist(), ranking, strict=True)
    ]


def _draw(queries: Sequence[str], answers: dict[str, list[list[str]]], images: dict[str, np.ndarray[Any, Any]], path: Path) -> None:
    columns = 1 + len(answers) * (_NEIGHBOURS + 1)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(_INCH * columns, _INCH * (len(queries) + 0.6)), layout="constrained")
        axes = figure.subplots(len(queries), columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for row, query in enumerate(queries):
            axes[row, 0].imshow(images[query])
            for block, of_row in enumerate(answers.values()):
                for rank, tile in enumerate(of_row[row]):
                    axes[row, 2 + block * (_NEIGHBOURS + 1) + rank].imshow(images[tile])
        axes[0, 0].set_title("query", fontweight="bold")
        for block, name in enumerate(answers):
            axes[0, 2 + block * (_NEIGHBOURS + 1)].set_title(name, loc="left", fontweight="bold")
        figure.savefig(path, dpi=150)
