"""What the tiles of an index show: nothing, too little that is valid, or stripes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayjobs.doctor.checks import Check, caution, fault, ok
from rayjobs.doctor.stripes import LEAST_COLUMNS, LEAST_ROWS, Grid, striping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayjobs.doctor.opened import Opened, Pixels
    from rayjobs.doctor.stripes import Striping
    from rayjobs.tiles.chips import Chip

Array = np.ndarray[Any, Any]

_FLAT = 0.01
"""Of a band's deviation in the set: a tile that varies less, in every band, shows nothing."""
_SOME, _MOST = 0.05, 0.5
_FILL = 0.1
"""Share of valid pixels with one value in all bands, at an end of what there is, from which it looks like an undeclared nodata value."""
_MOST_TILES = 200_000
_MOST_SCENES = 8
_UNLIKELY = 0.005
"""For rows and for columns: one healthy index in a hundred."""
_CLEAR, _PLAIN = 0.1, 0.02
"""Shares that rows have in common: of a fault, and of what is said. Of real scenes without stripes most have less than 0.04, and farmland
along survey lines 0.05; steps between rows as large as a landscape's own contrast give 0.2."""
_PLACED = ("scene_id", "row", "col", "height", "width")


def shows_nothing(chip: Chip, band_std: Array) -> bool:
    """Whether a chip's valid pixels hardly vary."""
    if not chip.valid.any():
        return True
    return bool((chip.pixels[:, chip.valid].astype(np.float64).std(axis=1) <= _FLAT * band_std).all())


def constant_share(pixels: Pixels) -> float:
    """Return the share of tiles that show nothing."""
    return float(np.mean([shows_nothing(chip, pixels.band_std) for chip in pixels.chips]))


def constant(pixels: Pixels) -> Check:
    """Judge how many tiles show nothing."""
    share = constant_share(pixels)
    said = f"{share:.1%} of {len(pixels.chips)} tiles vary by less than {_FLAT:.0%} of the set's deviation in every band"
    remedy = "look at them (rayjobs evaluate shows tiles); declare nodata, raise tiles.min_valid_fraction, or leave out such scenes"
    if share > _MOST:
        return fault("imagery/constant", f"the imagery is at fault: {said}", remedy)
    return caution("imagery/constant", f"{said}: they are all alike", remedy) if share > _SOME else ok("imagery/constant", said)


def invalid(pixels: Pixels) -> Check:
    """Judge how many pixels are invalid, and whether others look as if they should be."""
    lost = float(np.mean([1 - chip.valid.mean() for chip in pixels.chips]))
    said = f"{lost:.1%} of the pixels of {len(pixels.chips)} tiles are invalid"
    if lost > _MOST:
        remedy = "see rasters.sources (nodata, quality): clouds, or a mask that is the wrong way round; raise tiles.min_valid_fraction"
        return fault("imagery/invalid", f"the imagery is at fault: {said}", remedy)
    filled, value = _filled(pixels)
    if filled > _FILL:
        finding = f"{said}; {filled:.1%} of the valid ones have the value {value:g} in every band: it may be nodata that no file declares"
        return caution("imagery/invalid", finding, "declare it (`nodata` of the source), and sample anew")
    if lost > _SOME:
        return caution("imagery/invalid", said, "raise tiles.min_valid_fraction: tiles with like gaps look alike")
    return ok("imagery/invalid", said)


def _filled(pixels: Pixels) -> tuple[float, float]:
    """Return the greater share of valid pixels that have the least, or the greatest, of all values in every band, and that value."""
    values = np.concatenate([chip.pixels[:, chip.valid] for chip in pixels.chips], axis=1)
    if not values.size:
        return 0.0, 0.0
    ends = [values.min(), values.max()]
    shares = [float((values == end).all(axis=0).mean()) for end in ends]
    return max((share, float(end)) for share, end in zip(shares, ends, strict=True))


def stripes(opened: Opened) -> Check:
    """See whether tiles are alike for their row or column in the scene's grid of tiles."""
    name, grids = "imagery/stripes", list(grids_of(opened))
    found = {"rows": striping(grids), "columns": striping([grid.turned for grid in grids])}
    told = {way: one for way, one in found.items() if one is not None}
    if not told:
        return ok(name, f"no scene has tiles on a grid of {LEAST_ROWS} x {LEAST_COLUMNS} or more, without which stripes cannot be told")
    said = "; ".join(_said(way, one) for way, one in told.items())
    sure = [one.share - one.chance for one in told.values() if one.p <= _UNLIKELY]
    if max(sure, default=0) > _CLEAR:
        remedy = "look at the scenes along those lines: destripe them, or cut mosaics into their parts; then rayjobs sample"
        return fault(name, f"the imagery is at fault: tiles are alike for where they stand, and not for what they show: {said}", remedy)
    if max(sure, default=0) > _PLAIN:
        return caution(name, f"tiles are a little alike for where they stand: {said}", "look at the scenes for stripes and seams")
    return ok(name, said)


def _said(way: str, one: Striping) -> str:
    return f"{way} have {one.share:.1%} in common, {one.chance:.1%} by chance (p {one.p:.3f}, {one.tiles:,} tiles)"


def grids_of(opened: Opened) -> Iterator[Grid]:
    """Yield the tiles of the scenes that have most, each at its place in a grid whose cells are as large as a tile."""
    tiles = opened.drawn(_MOST_TILES) if opened.tiles > _MOST_TILES else opened.drawn(opened.tiles)
    known = opened.known(tiles, _PLACED)
    scenes: dict[str, list[int]] = {}
    for number, one in enumerate(known):
        scenes.setdefault(one["scene_id"], []).append(number)
    for members in sorted(scenes.values(), key=len, reverse=True)[:_MOST_SCENES]:
        cells = np.array(
            [(known[number]["row"] // known[number]["height"], known[number]["col"] // known[number]["width"]) for number in members]
        )
        cells -= cells.min(axis=0)
        yield _grid(cells, tiles.vectors[members])


def _grid(cells: Array, vectors: Array) -> Grid:
    """Put vectors at (n, 2) cells; of several in one cell the first."""
    shape = tuple(cells.max(axis=0) + 1)
    unique, first = np.unique(cells, axis=0, return_index=True)
    there = np.zeros(shape, np.bool_)
    placed = np.zeros((*shape, vectors.shape[1]), np.float64)
    there[unique[:, 0], unique[:, 1]] = True
    placed[unique[:, 0], unique[:, 1]] = vectors[first]
    return Grid(vectors=placed, there=there)
