"""Palettes: the colours in which maps of classes are drawn, and the class that a colour stands for.

The colours of `CORINE` are those that the European Environment Agency publishes with the CORINE Land Cover nomenclature (the column RGB of
its legend, `clc_legend.csv`), one for each of the 44 classes of level 3 and white for ground that is not mapped. `OSM` is how
osmlanduse.org draws land use: 13 classes near CORINE's level 2, each in the colour of one of CORINE's classes, as the first earlier system
read its tiles. A map drawn otherwise needs a palette of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from rayjobs.geo import IntArray

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

NODATA = "nodata"
"""Name of a colour that says that a pixel has no class."""

OSM: Mapping[str, Colour] = MappingProxyType(
    {
        "arable land": (255, 255, 168),
        "open space": (230, 230, 230),
        "forest": (77, 255, 0),
        "pastures": (230, 230, 77),
        "shrub": (204, 242, 77),
        "wetlands": (166, 166, 255),
        "permanent crops": (230, 128, 0),
        "urban fabric": (230, 0, 77),
        "industrial": (204, 77, 242),
        "artificial vegetated areas": (255, 166, 255),
        "water": (0, 204, 242),
        "mine, dump and construction": (166, 0, 204),
        "coastal wetlands": (230, 230, 255),
    }
)

CORINE: Mapping[str, Colour] = MappingProxyType(
    {
        "continuous urban fabric": (230, 0, 77),
        "discontinuous urban fabric": (255, 0, 0),
        "industrial or commercial units": (204, 77, 242),
        "road and rail networks": (204, 0, 0),
        "port areas": (230, 204, 204),
        "airports": (230, 204, 230),
        "mineral extraction sites": (166, 0, 204),
        "dump sites": (166, 77, 0),
        "construction sites": (255, 77, 255),
        "green urban areas": (255, 166, 255),
        "sport and leisure facilities": (255, 230, 255),
        "non-irrigated arable land": (255, 255, 168),
        "permanently irrigated land": (255, 255, 0),
        "rice fields": (230, 230, 0),
        "vineyards": (230, 128, 0),
        "fruit trees and berry plantations": (242, 166, 77),
        "olive groves": (230, 166, 0),
        "pastures": (230, 230, 77),
        "annual crops with permanent crops": (255, 230, 166),
        "complex cultivation patterns": (255, 230, 77),
        "agriculture with natural vegetation": (230, 204, 77),
        "agro-forestry areas": (242, 204, 166),
        "broad-leaved forest": (128, 255, 0),
        "coniferous forest": (0, 166, 0),
        "mixed forest": (77, 255, 0),
        "natural grasslands": (204, 242, 77),
        "moors and heathland": (166, 255, 128),
        "sclerophyllous vegetation": (166, 230, 77),
        "transitional woodland-shrub": (166, 242, 0),
        "beaches, dunes, sands": (230, 230, 230),
        "bare rocks": (204, 204, 204),
        "sparsely vegetated areas": (204, 255, 204),
        "burnt areas": (0, 0, 0),
        "glaciers and perpetual snow": (166, 230, 204),
        "inland marshes": (166, 166, 255),
        "peat bogs": (77, 77, 255),
        "salt marshes": (204, 204, 255),
        "salines": (230, 230, 255),
        "intertidal flats": (166, 166, 230),
        "water courses": (0, 204, 242),
        "water bodies": (128, 242, 230),
        "coastal lagoons": (0, 255, 166),
        "estuaries": (166, 255, 230),
        "sea and ocean": (230, 242, 255),
        NODATA: (255, 255, 255),
    }
)

PALETTES: Mapping[str, Mapping[str, Colour]] = MappingProxyType({"osm": OSM, "corine": CORINE})
"""Palettes by the name that `rasters.label_map.palette` takes."""


def class_names(palette: Mapping[str, Colour]) -> tuple[str, ...]:
    """Return the classes of a palette, in its order."""
    return tuple(name for name in palette if name != NODATA)


def nearest_classes(colours: np.ndarray[Any, np.dtype[np.uint8]], palette: Mapping[str, Colour], tolerance: int) -> IntArray:
    """Return (n,) int64 the class of each colour, as its position in `class_names`; -1 where it has none.

    A colour has the class of the palette's nearest colour (the earlier of equally near ones), if that is nearer than `tolerance`: distances
    are sums of the differences in red, green and blue.

    Args:
        colours: (3, n) uint8, red, green and blue.
        palette: colour of each class; that of `NODATA` stands for none.
        tolerance: 0 to 765.
    """
    names = class_names(palette)
    packed, of_pixel = np.unique(_packed(colours), return_inverse=True)  # drawn maps have few colours
    distinct = np.stack([packed >> 16, packed >> 8 & 255, packed & 255])
    nearest = np.full(len(packed), tolerance, np.int64)
    found = np.full(len(packed), -1, np.int64)
    for name, colour in palette.items():
        apart = np.abs(distinct - np.array(colour)[:, None]).sum(axis=0)
        nearer = apart < nearest
        nearest[nearer] = apart[nearer]
        found[nearer] = -1 if name == NODATA else names.index(name)
    return found[of_pixel]


def _packed(colours: np.ndarray[Any, np.dtype[np.uint8]]) -> IntArray:
    red, green, blue = colours.astype(np.int64)
    packed: IntArray = red << 16 | green << 8 | blue
    return packed
