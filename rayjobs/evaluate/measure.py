"""Everything that is measured of one row. Arrays in, values out: knows neither Ray nor the workspace.

Plan, then act: `plan` decides from what is known of the tiles what can be measured of them, and says what cannot; `measure` then measures
it, on the same tiles and the same splits for every row, so that rows can be compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import joblib  # type: ignore[import-untyped]  # joblib ships no types
import numpy as np

from rayjobs.errors import RetrievalError, TrainingError
from rayjobs.evaluate.distances import mean_distances_km
from rayjobs.evaluate.relevance import UNKNOWN
from rayjobs.retrieval import classes
from rayjobs.retrieval.metrics import PairList, Pairs, metric_names, precision_by_rank, score
from rayjobs.retrieval.probes import NEIGHBOURS, PROBES, ProbeResult, Split, probe, random_splits, unit_splits
from rayjobs.retrieval.proportions import Proportions, generalised_silhouette, soft_precision_at_r
from rayjobs.retrieval.ranking import blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.evaluate.relevance import Question
    from rayjobs.evaluate.section import EvaluateSection
    from rayjobs.retrieval.ranking import BoolArray, Distance, FloatArray, IntArray, Vectors

Target = Literal["classes", "proportions"]
"""What a probe predicts."""

By = Literal["ground", "random"]
"""How a probe's training and test are divided: by whole blocks or scenes, or tile by tile."""

GENERALISED_SILHOUETTE = "gSil"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileValues:
    """A metric, tile by tile; its figure is their mean."""

    tiles: IntArray
    """(measured,) indices of the tiles that it is measured at."""
    queries: IntArray
    """(measured,) positions of the queries that it is measured for among the question's, ascending; of a metric that asks nothing, the
    tiles."""
    values: FloatArray
    """(measured,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Splits of the tiles on which the probes of every row are fitted and tested."""

    target: Target
    by: By
    splits: tuple[Split, ...]
    """At least one, each of which every probe can serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What can be measured of the tiles in question, the same for every row."""

    labelled: bool
    """Whether there are tiles of at least two classes."""
    mixed: IntArray
    """(tiles,) indices of the tiles whose class proportions are known; empty where they are not measured."""
    divisions: tuple[Division, ...]
    reduced: IntArray
    """(tiles,) indices of the tiles that are left without `evaluate.without_classes`; empty where nothing is scored among them."""
    left_out: tuple[str, ...]
    """What is not measured, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a probe found on one division."""

    kind: str
    """Of `retrieval.probes.PROBES`."""
    division: Division
    result: ProbeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row: an encoder's embedding of the tiles in question and everything measured of it."""

    name: str
    """Of the row."""
    question: Question
    """The tiles, their classes and proportions."""
    vectors: Vectors
    """(tiles, dim) float32."""
    distance: Distance
    """What they are compared with."""
    metrics: dict[str, TileValues]
    """By name, as `metrics_of` lists them."""
    reduced: dict[str, TileValues]
    """The metrics of retrieval among the tiles that `Plan.reduced` leaves, by name; empty where it leaves none."""
    distances: dict[str, TileValues]
    """How far from its query what is found lies, kilometres: `distance_km@64`; empty where the tiles lie nowhere."""
    ranks: FloatArray
    """(ranks,) precision at each rank, from 1, over all queries: as deep as `evaluate.ranks` or the gallery."""
    figures: dict[str, float]
    """Metrics of the whole embedding, by name; NaN where one is not defined."""
    probes: tuple[Probed, ...]

    @property
    def class_probe(self) -> Probed | None:
        """The first probe of classes, on whole blocks or scenes where there are enough of them: of it are table and confusion matrix."""
        return next((probed for probed in self.probes if probed.result.table is not None), None)


def plan(question: Question, settings: EvaluateSection) -> Plan:
    """Decide what can be measured of the tiles."""
    left_out: list[str] = []
    labelled, mixed = len(question.classes) > 1, _mixed(question, left_out)
    if len(question.classes) == 1:
        left_out.append(f"all labelled tiles are of the class {question.classes[0]!r}: nothing that compares classes is measured")
    divisions: list[Division] = []
    if settings.probes and labelled:
        divisions += _divisions("classes", question.codes, question, settings, left_out)
    if _able(settings.probes, "proportions") and len(mixed):
        divisions += _divisions("proportions", _dominant(question, mixed), question, settings, left_out)
    reduced = _reduced(question, settings, left_out)
    return Plan(labelled=labelled, mixed=mixed, divisions=tuple(divisions), reduced=reduced, left_out=tuple(left_out))


def metrics_of(found: Plan, ks: Sequence[int]) -> list[str]:
    """Return the names of the metrics that have a value for each tile, and so an interval; any of them can be the objective."""
    of_proportions = [*_graded(ks), *(f"soft_precision@{k}" for k in ks), GENERALISED_SILHOUETTE]
    return metric_names(ks) + (of_proportions if len(found.mixed) else [])


def _graded(ks: Sequence[int]) -> list[str]:
    """Return the names of the metrics of gains."""
    hits = metric_names(ks)
    return [name for name in metric_names(ks, graded=True) if name not in hits]


def nothing_relevant(settings: EvaluateSection) -> str:
    """Return what to say, and to do, where no tile has anything to find."""
    remedies = {"label": "label more tiles of one class", "place": "widen tiles.place_tolerance, or sample all dates on one grid"}
    remedy = remedies.get(settings.relevance, "widen evaluate.radius or take larger blocks")
    return f"no tile of the {settings.split} split has another relevant one; {remedy}"


def fits(found: Plan, settings: EvaluateSection) -> list[tuple[str, Division]]:
    """Return which probe is fitted on which division; the first of classes is the first of all."""
    return [(kind, division) for kind in settings.probes for division in found.divisions if kind in _able([kind], division.target)]


def measure(name: str, vectors: Vectors, distance: Distance, question: Question, found: Plan, settings: EvaluateSection) -> Measured:
    """Measure one row.

    Args:
        name: of the row.
        vectors: (tiles, dim) float32, in the order of the question's tiles.
        distance: what they are compared with.
        question: the tiles.
        found: what `plan` says of them.
        settings: the experiment's evaluate section.

    Raises:
        TrainingError: no tile has another relevant one.
        RetrievalError: a vector is not finite.
    """
    metrics = _by_tile(vectors, distance, question, found, settings)
    reduced = _among_the_reduced(vectors, distance, question, found.reduced, settings) if len(found.reduced) else {}
    figures = {metric: value(vectors, question.codes) for metric, value in classes.EMBEDDING.items()} if found.labelled else {}
    with joblib.parallel_config(n_jobs=-1):  # the trees of a forest; the result is the same
        probes = tuple(_probed(kind, vectors, question, division, settings.seed) for kind, division in fits(found, settings))
    return Measured(
        name=name,
        question=question,
        vectors=vectors,
        distance=distance,
        metrics=metrics,
        reduced=reduced,
        distances=_distances(vectors, distance, question, settings),
        ranks=precision_by_rank(
            vectors[question.queries],
            vectors,
            relevance=question.relevance,
            excluded=question.excluded,
            depth=min(settings.ranks, len(vectors) - 1),  # the query itself is none of the candidates
            distance=distance,
            seed=settings.seed,
        )
        if settings.ranks
        else np.empty(0),
        figures=figures,
        probes=probes,
    )


def means(vectors: Vectors, distance: Distance, question: Question, found: Plan, settings: EvaluateSection) -> dict[str, float]:
    """Return the figure of every metric that can be the objective, without intervals and probes: enough to see an encoder learn.

    Raises:
        TrainingError: no tile has another relevant one.
        RetrievalError: a vector is not finite.
    """
    metrics = _by_tile(vectors, distance, question, found, settings)
    return {name: float(values.values.mean()) for name, values in metrics.items()}


def _by_tile(vectors: Vectors, distance: Distance, question: Question, found: Plan, settings: EvaluateSection) -> dict[str, TileValues]:
    metrics = _retrieval(vectors, distance, question, settings)
    if len(found.mixed):
        metrics |= _of_proportions(vectors, distance, question, found.mixed, settings)
    return metrics


def _retrieval(vectors: Vectors, distance: Distance, question: Question, settings: EvaluateSection) -> dict[str, TileValues]:
    scores = score(
        vectors[question.queries],
        vectors,
        relevance=question.relevance,
        excluded=question.excluded,
        ks=settings.ks,
        distance=distance,
        seed=settings.seed,
    )
    if not len(scores.queries):
        raise TrainingError(nothing_relevant(settings))
    return {
        name: TileValues(tiles=question.queries[scores.queries], queries=scores.queries, values=values)
        for name, values in scores.values.items()
    }


@dataclass(frozen=True, slots=True)
class _Within:
    """Pairs of some of the tiles, each of which asks, numbered among these."""

    pairs: Pairs
    tiles: IntArray

    def rows(self, queries: IntArray) -> BoolArray:
        of_all = self.pairs.rows(self.tiles[queries])
        return of_all[:, self.tiles]


def _among_the_reduced(
    vectors: Vectors, distance: Distance, question: Question, tiles: IntArray, settings: EvaluateSection
) -> dict[str, TileValues]:
    scores = score(
        vectors[tiles],
        vectors[tiles],
        relevance=_Within(question.relevance, tiles),
        excluded=_Within(question.excluded, tiles),
        ks=settings.ks,
        distance=distance,
        seed=settings.seed,
    )
    measured = tiles[scores.queries]
    return {name: TileValues(tiles=measured, queries=measured, values=values) for name, values in scores.values.items()}


def _reduced(question: Question, settings: EvaluateSection, left_out: list[str]) -> IntArray:
    """Return the tiles that are left without some classes."""
    nothing = np.empty(0, np.int64)
    if not settings.without_classes:
        return nothing
    names = ", ".join(settings.without_classes)
    dropped = [code for code, name in enumerate(question.classes) if name in settings.without_classes]
    if not dropped:
        left_out.append(f"nothing is scored without the classes {names}: no tile in question is of any of them")
        return nothing
    kept = np.flatnonzero(~np.isin(question.codes, dropped))
    within = _Within(question.relevance, kept), _Within(question.excluded, kept)
    if not any((within[0].rows(rows) & ~within[1].rows(rows)).any() for rows in blocks(len(kept), 4 * len(question.tile_ids))):
        left_out.append(f"nothing is scored without the classes {names}: no other tile has anything to find then")
        return nothing
    return kept


def _distances(vectors: Vectors, distance: Distance, question: Question, settings: EvaluateSection) -> dict[str, TileValues]:
    known, found = mean_distances_km(vectors, distance, question, settings.ks, seed=settings.seed)
    tiles = question.queries[known]
    return {f"distance_km@{k}": TileValues(tiles=tiles, queries=known, values=values) for k, values in found.items() if len(known)}


@dataclass(frozen=True, slots=True)
class _OneCandidate:
    """One candidate of each query, whichever: graded metrics need none that counts as relevant, and so ranks go no deeper than `ks`."""

    excluded: Pairs

    def rows(self, queries: IntArray) -> BoolArray:
        out = self.excluded.rows(queries)
        marked = np.zeros_like(out)
        marked[np.arange(len(queries)), out.argmin(axis=1)] = True
        return marked


def _of_proportions(
    vectors: Vectors, distance: Distance, question: Question, mixed: IntArray, settings: EvaluateSection
) -> dict[str, TileValues]:
    """Measure among the tiles whose proportions are known: what is not known can be neither right nor wrong."""
    held, found, excluded = _held(question)[mixed], vectors[mixed], _among(question.shared, mixed)
    gains = Proportions(queries=held, gallery=held)
    graded = score(
        found,
        found,
        relevance=_OneCandidate(excluded),
        excluded=excluded,
        ks=settings.ks,
        distance=distance,
        seed=settings.seed,
        gains=gains,
    )
    soft = soft_precision_at_r(found, found, proportions=gains, excluded=excluded, rs=settings.ks, distance=distance, seed=settings.seed)
    silhouette = generalised_silhouette(found, held, seed=settings.seed)
    return {
        **{
            name: TileValues(tiles=mixed[graded.queries], queries=mixed[graded.queries], values=graded.values[name])
            for name in _graded(settings.ks)
        },
        **{name: TileValues(tiles=mixed, queries=mixed, values=values) for name, values in soft.items()},
        # proportions sum to 1, so that all tiles weigh alike and the weighted mean is the mean
        GENERALISED_SILHOUETTE: TileValues(tiles=mixed[silhouette.tiles], queries=mixed[silhouette.tiles], values=silhouette.values),
    }


def _among(pairs: PairList, tiles: IntArray) -> PairList:
    """Return the pairs of two of the tiles, numbered among these."""
    place = np.full(pairs.gallery, -1, np.int64)
    place[tiles] = np.arange(len(tiles))
    numbered = place[pairs.pairs]
    return PairList(numbered[(numbered >= 0).all(axis=1)], len(tiles))


def _held(question: Question) -> FloatArray:
    if question.proportions is None:
        raise AssertionError("there are no proportions")  # a fault of ours: the plan says whether there are
    return question.proportions


def _mixed(question: Question, left_out: list[str]) -> IntArray:
    """Return the tiles whose proportions can be measured."""
    if question.proportions is None:
        return np.empty(0, np.int64)
    known = np.flatnonzero(question.proportions.any(axis=1))
    if len(known) < 2 or len(question.held_classes) < 2:  # noqa: PLR2004  a pair
        held = f"{len(known)} tiles and {len(question.held_classes)} classes"
        left_out.append(f"class proportions are known of {held}, and nothing is measured of fewer than two")
        return np.empty(0, np.int64)
    return known


def _dominant(question: Question, mixed: IntArray) -> IntArray:
    """Return (tiles,) the class that each tile holds most of, `UNKNOWN` where that is not known."""
    found = np.full(len(question.tile_ids), UNKNOWN, np.int64)
    found[mixed] = _held(question)[mixed].argmax(axis=1)
    return found


def _able(kinds: Sequence[str], target: Target) -> list[str]:
    """Return the probes that can predict the target."""
    return [kind for kind in kinds if target == "classes" or PROBES[kind].regressor]


def _divisions(target: Target, labels: IntArray, question: Question, settings: EvaluateSection, left_out: list[str]) -> list[Division]:
    """Divide the tiles by ground and at random, leaving out splits that no probe can serve."""
    made: list[Division] = []
    ways: dict[By, str] = {"ground": question.ground_means, "random": "single tiles"}
    for by, means in ways.items():
        try:
            splits = _splits(by, labels, question, settings)
        except RetrievalError as error:
            left_out.append(f"no probes of {target} on splits by {means}: {error}")
            continue
        serving = tuple(split for split in splits if _serves(split, None if target == "proportions" else labels))
        if len(serving) < len(splits):
            few = (
                f"{len(splits) - len(serving)} of {len(splits)} splits by {means} leave too little to train or test a probe of {target} on"
            )
            left_out.append(f"{few}; evaluate more ground, or smaller tiles.splits.block_m")
        if serving:
            made.append(Division(target=target, by=by, splits=serving))
    return made


def _splits(by: By, labels: IntArray, question: Question, settings: EvaluateSection) -> list[Split]:
    repeats, share, seed = settings.probe_repeats, settings.probe_test_share, settings.seed
    if by == "ground":
        return unit_splits(question.ground, labels, repeats=repeats, test_share=share, seed=seed, near=question.near)
    return random_splits(labels, repeats=repeats, test_share=share, seed=seed, near=question.shared)


def _serves(split: Split, labels: IntArray | None) -> bool:
    """Whether a probe can be fitted and tested; labels: of a probe of classes."""
    enough = len(split.train) >= NEIGHBOURS and len(split.test) > 0
    return enough and (labels is None or len(np.unique(labels[split.train])) > 1)


def _probed(kind: str, vectors: Vectors, question: Question, division: Division, seed: int) -> Probed:
    targets = question.codes if division.target == "classes" else _held(question)
    return Probed(kind=kind, division=division, result=probe(kind, vectors, targets, division.splits, seed=seed))
