"""How each row answers a few fixed queries: what sheets show and `results.json` lists.

`results.json` has `depth`, how many results each query has; `random_pairs_km`, the mean distance of random tiles, or null; and `rows`
{row: {`metrics` {`mAP@64/found`, `mAP@64/min`, `distance_km@64`: means over all queries of the split, or null where not measured at that
depth}, `answers`: a list, one for each fixed query}}. An answer has `query` (a tile, as below); `average_precision` {`found`, `min`}: over
the relevant ones among the results, and over all that could be among them; `mean_distance_km` or null; and `results`, the most similar
first: tiles with `relevant` and `distance_km` or null. A tile has `tile_id`, `scene_id` and `class` or null.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rayjobs.evaluate.distances import by_chance_km, distances_km
from rayjobs.evaluate.relevance import findable
from rayjobs.retrieval.metrics import average_precision_at_k
from rayjobs.retrieval.ranking import Ranker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.evaluate.measure import Measured
    from rayjobs.evaluate.relevance import Question
    from rayjobs.retrieval.ranking import BoolArray, FloatArray, IntArray

Json = dict[str, Any]

LISTED = 64
"""Results of each query in `results.json` and on its contact sheet, as the earlier system had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Queries and what one row finds for them."""

    row: str
    queries: IntArray
    """(queries,) indices of tiles."""
    found: IntArray
    """(queries, depth) indices of tiles, the most similar first."""
    right: BoolArray
    """(queries, depth) True where the tile is relevant."""
    relevant: IntArray
    """(queries,) tiles that could be found."""

    def average_precision(self, over: Literal["found", "min"]) -> FloatArray:
        """Return (queries,) the average precision of what is found; see `retrieval.metrics.average_precision_at_k`."""
        return average_precision_at_k(self.right, np.maximum(self.relevant, 1), self.right.shape[1], over=over)


def fixed_queries(question: Question, count: int, rng: np.random.Generator) -> IntArray:
    """Return positions of queries of as many classes as there is room for, in turn; without classes, any that have something to find."""
    able, codes = rng.permutation(findable(question)), question.codes[question.queries]
    turn = _turn(codes[able]) if question.classes else np.zeros(len(able))
    chosen: IntArray = able[np.argsort(turn, kind="stable")[:count]]
    return chosen[np.argsort(codes[chosen], kind="stable")]


def _turn(codes: IntArray) -> IntArray:
    """Return how many tiles of the same class come before each tile."""
    order = np.argsort(codes, kind="stable")
    turn = np.empty(len(codes), np.int64)
    turn[order] = np.arange(len(codes)) - np.searchsorted(codes[order], codes[order])
    return turn


def answered(row: Measured, queries: IntArray, depth: int, seed: int) -> Answers:
    """Return what a row finds.

    Args:
        row: its vectors and its question.
        queries: (queries,) positions among the question's queries.
        depth: most results of each; fewer where a query has fewer candidates.
        seed: of the order of ties.
    """
    question = row.question
    asking = question.queries
    ranker, out = Ranker(row.vectors[asking], row.vectors, distance=row.distance, seed=seed), question.excluded.rows(queries)
    deep = min(depth, int((~out).sum(axis=1).min(initial=depth)))  # after its candidates a query is given what is excluded
    found = ranker.ranked(queries, out, deep)
    relevant = question.relevance.rows(queries) & ~out
    right = np.take_along_axis(relevant, found, axis=1)
    return Answers(row=row.name, queries=asking[queries], found=found, right=right, relevant=relevant.sum(axis=1))


def results(measured: Sequence[Measured], answers: Sequence[Answers], scenes: Mapping[str, str], seed: int) -> Json:
    """Return what `results.json` holds.

    Args:
        measured: the rows.
        answers: of each row, in the same order, all to the same queries.
        scenes: scene of each tile, by their ids; of image folders the scene's id is the file's path.
        seed: of the random pairs.
    """
    return {
        "depth": answers[0].found.shape[1],
        "random_pairs_km": by_chance_km(measured[0].question, seed=seed),
        "rows": {row.name: _of_row(row, found, scenes) for row, found in zip(measured, answers, strict=True)},
    }


def _of_row(row: Measured, answers: Answers, scenes: Mapping[str, str]) -> Json:
    names = [f"mAP@{LISTED}/found", f"mAP@{LISTED}/min", f"distance_km@{LISTED}"]
    known = {name: row.metrics.get(name) or row.distances.get(name) for name in names}
    average = {over: answers.average_precision(over) for over in ("found", "min")}
    return {
        "metrics": {name: None if values is None else float(values.values.mean()) for name, values in known.items()},
        "answers": [
            {
                "query": _tile(row.question, query, scenes),
                "average_precision": {over: float(values[place]) for over, values in average.items()},
                **_results(row.question, query, answers.found[place], answers.right[place], scenes),
            }
            for place, query in enumerate(answers.queries.tolist())
        ],
    }


def _results(question: Question, query: int, found: IntArray, right: BoolArray, scenes: Mapping[str, str]) -> Json:
    away = distances_km(question, np.full(len(found), query), found)
    listed = [
        {**_tile(question, tile, scenes), "relevant": relevant, "distance_km": km if np.isfinite(km) else None}
        for tile, relevant, km in zip(found.tolist(), right.tolist(), away.tolist(), strict=True)
    ]
    return {"mean_distance_km": float(np.nanmean(away)) if np.isfinite(away).any() else None, "results": listed}


def _tile(question: Question, tile: int, scenes: Mapping[str, str]) -> Json:
    code, tile_id = int(question.codes[tile]), question.tile_ids[tile]
    return {"tile_id": tile_id, "scene_id": scenes[tile_id], "class": question.classes[code] if code >= 0 else None}
