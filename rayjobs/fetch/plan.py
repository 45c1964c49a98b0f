"""What will be asked of which service: scenes, their tiles, and the pieces in which answers are kept. Nothing is fetched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayjobs.errors import ConfigError, EmptySearchError
from rayjobs.rasters import dates
from rayjobs.rasters.section import GibsSource, WmtsSource, XyzSource
from rayjobs.rasters.sources import SOURCES, searched
from rayjobs.rasters.tiled import TiledImage

if TYPE_CHECKING:
    import datetime
    from collections.abc import Sequence

    from rayjobs.fetch.section import FetchSection
    from rayjobs.rasters.section import RastersSection

PIECES = "pieces/"
"""Where the pieces of all scenes lie, relative to the artefact."""

_FORMAT = 1
"""Raised when the same plan would give other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchScene:
    """One date of one layer."""

    scene_id: str
    series: str
    """What all dates of the same layer, level and tiles have in common: the id without the date."""
    image: TiledImage
    datetime: datetime.datetime | None
    """UTC."""
    listed: bool
    """Whether the service lists its date, or lists none."""
    tiles_per_piece: int
    settings: str
    """What else decides the bytes of the file."""

    @property
    def pieces_folder(self) -> str:
        """Where its pieces lie, relative to the artefact, ending in `/`."""
        return f"{PIECES}{_digest(self.image.uri, str(self.tiles_per_piece))}/"

    @property
    def done(self) -> str:
        """Where it is written down that it is complete, relative to the artefact."""
        return f"done/{_digest(self.scene_id, self.image.uri, self.settings)}.parquet"

    @property
    def requests(self) -> int:
        """How many tiles it has."""
        rows, cols = self.image.shape
        return rows * cols

    @property
    def pieces(self) -> int:
        """How many pieces."""
        return -(-self.requests // self.tiles_per_piece)

    def tiles(self, piece: int) -> list[tuple[int, int]]:
        """Return row and column of the tiles of a piece, as the service counts."""
        cols = self.image.shape[1]
        first = piece * self.tiles_per_piece
        numbers = range(first, min(first + self.tiles_per_piece, self.requests))
        return [(self.image.row + number // cols, self.image.col + number % cols) for number in numbers]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join([str(_FORMAT), *parts]).encode()).hexdigest()[:16]


def plan_fetch(rasters: RastersSection, section: FetchSection) -> list[FetchScene]:
    """Ask the services what they have, and return the scenes to fetch, sorted by id.

    Raises:
        ConfigError: no source hands out tiles, or two scenes would be one.
        EmptySearchError: nothing lies in the area and the dates.
    """
    sources = [source for source in rasters.sources if isinstance(source, GibsSource | WmtsSource | XyzSource)]
    if not sources:
        raise ConfigError("rasters.sources names no service of tiles (kind gibs, wmts or xyz), so that there is nothing to fetch")
    search = searched(rasters)
    listed = [entry for source in sources for entry in SOURCES[source.kind](source, search)]
    inside = [entry for entry in listed if search.span is None or (entry.datetime and search.span.holds(entry.datetime))]
    if not inside:
        raise EmptySearchError(f"none of {len(listed)} scenes lies in rasters.aoi and rasters.datetime; widen the area or the dates")
    settings = f"{section.nodata} {section.compress} {sorted(section.empty_statuses)}"
    scenes = [
        FetchScene(
            scene_id=entry.scene_id,
            series=entry.series or entry.scene_id,
            image=TiledImage.from_uri(entry.files[0].uri),
            datetime=entry.datetime,
            listed=entry.listed,
            tiles_per_piece=section.tiles_per_piece,
            settings=settings,
        )
        for entry in inside
    ]
    scenes.sort(key=lambda scene: scene.scene_id)
    _refuse_twins(scenes)
    return scenes


def _refuse_twins(scenes: Sequence[FetchScene]) -> None:
    """Raise `ConfigError` where two scenes have one id or are one picture, whose tiles are kept in one place."""
    by_id: dict[str, FetchScene] = {}
    by_uri: dict[str, FetchScene] = {}
    for scene in scenes:
        twin = by_uri.setdefault(scene.image.uri, scene)
        if twin is not scene:
            named = f"{twin.scene_id} and {scene.scene_id}"
            raise ConfigError(f"{scene.image.template} would be fetched twice, as the scenes {named}; drop one from rasters.sources")
        if by_id.setdefault(scene.scene_id, scene) is not scene:
            raise ConfigError(f"two sources would give the scene {scene.scene_id}; give one a `name`, or drop it")


def version_name(scenes: Sequence[FetchScene], animation: str, files: Sequence[str] = ()) -> str:
    """Return the name of the version that a plan and its files (their digests) give, or of the plan alone: 16 hexadecimal digits."""
    return _digest(animation, *(scene.done for scene in scenes), *files)


def cost(scenes: Sequence[FetchScene], section: FetchSection) -> dict[str, Any]:
    """Return what fetching takes: requests, pixels, bytes before compression, and the least time at the agreed pace."""
    requests = sum(scene.requests for scene in scenes)
    pixels = [scene.image.height * scene.image.width for scene in scenes]
    return {
        "scenes": len(scenes),
        "requests": requests,
        "pieces": sum(scene.pieces for scene in scenes),
        "pixels": sum(pixels),
        "bytes_decoded": sum(size * scene.image.bands for size, scene in zip(pixels, scenes, strict=True)),
        "largest_scene_pixels": max(pixels),
        "seconds_at_least": requests / section.requests_per_second,
    }


def unlisted(scenes: Sequence[FetchScene]) -> list[str]:
    """Return the ids of scenes whose date the service does not list: it may have nothing of them."""
    return [scene.scene_id for scene in scenes if not scene.listed]


def when(scene: FetchScene) -> str | None:
    """Return when a scene was taken, as STAC writes it."""
    return None if scene.datetime is None else dates.written(scene.datetime)
