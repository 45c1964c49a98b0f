"""What the pictures of a report show: which tiles, which queries, which rows. Arrays in, PNG out; draws through `evaluate.pictures`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from rayjobs.evaluate import pictures, projector
from rayjobs.evaluate.answers import LISTED, Answers, answered, fixed_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rayjobs.evaluate.measure import Measured
    from rayjobs.evaluate.relevance import Question
    from rayjobs.retrieval.ranking import IntArray

    Image = np.ndarray[Any, np.dtype[np.uint8]]
    History = Mapping[str, Sequence[tuple[int, float]]]

PICTURED = 1000
"""Most tiles shown in a plane, as the earlier system did; of more, a random sample."""
QUERIES, NEIGHBOURS = 8, 8
"""Rows and columns of a sheet."""

_SIDE = 64
_FEWEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which tiles the pictures show."""

    pictured: IntArray
    """(pictured,) indices of the tiles in a plane, ascending."""
    sheets: tuple[Answers, ...]
    """One for each row."""
    contact: tuple[Answers, ...]
    """One for each row, to other queries and deeper; the last, of the trained row, is drawn. Empty where none are asked for."""

    def tiles(self) -> IntArray:
        """Return the indices of all tiles that are shown, ascending."""
        drawn = [*self.sheets, *self.contact[-1:]]
        return np.unique(np.concatenate([self.pictured, *(part.ravel() for sheet in drawn for part in (sheet.queries, sheet.found))]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Illustrated:
    """The pictures of a report."""

    pictures: dict[str, bytes]
    """PNG by name, as `evaluate.page` takes them."""
    board: dict[str, bytes]
    """Files of TensorBoard by path: embedding of the trained row with thumbnails, training curves."""
    notes: tuple[str, ...]
    """What could not be shown, and what to do about it."""


def choose(measured: Sequence[Measured], seed: int, contact_sheets: int = 0) -> Choice:
    """Choose which tiles are shown.

    Args:
        measured: the rows, all of one question, the trained one last.
        seed: of the choice.
        contact_sheets: queries that are answered at length.
    """
    question, rng = measured[0].question, np.random.default_rng(seed)
    count = len(question.tile_ids)
    pictured = np.sort(rng.choice(count, min(count, PICTURED), replace=False))
    queries = fixed_queries(question, QUERIES, rng)
    listed = fixed_queries(question, contact_sheets, np.random.default_rng(seed))
    return Choice(
        pictured=pictured,
        sheets=tuple(answered(row, queries, NEIGHBOURS, seed) for row in measured),
        contact=tuple(answered(row, listed, LISTED, seed) for row in measured) if len(listed) else (),
    )


def illustrate(
    measured: Sequence[Measured],
    report: Mapping[str, Any],
    chosen: Choice,
    images: Mapping[str, Image],
    history: History,
    *,
    umap: bool,
    seed: int,
) -> Illustrated:
    """Draw everything.

    Args:
        measured: the rows, the trained one last.
        report: as `report.json` holds it.
        chosen: which tiles.
        images: (height, width, 3) uint8 of each tile that was chosen, by tile id; sizes may differ.
        history: (epoch, value) by metric of the training; empty where nothing is known of it.
        umap: whether the trained row is laid out by UMAP, too.
        seed: of that layout.
    """
    question, trained = measured[0].question, measured[-1]
    thumbnails = {tile: _thumbnail(images[question.tile_ids[tile]]) for tile in chosen.tiles().tolist()}
    planes, notes = _planes(measured, chosen, thumbnails, seed if umap else None)
    drawn = {"rows": pictures.rows_chart(report["rows"], report["objective"], ours=trained.name), **planes}
    if report["ranks"]:
        drawn["ranks"] = pictures.ranks_chart(report["ranks"], ours=trained.name)
    drawn |= {f"neighbours/{sheet.row}": _sheet(sheet, question, thumbnails) for sheet in chosen.sheets}
    drawn |= _contact(chosen, question, thumbnails)
    drawn |= _confusions(report)
    if history:
        drawn["curves"] = pictures.curves(history)
    return Illustrated(pictures=drawn, board=_board(trained, chosen, thumbnails, history), notes=notes)


def _thumbnail(image: Image) -> Image:
    """Bring a tile to the size of a thumbnail; small ones keep their pixels to be seen."""
    resampling = PIL.Image.Resampling.BOX if max(image.shape[:2]) > _SIDE else PIL.Image.Resampling.NEAREST
    return np.asarray(PIL.Image.fromarray(image).resize((_SIDE, _SIDE), resampling))


def _planes(
    measured: Sequence[Measured], chosen: Choice, thumbnails: Mapping[int, Image], umap_seed: int | None
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Draw every row's first two components, and the trained row by UMAP, too, as dots and as thumbnails; None: without UMAP."""
    trained, tiles = measured[-1], chosen.pictured
    if len(tiles) < _FEWEST:
        return {}, (f"the embedding of {len(tiles)} tiles has no plane to be shown in",)
    missing = pictures.umap_missing() if umap_seed is not None else None
    projections = {f"pca/{row.name}": pictures.project_pca(row.vectors[tiles]) for row in measured}
    if umap_seed is not None and missing is None:
        projections[f"umap/{trained.name}"] = pictures.project_umap(trained.vectors[tiles], umap_seed)
    shown, coloured = np.stack([thumbnails[tile] for tile in tiles.tolist()]), _coloured(trained.question, tiles)
    drawn = {}
    for name, projection in projections.items():
        kind, _, row = name.partition("/")
        drawn[name] = pictures.scatter(projection, **coloured, title=row)
        if row == trained.name:
            drawn[f"{kind}-thumbnails/{row}"] = pictures.scatter_thumbnails(projection, shown, **coloured, title=row)
    return drawn, (missing,) if missing else ()


def _coloured(question: Question, tiles: IntArray) -> dict[str, Any]:
    """Return what dots are coloured by: the class, or, without classes, the ground that they lie on."""
    if question.classes:
        return {"labels": question.codes[tiles], "classes": question.classes, "kind": "class"}
    return {"labels": np.unique(question.ground, return_inverse=True)[1][tiles], "kind": question.ground_means}


def _contact(chosen: Choice, question: Question, thumbnails: Mapping[int, Image]) -> dict[str, bytes]:
    """Draw a sheet of its own for each query that the trained row answers at length."""
    drawn = {}
    for answers in chosen.contact[-1:]:
        found, least = (answers.average_precision(over) for over in ("found", "min"))
        for place, (query, tiles, right) in enumerate(zip(answers.queries.tolist(), answers.found.tolist(), answers.right, strict=True)):
            name = f"query {place + 1}, {_name(question, query)}"
            judged = f"AP {found[place]:.3f} over those found, {least[place]:.3f} over those to find"
            title = f"{name}: {right.sum()} of {len(tiles)} relevant, {judged}"
            shown = np.stack([thumbnails[tile] for tile in tiles])
            drawn[f"contact/{place + 1:02}"] = pictures.contact_sheet(thumbnails[query], shown, right, title=title)
    return drawn


def _sheet(sheet: Answers, question: Question, thumbnails: Mapping[int, Image]) -> bytes:
    def shown(tiles: IntArray) -> Image:
        return np.stack([thumbnails[tile] for tile in tiles.ravel().tolist()]).reshape(*tiles.shape, _SIDE, _SIDE, 3)

    captions = [[_name(question, tile) for tile in row] for row in sheet.found.tolist()] if question.classes else None
    titles = [_name(question, tile) for tile in sheet.queries.tolist()]
    return pictures.sheet(shown(sheet.queries), shown(sheet.found), sheet.right, titles, captions=captions, title=sheet.row)


def _name(question: Question, tile: int) -> str:
    """Return a tile's class, or the start of its id where it has none."""
    code = question.codes[tile]
    return question.classes[code] if code >= 0 else question.tile_ids[tile][:8]


def _confusions(report: Mapping[str, Any]) -> dict[str, bytes]:
    found = report["confusion"]
    if not found:
        return {}
    return {
        f"confusion/{row}": pictures.confusion(np.array(matrix, np.int64), found["classes"], title=row)
        for row, matrix in found["rows"].items()
    }


def _board(trained: Measured, chosen: Choice, thumbnails: Mapping[int, Image], history: History) -> dict[str, bytes]:
    question, tiles = trained.question, chosen.pictured.tolist()
    columns = {"tile_id": [question.tile_ids[tile] for tile in tiles], "ground": [question.ground[tile] for tile in tiles]}
    if question.classes:
        columns["class"] = [_name(question, tile) if question.codes[tile] >= 0 else "" for tile in tiles]
    shown = np.stack([thumbnails[tile] for tile in tiles])
    files = projector.projector({trained.name: trained.vectors[chosen.pictured]}, columns, shown)
    return files | (projector.scalars(history) if history else {})
