"""What a query should find, what it may not count, and which queries are independent of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.errors import ConfigError
from rayjobs.retrieval.metrics import PairList, Pairs, SameLabel
from rayjobs.tiles.neighbours import outlines, overlapping_pairs, positive_pairs
from rayjobs.tiles.positions import positions, sizes

if TYPE_CHECKING:
    import pyarrow as pa

    from rayjobs.evaluate.section import EvaluateSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The tiles of a split as queries and gallery at once."""

    tile_ids: list[str]
    relevance: Pairs
    excluded: PairList
    units: np.ndarray[Any, Any]
    """(tiles,) name of the block of ground, or of the image, that each tile belongs to."""
    relevant_means: str
    """The rule in words."""
    unit_means: str


def ask(tiles: pa.Table, settings: EvaluateSection, *, by_block: bool) -> Question:
    """Make the question of a split.

    Args:
        tiles: its rows of the tile table, sorted by tile id.
        settings: the experiment's evaluate section.
        by_block: whether `block_id` names blocks of ground, as opposed to scenes.

    Raises:
        ConfigError: relevance by label, and no labels.
    """
    count = tiles.num_rows
    overlapping = overlapping_pairs(outlines(tiles))
    itself = np.repeat(np.arange(count)[:, None], 2, axis=1)
    excluded = PairList(np.concatenate([itself, _both_ways(overlapping)]), count)
    relevance, means = _by_label(tiles) if settings.relevance == "label" else _by_neighbourhood(tiles, settings.radius)
    return Question(
        tile_ids=tiles["tile_id"].to_pylist(),
        relevance=relevance,
        excluded=excluded,
        units=np.array(tiles["block_id"].to_pylist()),
        relevant_means=means,
        unit_means="spatial blocks" if by_block and tiles["geometry"].null_count < count else "scenes",
    )


def _both_ways(pairs: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.concatenate([pairs, pairs[:, ::-1]])


def _by_label(tiles: pa.Table) -> tuple[Pairs, str]:
    labels = tiles["label"].to_pylist()
    classes = sorted({label for label in labels if label is not None})
    if not classes:
        raise ConfigError("evaluate.relevance is label, and no tile has one; set rasters.label_map, or relevance: neighbourhood")
    code = {label: number for number, label in enumerate(classes)} | {None: -1}
    codes = np.array([code[label] for label in labels], np.int64)
    return SameLabel(codes, codes), "tiles of the query's class"


def _by_neighbourhood(tiles: pa.Table, radius: float) -> tuple[Pairs, str]:
    pairs = positive_pairs(positions(tiles), sizes(tiles), 0.0, radius)
    means = f"tiles whose centres lie within {radius} tile sizes of the query's"
    return PairList(np.unique(_both_ways(pairs), axis=0), tiles.num_rows), means
