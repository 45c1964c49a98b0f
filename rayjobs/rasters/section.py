"""The `rasters` section of the experiment file: which images, which bands, and what their values mean."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

import pydantic

from rayjobs.config import section
from rayjobs.rasters.palettes import PALETTES, class_names

_Part = Annotated[int, pydantic.Field(ge=0, le=255)]
_SHORT = re.compile(r"gibs:([^@\s]+)(?:@(\S+))?")
_PATTERN_GROUPS = {"scene", "band", "date"}
_PICTURE_GROUPS = {"place", "date", "observation", "lon", "lat"}
_IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2")


def _as_text(value: Any) -> Any:
    """YAML reads an unquoted date as a date; we keep dates as text."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def _check_groups(pattern: str, known: set[str]) -> None:
    """Refuse what is no regular expression, or has no group of those known, or others."""
    try:
        groups = set(re.compile(pattern).groupindex)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if not groups or groups - known:
        raise ValueError(f"needs one or more of the groups {', '.join(f'(?P<{name}>...)' for name in sorted(known))}, and no others")


def _check_channels(count: int) -> int:
    if count not in {1, 3, 4}:
        raise ValueError("tiles have 1 band (grey), 3 (colours) or 4 (with opacity)")
    return count


DateText = Annotated[str, pydantic.BeforeValidator(_as_text)]


@section
class QualitySection:
    """The layer that says which pixels of a scene cannot be used."""

    uri: str | None = None
    """File of the layer; `{scene}` stands for the scene's id. For files without a `band`."""
    band: str | int = 1
    """Band of that file, counted from 1; without `uri`, the name of one of the scene's own bands (or of the pattern's `band` group)."""
    bits: tuple[int, ...] = ()
    """A pixel is not valid if any of these bits is set, the lowest being 0."""
    classes: tuple[int, ...] = ()
    """A pixel is not valid if the layer has one of these values."""

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> QualitySection:
        if not self.bits and not self.classes:
            raise ValueError("name the `bits` or the `classes` that make a pixel unusable")
        if self.uri is None and isinstance(self.band, int):
            raise ValueError("give the layer's `uri`, or the name of one of the scene's bands as `band`")
        if self.uri is not None and not isinstance(self.band, int):
            raise ValueError("with `uri`, `band` is a number counted from 1")
        return self


@section
class StacQualitySection:
    """The asset that says which pixels of an item cannot be used."""

    asset: str
    """Key of the asset, such as `scl` or `qa_pixel`."""
    band: pydantic.PositiveInt = 1
    """Band of the asset, counted from 1."""
    bits: tuple[int, ...] = ()
    """A pixel is not valid if any of these bits is set, the lowest being 0."""
    classes: tuple[int, ...] = ()
    """A pixel is not valid if the layer has one of these values."""

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> StacQualitySection:
        if not self.bits and not self.classes:
            raise ValueError("name the `bits` or the `classes` that make a pixel unusable")
        return self


@section
class FilesSource:
    """Raster files: one per scene, or one per band."""

    kind: Literal["files"] = "files"
    uris: tuple[str, ...]
    """Files, folders and globs, local or `s3://`."""
    bands: tuple[str, ...] | None = None
    """Names of a file's bands in the file's order (null: the names that the file gives, or b1, b2, ...)."""
    pattern: str | None = None
    """Regular expression searched in each address, with groups `scene`, `band`, `date`; files of one `scene` are joined by `band`."""
    datetime: DateText | None = None
    """When the scenes were taken, ISO 8601 (null: group `date` of the pattern, or the file's own tags)."""
    nodata: float | None = None
    """The value of missing pixels (null: as the file says)."""
    scale: float | None = None
    """Physical value = raw * scale + offset (null: as the file says)."""
    offset: float | None = None
    """See `scale`."""
    quality: QualitySection | None = None
    """Layer of unusable pixels."""
    name: str | None = None
    """Prefix of the scenes' ids; the id itself where `pattern` has `band` but no `scene`."""
    platform: str | None = None
    """Satellite or aircraft; `sentinel-2...` turns on the check of its offset."""

    @pydantic.field_validator("uris")
    @classmethod
    def _not_empty(cls, uris: tuple[str, ...]) -> tuple[str, ...]:
        if not uris:
            raise ValueError("name at least one file, folder or glob")
        return uris

    @pydantic.field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            _check_groups(pattern, _PATTERN_GROUPS)
        return pattern


@section
class StacSource:
    """Scenes that STAC items describe."""

    kind: Literal["stac"] = "stac"
    items: tuple[str, ...]
    """Files of an Item or ItemCollection (JSON), folders and globs of them: local, `s3://` or `https://`."""
    assets: dict[str, str] | None = None
    """Asset of each band name, as `key`, or `key:2` for its second band (null: every data asset, named by its key or its bands)."""
    quality: StacQualitySection | None = None
    """Asset of unusable pixels."""


@section
class CompanionSection:
    """A label image beside each picture, which becomes further bands of it: `label`, or `label_red`, `label_green`, `label_blue`."""

    replace: str
    """Regular expression of what in a picture's path (relative to `root`) differs from its label image's."""
    by: str
    r"""What stands there instead; `\1` is the expression's first group."""
    turn: Annotated[int, pydantic.Field(ge=0, le=270, multiple_of=90)] = 0
    """Degrees clockwise by which label images are turned to lie on their pictures."""

    @pydantic.field_validator("replace")
    @classmethod
    def _compiles(cls, replace: str) -> str:
        try:
            re.compile(replace)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return replace


@section
class ImagesSource:
    """A folder of plain pictures without coordinates, in any format that GDAL reads."""

    kind: Literal["images"] = "images"
    root: str
    """The folder."""
    labels: Literal["folder", "csv", "none"] = "folder"
    """Where the class of a picture stands: name of its first folder, a table, or nowhere."""
    csv: str | None = None
    """The table, with a line of column names; only the pictures that it lists are taken."""
    csv_file_column: str = "file"
    """Column of paths relative to `root`."""
    csv_label_column: str = "label"
    """Column of classes, with `labels: csv`."""
    csv_observation_column: str | None = None
    """Column of what a picture was cut from (`tiles.splits.by: observation` keeps its pictures together)."""
    csv_place_column: str | None = None
    """Column of the place that a picture shows, the same on all dates."""
    csv_date_column: str | None = None
    """Column of dates."""
    csv_lon_column: str | None = None
    """Column of the longitude of a picture's middle: degrees east, or with a letter, as 354W."""
    csv_lat_column: str | None = None
    """Column of its latitude: degrees north, or with a letter, as 16S."""
    pattern: str | None = None
    """Regular expression searched in each path relative to `root`, with groups `observation`, `place`, `date`, `lon`, `lat`; pictures that
    do not fit are left out. The table goes before it."""
    body: Literal["earth", "mars", "moon"] | pydantic.PositiveFloat = "earth"
    """What longitudes and latitudes are of; of other bodies the radius, metres."""
    companion: CompanionSection | None = None
    """A label image beside each picture."""
    resolution_m: pydantic.PositiveFloat | None = None
    """Metres per pixel, where known."""
    extensions: tuple[str, ...] = _IMAGE_EXTENSIONS
    """Endings of the files to take, in any case."""
    name: str | None = None
    """Prefix of the scenes' ids, which are paths relative to `root`."""

    @pydantic.field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            _check_groups(pattern, _PICTURE_GROUPS)
        return pattern

    @pydantic.model_validator(mode="after")
    def _table_given(self) -> ImagesSource:
        if self.csv is None and (self.labels == "csv" or self.columns):
            raise ValueError("`labels: csv` and the names of columns need the table, `csv: FILE`")
        if self.csv is not None and self.labels != "csv" and not self.columns:
            raise ValueError("nothing is read off the table `csv`; set `labels: csv`, or name a column")
        told = {*self.columns, *(re.compile(self.pattern).groupindex if self.pattern else ())}
        if ("lon" in told) != ("lat" in told):
            raise ValueError("longitude and latitude belong together: name a column, or a group of `pattern`, of each")
        return self

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the table by what they tell: `observation`, `place`, `date`, `lon`, `lat`; those that are named."""
        named = {what: getattr(self, f"csv_{what}_column") for what in sorted(_PICTURE_GROUPS)}
        return {what: column for what, column in named.items() if column is not None}


Url = Annotated[str, pydantic.Field(pattern=r"^https?://")]
Channels = Annotated[int, pydantic.AfterValidator(_check_channels)]


@section
class _TilesSource:
    """What is told of the tiles of all services that draw them."""

    kind: str
    """Which service; declared here, too, so that a source that is written out begins with it."""
    channels: Channels | None = None
    """Bands of a tile: 1 grey, 3 colours, 4 with opacity (null: 3 of JPEG, in `xyz` an address that ends in .jpg or .jpeg; else 4)."""
    nodata: float | None = None
    """Of tiles without opacity: pixels all of whose bands have this value are missing (null: none; opacity says itself where there is no
    data)."""
    name: str | None = None
    """First part of the scenes' ids (null: the layer; in `xyz` the host)."""


@section
class _LayerSource(_TilesSource):
    """What is told of a layer of a web map tile service."""

    layer: str
    """Identifier of the layer; `rayjobs fetch --layers KEYWORDS` searches for those of GIBS."""
    matrix_set: str | None = None
    """Pyramid of levels (null: the layer's first, which with GIBS is its only one)."""
    resolution_m: pydantic.PositiveFloat | None = None
    """Metres per pixel, in degrees those at the equator: the level that comes nearest is taken (null: the finest)."""
    style: str | None = None
    """Style of the layer (null: its default)."""
    format: str | None = None
    """Format of the tiles, such as `png` (null: PNG where the layer has it, else its first)."""


@section
class GibsSource(_LayerSource):
    """A layer of NASA's Global Imagery Browse Services; in short `gibs:LAYER@DATE`, `gibs:LAYER@START/END` or `gibs:LAYER`."""

    kind: Literal["gibs"] = "gibs"
    dates: tuple[DateText, ...] = ()
    """Days, and intervals `2024-01-01/2024-01-31` of which the days that the layer has are taken; one scene each. None, as of a layer that
    has no dates: one scene without a date, of what the service shows by itself."""
    url: Url = "https://gibs.earthdata.nasa.gov/wmts/epsg4326/best/1.0.0/WMTSCapabilities.xml"
    """Where the capabilities lie; other projections have other ones (epsg3857, epsg3413, epsg3031 in place of epsg4326)."""


@section
class WmtsSource(_LayerSource):
    """A layer of any web map tile service (OGC WMTS 1.0.0)."""

    kind: Literal["wmts"] = "wmts"
    url: Url
    """Where the capabilities lie."""
    dates: tuple[DateText, ...] = ()
    """Days and intervals `start/end`, of which the dates that the layer lists are taken (of a layer that lists none, every day); one scene
    each. None: one scene without a date, of what the service shows by itself."""


@section
class XyzSource(_TilesSource):
    """Tiles in web Mercator whose addresses are told by zoom, column and row, the top row being 0."""

    kind: Literal["xyz"] = "xyz"
    url: Url
    """Address of a tile with `{z}`, `{x}`, `{y}` and, for scenes of several dates, `{date}`."""
    zoom: Annotated[int, pydantic.Field(ge=0, le=30)]
    """Level to read; each is twice as fine as the one before."""
    tile_size: Annotated[int, pydantic.Field(ge=16, le=4096)] = 256
    """Side of a tile, pixels."""
    dates: tuple[DateText, ...] = ()
    """Days and intervals `start/end` of every day, put in place of `{date}`; one scene each."""

    @pydantic.model_validator(mode="after")
    def _places(self) -> XyzSource:
        missing = [place for place in ("{z}", "{x}", "{y}") if place not in self.url]
        if missing:
            raise ValueError(f"`url` needs {', '.join(missing)} where zoom, column and row stand")
        if unknown := sorted(set(re.findall(r"\{[^{}]*\}", self.url)) - {"{z}", "{x}", "{y}", "{date}"}):
            raise ValueError(f"`url` has {', '.join(unknown)}, which nothing is put in place of; write what it stands for")
        if bool(self.dates) != ("{date}" in self.url):
            raise ValueError("`dates` are put in place of {date}: give both or neither")
        return self


@section
class StacApiSource:
    """Scenes that a STAC API finds within `rasters.aoi` and `rasters.datetime`."""

    kind: Literal["stac_api"] = "stac_api"
    url: Url
    """Root of the API, or its `/search`."""
    collections: tuple[str, ...]
    """Collections to search in."""
    max_items: pydantic.PositiveInt = 1000
    """More items than this are an error, not a shorter list."""
    page_size: pydantic.PositiveInt = 100
    """Items in one answer."""
    assets: dict[str, str] | None = None
    """Asset of each band name, as `key`, or `key:2` for its second band (null: every data asset, named by its key or its bands)."""
    quality: StacQualitySection | None = None
    """Asset of unusable pixels."""


def _written_out(source: Any) -> Any:
    """Return a source of a short form, `gibs:LAYER@DATES` or `gibs:LAYER`, written out; others as they are."""
    if not isinstance(source, str):
        return source
    match = _SHORT.fullmatch(source)
    if match is None:
        raise ValueError(f"cannot read the source {source!r}; write gibs:LAYER@2024-01-31, gibs:LAYER@2024-01-01/2024-01-31 or gibs:LAYER")
    return {"kind": "gibs", "layer": match[1], "dates": match[2].split(",") if match[2] else []}


Source = Annotated[
    FilesSource | StacSource | ImagesSource | GibsSource | WmtsSource | XyzSource | StacApiSource,
    pydantic.Field(discriminator="kind"),
]


@section
class LabelMapSection:
    """A raster of classes on any grid and in any CRS, from which tiles get class fractions: codes, or a picture drawn in colours."""

    uri: str
    """The raster."""
    classes: dict[int, str] | None = None
    """Of a raster of codes: name of each code that counts; codes of one name are one class. Either this or `palette`."""
    palette: Literal["osm", "corine"] | dict[str, tuple[_Part, _Part, _Part]] | None = None
    """Of a raster drawn in colours (three bands, or a colour table): `osm` (osmlanduse.org, 13 classes), `corine` (CORINE Land Cover, 44),
    or the red, green and blue of each class; one that is called `nodata` says that a pixel has no class."""
    tolerance: Annotated[int, pydantic.Field(ge=1, le=765)] = 15
    """With `palette`: a pixel has the class of the nearest colour if the differences in red, green and blue add up to less than this."""
    nodata: int | None = None
    """The code of missing pixels; with `palette`, what their red, green and blue all are (null: as the file says). Black margins need
    the 0: to `corine` black is burnt areas."""

    @pydantic.model_validator(mode="after")
    def _one_legend(self) -> LabelMapSection:
        if (self.classes is None) == (self.palette is None):
            raise ValueError("give either `classes`, such as {11: water}, or a `palette`, such as corine")
        if self.classes is not None and not self.classes:
            raise ValueError("name at least one class, such as {11: water}")
        if isinstance(self.palette, dict) and not class_names(self.palette):
            raise ValueError("give the colour of at least one class, such as {water: [0, 204, 242]}")
        return self

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `label_map.LabelMap`."""
        palette = PALETTES[self.palette] if isinstance(self.palette, str) else self.palette
        return {
            "uri": self.uri,
            "classes": None if self.classes is None else dict(self.classes),
            "palette": None if palette is None else dict(palette),
            "tolerance": self.tolerance,
            "nodata": self.nodata,
        }


@section
class RastersSection:
    """Which images, which of their bands, and what their values mean."""

    sources: tuple[Source, ...]
    """Where scenes come from; their scenes are put together. `gibs:LAYER@DATE` is short for one of kind gibs."""
    bands: tuple[str, ...] | None = None
    """Names of the bands to read, in this order (null: all bands of the first scene)."""
    aoi: tuple[float, float, float, float] | str | None = None
    """Area that scenes and tiles must meet: [west, south, east, north] in degrees (west > east crosses the antimeridian), or a GeoJSON
    file."""
    datetime: DateText | None = None
    """STAC interval of dates: `2020-01-01/2020-12-31`, `2020-01-01/..`, or one day."""
    radiometry: Literal["raw", "physical"] = "raw"
    """Whether chips hold the file's values, or values * scale + offset as float32."""
    sentinel2_check: Literal["error", "warn", "off"] = "error"
    """What to do where Sentinel-2 pixels contradict the declared offset."""
    label_map: LabelMapSection | None = None
    """Raster of classes for labels."""
    max_bad_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    """Share above which a job stops: of scenes that cannot be opened, and of tiles that cannot be read."""

    @pydantic.field_validator("sources", mode="before")
    @classmethod
    def _in_full(cls, sources: Any) -> Any:
        return [_written_out(source) for source in sources] if isinstance(sources, list | tuple) else sources

    @pydantic.field_validator("sources")
    @classmethod
    def _not_empty(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        if not sources:
            raise ValueError("name at least one source, such as {kind: files, uris: [...]}")
        return sources

    @pydantic.field_validator("bands")
    @classmethod
    def _distinct(cls, bands: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if bands is not None and (not bands or len(set(bands)) < len(bands)):
            raise ValueError("name at least one band, each once")
        return bands
