"""Whether an index finds what it holds: each vector itself, and approximately what there is exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.doctor.checks import Check, caution, fault, ok
from rayjobs.errors import first_few
from rayjobs.retrieval.choice import recall_of
from rayjobs.retrieval.kinds import KINDS

if TYPE_CHECKING:
    from rayjobs.doctor.opened import Opened, Tiles, Vectors

Numbers = np.ndarray[Any, np.dtype[np.int64]]

SAMPLE = 1000
SAME = 1e-5
"""Two vectors of length 1 whose cosine is as near to 1 are the same, but for the last bits of float32."""
_AT = 10
_LONGER = 1e-3
"""By how much a vector may be longer than 1, as segments are built with."""
_LEAST_LOSS = 0.02
"""A lower recall than promised is no fault by less: the promise was measured on another sample."""
_SURE = 3.0
"""Standard errors: by chance a healthy index falls short by as many one time in a thousand."""
_MANY_TWINS = 0.2
_BUILD = "build the index anew: rayjobs index"


def digests(opened: Opened) -> Check:
    """Judge the files."""
    files, entries = len(opened.version.files), len(opened.manifest.segments)
    if opened.damage:
        finding = f"the index is at fault: {len(opened.damage)} of its parts are damaged: {first_few(opened.damage)}"
        remedy = "rayjobs index rollback makes an earlier version current; rayjobs index builds it anew"
        return fault("index/digests", finding, remedy)
    return ok("index/digests", f"all {files} files, of {entries} segments, are what the manifest says")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFirst:
    """What searches for stored vectors give."""

    missed: Numbers
    """Numbers of the tiles that do not come first."""
    twins: Numbers
    """Numbers of those that have a tile of the same vector."""
    above: int
    """Tiles that something longer than 1 comes before: no two vectors of length 1 have a product above 1."""


def self_retrieval(opened: Opened) -> Check:
    """Search for stored vectors: each must find itself, or one that is the same, first."""
    name, tiles = "index/self-retrieval", opened.drawn(SAMPLE)
    count, odd = len(tiles.row), int((~_unit(tiles.vectors)).sum())
    if odd:  # what is searched for by no number tells nothing
        return caution(name, f"{odd:,} of {count:,} stored vectors are not of length 1", "see encoder/length first")
    found = found_first(opened, tiles)
    if found.above:
        return caution(name, f"{found.above:,} of {count:,} stored vectors find one that is longer than 1", "see encoder/length first")
    said = f"of {count:,} stored vectors {count - len(found.missed):,} find themselves first"
    if len(found.twins):
        said += f"; {len(found.twins):,} have a near-duplicate (cosine {1 - SAME:g} or more), which counts as themselves"
    allowed = 0.0 if KINDS[opened.manifest.kind].exact else 1 - promised(opened)
    if len(found.missed) > count * (allowed + (_loss(allowed, count) if allowed else 0)):
        ids = [str(one["tile_id"]) for one in opened.known(tiles, ("tile_id",))]
        named = first_few([ids[number] for number in found.missed], between=", ")
        return fault(name, f"the index is at fault: {said}, and {len(found.missed):,} do not ({named})", _BUILD)
    if len(found.twins) > _MANY_TWINS * count:
        remedy = "see imagery/constant and encoder/collapse; sample with less overlap, or leave out scenes that are there twice"
        return caution(name, said, remedy)
    return ok(name, said)


def found_first(opened: Opened, tiles: Tiles) -> FoundFirst:
    """Search for tiles by their own vectors, as the service does without a filter.

    A hit that is as near as the tile itself ties with it, whichever of them comes first.
    """
    count = len(tiles.row)
    best, own, alike = np.full(count, -np.inf), np.full(count, -np.inf), np.zeros(count, np.int64)
    for number, segment in enumerate(opened.segments):
        scores, rows = segment.approximate(tiles.vectors, _AT, None, opened.manifest.effort)
        best = np.maximum(best, scores.max(axis=1))
        itself = (rows == tiles.row[:, None]) & (tiles.segment == number)[:, None]
        own = np.maximum(own, np.where(itself, scores, -np.inf).max(axis=1))
        alike += ((scores >= 1 - SAME) & ~itself).sum(axis=1)
    in_its_place = (own == -np.inf) & (alike > 0)  # more of the same than hits
    right = (own >= best - SAME) | in_its_place
    above = int((~(best <= 1 + _LONGER)).sum())  # so that what is no number is above, too
    return FoundFirst(missed=np.flatnonzero(~right), twins=np.flatnonzero(alike > 0), above=above)


def _unit(vectors: Vectors) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which vectors are of length 1; not those that are no numbers."""
    unit: np.ndarray[Any, np.dtype[np.bool_]] = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1) <= _LONGER
    return unit


def promised(opened: Opened) -> float:
    """Return the recall that the manifest promises; 1 of exact kinds and where none was measured."""
    recall = opened.manifest.recall
    return 1.0 if recall is None else recall.value


def recall(opened: Opened) -> Check:
    """Compare approximate answers with exact ones, and that with what the manifest promises."""
    kind, said = opened.manifest.kind, opened.manifest.recall
    if KINDS[kind].exact:
        return ok("index/recall", f"the kind {kind} compares every vector: answers are exact")
    if said is None:
        remedy = "build the index anew, which measures it: rayjobs index"
        return caution("index/recall", f"the manifest of kind {kind} promises nothing", remedy)
    drawn = opened.drawn(SAMPLE).vectors
    queries = drawn[_unit(drawn)]
    found = recall_of(kind, opened.segments, queries, opened.manifest.effort, count=said.at)
    told = f"recall@{said.at} {found.value:.3f} on {found.queries:,} stored vectors; the manifest promises {said.value:.3f}"
    spread = math.hypot(_error(found.value, found.queries), _error(said.value, said.queries))
    if found.value < said.value - max(_LEAST_LOSS, _SURE * spread):
        remedy = f"{_BUILD}; what was appended since may be unlike what it was trained on"
        return fault("index/recall", f"the index is at fault: {told}", remedy)
    return ok("index/recall", told)


def _error(share: float, count: int) -> float:
    """Return at most the standard error of a mean of numbers in [0, 1]."""
    return math.sqrt(max(share * (1 - share), 0) / count)


def _loss(share: float, count: int) -> float:
    return max(_LEAST_LOSS, _SURE * _error(share, count))
