"""The same place on other dates: which tiles show it, and which places look most unlike what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.errors import QueryError
from rayjobs.retrieval.filters import SearchFilter

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.retrieval.gallery import Gallery

IntArray = np.ndarray[Any, np.dtype[np.int64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

_PLACE = "place_id"
_PAIRS_AT_ONCE = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Places that were seen twice, the one that changed most first; of equal changes in order of the later tile's id."""

    earlier: IntArray
    """(places,) row of the tile of the first filter."""
    later: IntArray
    """(places,) row of the tile of the second."""
    change: Vectors
    """(places,) float32 cosine distance of their embeddings: 0 where they are the same, 2 at most."""
    places: int
    """Places that were seen twice, those that are not returned included."""


def changes(gallery: Gallery, before: SearchFilter, after: SearchFilter, limit: int, *, offset: int = 0) -> Changes:
    """Return the places whose embedding moved most between two filters, mostly intervals of dates.

    Of several tiles of a place that pass a filter the latest counts, of several of one moment the first row; those without a date count
    where no other passes.

    Args:
        gallery: the tiles.
        before: which tiles show a place as it was.
        after: which show it as it became.
        limit: most places.
        offset: places that are left out before the first.

    Raises:
        QueryError: the index does not know which tiles show the same place, or a filter cannot be asked.
    """
    pairs = _pairs(gallery, gallery.select(before).rows, gallery.select(after).rows)
    distances = _distances(gallery, pairs)
    best = np.lexsort((gallery.ids_of(pairs[1]), -distances))[offset : offset + limit]
    return Changes(earlier=pairs[0, best], later=pairs[1, best], change=distances[best], places=pairs.shape[1])


def same_place(gallery: Gallery, tile_id: str) -> IntArray:
    """Return the rows of the other tiles that show a tile's place, earliest first, those without a date last.

    Raises:
        UnknownTileError: the index does not hold the tile.
        QueryError: the index does not know which tiles show the same place.
    """
    row = gallery.row_of(tile_id)
    place = _places(gallery, np.array([row]))[0].as_py()
    rows = gallery.select(SearchFilter(where={_PLACE: place})).rows
    rows = rows[rows != row]
    dates = gallery.take(rows)["datetime"].to_numpy()
    return np.asarray(rows[np.lexsort((gallery.ids_of(rows), dates))], np.int64)


def _pairs(gallery: Gallery, before: IntArray, after: IntArray) -> IntArray:
    """Return (2, places) the tile of each place among some rows, and another among others."""
    places = _places(gallery, np.concatenate([before, after])).dictionary_encode().indices.to_numpy()
    earlier, later = _latest(gallery, before, places[: len(before)]), _latest(gallery, after, places[len(before) :])
    _, first, second = np.intersect1d(earlier[0], later[0], assume_unique=True, return_indices=True)
    pairs = np.stack([earlier[1][first], later[1][second]])
    return np.asarray(pairs[:, pairs[0] != pairs[1]], np.int64)


def _latest(gallery: Gallery, rows: IntArray, places: IntArray) -> tuple[IntArray, IntArray]:
    """Return places, each once, and the latest tile of each; one without a date is before all others."""
    order = np.lexsort((-rows, gallery.moments(rows), places))[::-1]  # not by moments negated: `NO_MOMENT` has no opposite
    once, first = np.unique(places[order], return_index=True)
    return once, rows[order[first]]


def _places(gallery: Gallery, rows: IntArray) -> pa.Array:
    if any(_PLACE not in table.columns.names for table in gallery.tables):
        raise QueryError("the index does not know which tiles show the same place; sample the set and build the index again")
    return gallery.take(rows, columns=[_PLACE])[_PLACE].combine_chunks()


def _distances(gallery: Gallery, pairs: IntArray) -> Vectors:
    """Return (n,) cosine distances of pairs of rows, (2, n)."""
    found = np.empty(pairs.shape[1], np.float32)
    for start in range(0, len(found), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        first, second = (gallery.vectors_of(side[part]).astype(np.float64) for side in pairs)
        found[part] = np.clip(1 - np.einsum("nd,nd->n", first, second), 0, 2)
    return found
