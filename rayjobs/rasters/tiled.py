"""Pictures that a service hands out in tiles: which tiles make one up, where they lie, and how GDAL is told to read them."""

from __future__ import annotations

import dataclasses
import math
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from rayjobs.geo import Grid, Window

SCHEME = "tiles+"
"""How addresses of such pictures begin; the address of a tile follows, and after `#` where the tiles lie."""

_BANDS = (1, 3, 4)
"""How many bands tiles may have: grey, colours, colours with opacity."""

_EDGE = 1e-6
"""Of a tile or a pixel: what computed edges may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileMatrix:
    """One level of a service: tiles side by side from the top left corner, all of one size."""

    identifier: str
    left: float
    """Outer edge of the first column, in the CRS's unit."""
    top: float
    """Outer edge of the first row."""
    pixel_width: float
    """Positive, in the CRS's unit."""
    pixel_height: float
    """Positive; rows go down."""
    tile_width: int
    """Pixels."""
    tile_height: int
    """Pixels."""
    columns: int
    """Tiles side by side, from the first one on; the last may reach beyond the ground that there is."""
    rows: int
    resolution_m: float
    """Metres per pixel, in geographic CRSs at the equator."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of all tiles, in the CRS's unit."""
        right = self.left + self.columns * self.tile_width * self.pixel_width
        return self.left, self.top - self.rows * self.tile_height * self.pixel_height, right, self.top


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledImage:
    """One picture that a service hands out in tiles: whole tiles from its top left corner on, cut at the right and at the bottom."""

    template: str
    """`http(s)` address of a tile, with `{row}` and `{col}`."""
    crs: str
    left: float
    """Outer edge of the first tile, in the CRS's unit."""
    top: float
    pixel_width: float
    """Positive, in the CRS's unit."""
    pixel_height: float
    """Positive; rows go down."""
    tile_width: int
    """Pixels."""
    tile_height: int
    """Pixels."""
    row: int
    """Of the first tile, as the service counts."""
    col: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    bands: int
    """1 grey, 3 red, green and blue, 4 with opacity; uint8."""
    nodata: float | None = None
    """Value of missing pixels; None if there is none."""

    def __post_init__(self) -> None:
        """Check the numbers; raises `ValueError`, since they may come from an address."""
        sizes = (self.tile_width, self.tile_height, self.height, self.width)
        if min(sizes) < 1 or min(self.row, self.col) < 0 or self.bands not in _BANDS:
            raise ValueError(f"no picture has tiles, sizes, rows or bands like these: {self}")
        corner, pixel = (self.left, self.top), (self.pixel_width, self.pixel_height)
        if not all(map(math.isfinite, corner)) or not all(0 < side < math.inf for side in pixel):
            raise ValueError(f"no picture has such corners or pixels: {self}")

    @property
    def uri(self) -> str:
        """The picture's address, from which `from_uri` makes it again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "template"}
        told = {name: value for name, value in fields.items() if value is not None}
        return f"{SCHEME}{self.template}#{urllib.parse.urlencode(told, safe=':')}"

    @classmethod
    def from_uri(cls, uri: str) -> TiledImage:
        """Return the picture of an address.

        Raises:
            ValueError: it is the address of none.
        """
        template, mark, told = uri.removeprefix(SCHEME).rpartition("#")
        if not uri.startswith(SCHEME) or not mark:
            raise ValueError(f"{uri} is no address of a picture in tiles")
        if urllib.parse.urlsplit(template).scheme not in {"http", "https"}:
            raise ValueError(f"{uri} names tiles that are not of http(s)")
        found = dict(urllib.parse.parse_qsl(told, strict_parsing=True))
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cls) if field.name != "template"}
        if unknown := found.keys() - kinds.keys():
            raise ValueError(f"{uri} tells {', '.join(sorted(unknown))}, which pictures in tiles do not have")
        read = {"int": int, "str": str}
        try:
            return cls(template=template, **{name: read.get(kinds[name], float)(value) for name, value in found.items()})
        except (TypeError, ValueError) as error:  # the former where a field is missing
            raise ValueError(f"{uri} is no address of a picture in tiles: {error}") from error

    @property
    def grid(self) -> Grid:
        """Where the pixels lie."""
        transform = (self.pixel_width, 0.0, self.left, 0.0, -self.pixel_height, self.top)
        return Grid(crs=self.crs, transform=transform, height=self.height, width=self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles from top to bottom, and from left to right."""
        return -(-self.height // self.tile_height), -(-self.width // self.tile_width)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield row and column of each tile, as the service counts, from the top left on."""
        rows, cols = self.shape
        return ((self.row + row, self.col + col) for row in range(rows) for col in range(cols))

    def address(self, row: int, col: int) -> str:
        """Return the address of a tile."""
        return self.template.replace("{row}", str(row)).replace("{col}", str(col))

    def window(self, row: int, col: int) -> Window:
        """Return which pixels of the picture a tile gives; at the right and at the bottom fewer than it has."""
        top, left = (row - self.row) * self.tile_height, (col - self.col) * self.tile_width
        height, width = min(self.tile_height, self.height - top), min(self.tile_width, self.width - left)
        return Window(row=top, col=left, height=height, width=width)

    def gdal_xml(self) -> str:
        """Return the picture as GDAL's driver WMS (service TMS) opens it; opening asks the service nothing."""
        server = escape(self.template.replace("{row}", "${y}").replace("{col}", "${x}"))
        right, bottom = self.left + self.width * self.pixel_width, self.top - self.height * self.pixel_height
        missing = "" if self.nodata is None else f'<DataValues NoData="{self.nodata:g}"/>'
        return (
            f'<GDAL_WMS><Service name="TMS"><ServerUrl>{server}</ServerUrl></Service><DataWindow>'
            f"<UpperLeftX>{self.left!r}</UpperLeftX><UpperLeftY>{self.top!r}</UpperLeftY>"
            f"<LowerRightX>{right!r}</LowerRightX><LowerRightY>{bottom!r}</LowerRightY>"
            f"<SizeX>{self.width}</SizeX><SizeY>{self.height}</SizeY><TileX>{self.col}</TileX><TileY>{self.row}</TileY>"
            f"<TileLevel>0</TileLevel><YOrigin>top</YOrigin></DataWindow><Projection>{escape(self.crs)}</Projection>"
            f"<BlockSizeX>{self.tile_width}</BlockSizeX><BlockSizeY>{self.tile_height}</BlockSizeY><BandsCount>{self.bands}</BandsCount>"
            f"{missing}<UserAgent>rayjobs</UserAgent><Timeout>30</Timeout></GDAL_WMS>"
        )


def cut(
    matrix: TileMatrix,
    bounds: tuple[float, float, float, float],
    limit: tuple[float, float, float, float],
    *,
    template: str,
    crs: str,
    bands: int,
    nodata: float | None,
) -> TiledImage | None:
    """Return the picture of all tiles of a matrix that meet some bounds; None if none does.

    Args:
        matrix: the level.
        bounds: left, bottom, right and top of what is asked for, in the CRS's unit.
        limit: likewise, of what the service has; pixels beyond its right and its bottom edge are cut off.
        template: see `TiledImage`, as what follows.
        crs: likewise.
        bands: likewise.
        nodata: likewise.
    """
    whole = _common(matrix.bounds, limit)
    left, bottom, right, top = _common(whole, bounds)
    if left >= right or bottom >= top:
        return None
    across, down = matrix.tile_width * matrix.pixel_width, matrix.tile_height * matrix.pixel_height
    col, row = math.floor((left - matrix.left) / across + _EDGE), math.floor((matrix.top - top) / down + _EDGE)
    cols = math.ceil((right - matrix.left) / across - _EDGE) - col
    rows = math.ceil((matrix.top - bottom) / down - _EDGE) - row
    if rows < 1 or cols < 1:  # they only touch
        return None
    at_left, at_top = matrix.left + col * across, matrix.top - row * down
    return TiledImage(
        template=template,
        crs=crs,
        left=at_left,
        top=at_top,
        pixel_width=matrix.pixel_width,
        pixel_height=matrix.pixel_height,
        tile_width=matrix.tile_width,
        tile_height=matrix.tile_height,
        row=row,
        col=col,
        height=min(rows * matrix.tile_height, math.ceil((at_top - whole[1]) / matrix.pixel_height - _EDGE)),
        width=min(cols * matrix.tile_width, math.ceil((whole[2] - at_left) / matrix.pixel_width - _EDGE)),
        bands=bands,
        nodata=nodata,
    )


def _common(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
