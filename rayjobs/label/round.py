"""One round: train a head on the labels there are, measure it, and choose what is to be labelled next. Arrays in, values out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.geo import FloatArray, IntArray
from rayjobs.label.known import UNSURE, Known
from rayjobs.labels.acquisition.batch import next_tiles
from rayjobs.labels.acquisition.diversity import Vectors
from rayjobs.labels.acquisition.seeds import seed_set
from rayjobs.labels.acquisition.stopping import advise, kappa
from rayjobs.retrieval.head import head_metrics, train_head

if TYPE_CHECKING:
    from rayjobs.label.section import LabelSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round found."""

    queue: IntArray
    """Indices of the tiles to be labelled next, the most wanted first."""
    probabilities: FloatArray | None
    """(tiles, classes) of all tiles, calibrated; None while there is no head."""
    entry: dict[str, Any]
    """The round's row of `report.json`."""


def next_round(
    known: Known, examples: Vectors, settings: LabelSection, *, before: Mapping[str, int], earlier: Sequence[Mapping[str, Any]]
) -> Round:
    """Work out a round.

    Args:
        known: what has been said.
        examples: (examples, dim) embeddings of what is sought.
        settings: the section.
        before: the class that the last round's head gave each tile, by tile id; empty where there is none.
        earlier: rows of the rounds before.
    """
    number = len(earlier)
    rng = np.random.default_rng([settings.seed, number])
    entry = {
        "round": number,
        "labels": int(known.labelled.sum()),
        "by_class": known.counts,
        "trained_on": known.trained_on(),
        "unsure": int(((known.said == UNSURE) & known.may_be_queued).sum()),
        "left": len(known.left),
    }
    if sum(count > 0 for count in known.counts.values()) < 2:  # noqa: PLR2004  a head tells two apart
        return Round(queue=_first(known, examples, settings, rng), probabilities=None, entry=entry)
    labels = known.said[known.labelled]
    trained = train_head(known.vectors[known.labelled], labels, len(known.classes), kind=settings.head, seed=settings.seed)
    probabilities = trained.head.probabilities(known.vectors)
    found = {
        **entry,
        **_advice(known, probabilities, before, earlier, entry),
        "validated": {} if trained.validated is None else head_metrics(trained.validated, labels, known.sought),
        "measured": _measured(known, probabilities),
    }
    left = known.left
    queue = next_tiles(
        probabilities[left],
        known.vectors[left],
        known.vectors[known.labelled],
        settings.round_tiles,
        sought=known.sought,
        strategy=settings.strategy,
        diversity=settings.diversity,
        rebalance=settings.rebalance,
        neighbours=settings.neighbours,
        rng=rng,
    )
    return Round(queue=left[queue], probabilities=probabilities, entry=found)


def _first(known: Known, examples: Vectors, settings: LabelSection, rng: np.random.Generator) -> IntArray:
    """Return the tiles to begin with: neighbours of the examples, and of what has the label that is sought."""
    left, have = known.left, known.vectors[known.labelled & (known.said == known.sought)]
    around = np.concatenate([examples, have])
    return np.asarray(left[seed_set(known.vectors[left], around, settings.seed_tiles, share=settings.seed_neighbours, rng=rng)])


def _advice(
    known: Known, probabilities: FloatArray, before: Mapping[str, int], earlier: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """Return whether to go on, by the tiles that may be queued.

    Two heads of the same labels agree, which tells nothing of what further labels would change: no agreement is taken between them.
    """
    ours = probabilities.argmax(1)
    both = [place for place in np.flatnonzero(known.may_be_queued).tolist() if known.tile_ids[place] in before]
    theirs = np.array([before[known.tile_ids[place]] for place in both], np.int64)
    agreement = kappa(ours[both], theirs) if both and not (earlier and _same_labels(earlier[-1], entry)) else None
    agreements = [
        row["agreement"] for last, row in itertools.pairwise(earlier) if row.get("agreement") is not None and not _same_labels(last, row)
    ]
    advice = advise(agreements, agreement, probabilities[known.left, known.sought], known.counts[known.classes[known.sought]])
    return {**asdict(advice), "advice": advice.words}


def _same_labels(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rounds had the same labels; of rounds that were written without `trained_on`, whether they had as many of each class."""
    return all(row.get(name) == other.get(name) for name in ("by_class", "trained_on"))


def _measured(known: Known, probabilities: FloatArray) -> dict[str, float]:
    asked = known.truth >= 0
    return head_metrics(probabilities[asked], known.truth[asked], known.sought) if asked.any() else {}
