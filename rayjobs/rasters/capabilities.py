"""What a web map tile service offers, as its capabilities say (OGC WMTS 1.0.0): layers, their levels, formats and dates."""

from __future__ import annotations

import calendar
import datetime
import itertools
import math
import re
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyproj
import pyproj.exceptions

from rayjobs.errors import BandError, ConfigError, first_few
from rayjobs.rasters import dates
from rayjobs.rasters.tiled import TileMatrix
from rayjobs.rasters.web import fetched

_PIXEL_M = 0.28e-3
"""Side of a pixel of the display that scale denominators are meant for (WMTS 1.0.0, 6.1)."""
_METRES_PER_DEGREE = math.radians(6_378_137.0)
"""At the equator, as WMTS reckons with for geographic CRSs."""
_NAMES = {"w": "http://www.opengis.net/wmts/1.0", "o": "http://www.opengis.net/ows/1.1"}
_HREF = "{http://www.w3.org/1999/xlink}href"
_PLACE = re.compile(r"\{(\w+)\}")
_URN = re.compile(r"urn:ogc:def:crs:(\w+):(?:[^:]*:)?(\w+)")
_PERIOD = re.compile(r"P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")
_TIME = "time"
_MOST_MOMENTS = 100_000
"""Of one interval: the hours of eleven years. A service may list every second of a thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSet:
    """A pyramid of levels in one CRS."""

    identifier: str
    crs: str
    """As `pyproj` reads it; coordinates go right, then up."""
    levels: tuple[TileMatrix, ...]
    """The coarsest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a service."""

    identifier: str
    title: str
    bounds: tuple[float, float, float, float]
    """West, south, east, north, degrees."""
    formats: tuple[str, ...]
    """MIME types of its tiles."""
    styles: tuple[str, ...]
    """The default one first; none where the service tells none."""
    matrix_sets: tuple[str, ...]
    """Identifiers."""
    dimensions: Mapping[str, str]
    """Default value of each (empty: the service tells none), by the name that the service uses."""
    times: tuple[str, ...]
    """Dates and intervals `start/end/period` of its time dimension; of many, some services tell the latest only."""
    templates: tuple[tuple[str, str], ...]
    """MIME type and address of a tile, with `{TileRow}` and the like; none where the service knows only requests with parameters."""

    @property
    def time(self) -> str | None:
        """The name of its time dimension."""
        return next((name for name in self.dimensions if name.lower() == _TIME), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What one service offers."""

    url: str
    """Where its capabilities lie."""
    layers: Mapping[str, Layer]
    """By identifier."""
    matrix_sets: Mapping[str, MatrixSet]
    """By identifier."""
    request: str | None
    """Address of requests with parameters, where it takes these."""
    odd: Mapping[str, str]
    """What cannot be read of a layer, by the identifiers of those left out."""

    def layer(self, identifier: str) -> Layer:
        """Return a layer. Raises `BandError` where there is none of that name, or what the service says of it cannot be read."""
        if identifier in self.layers:
            return self.layers[identifier]
        if identifier in self.odd:
            raise BandError(
                f"{self.url} describes the layer {identifier} in a way that cannot be read: {self.odd[identifier]}; take another"
            )
        near = self.matching(re.findall(r"[^\W_]+", identifier)[:2]) or list(self.layers)
        raise BandError(
            f"{self.url} has no layer {identifier!r}; it has {first_few(near, between=', ')}; `rayjobs fetch --layers KEYWORD` lists them"
        )

    def matching(self, words: Sequence[str]) -> list[str]:
        """Return the identifiers of the layers in whose identifier or title all words stand, in any case."""
        wanted = [word.lower() for word in words]
        return sorted(name for name, layer in self.layers.items() if all(word in f"{name} {layer.title}".lower() for word in wanted))

    def resolutions_m(self, layer: Layer) -> dict[str, tuple[float, ...]]:
        """Return the metres per pixel of a layer's levels, by matrix set, the coarsest first."""
        return {name: tuple(level.resolution_m for level in self.matrix_sets[name].levels) for name in layer.matrix_sets}


def read_capabilities(url: str) -> Capabilities:
    """Ask a service what it offers.

    Raises:
        StorageError: it does not answer.
        ConfigError: what it answers are no capabilities.
    """
    body = fetched(url)
    try:
        root = ET.fromstring(body)  # noqa: S314  expat itself refuses entities that grow
        if root.find("w:Contents", _NAMES) is None:
            raise ConfigError(f"{url} answers with {root.tag.rpartition('}')[2]}, not with the capabilities of a web map tile service")
        sets = [_matrix_set(node) for node in root.iterfind("w:Contents/w:TileMatrixSet", _NAMES)]
        known = {found.identifier: found for found in sets if found is not None}
        layers, odd = _layers(root, known)
    except (ET.ParseError, ValueError, AttributeError) as error:
        raise ConfigError(f"{url} gives no capabilities of a web map tile service: {error}; correct the source's `url`") from error
    return Capabilities(
        url=url,
        layers=layers,
        odd=odd,
        matrix_sets=known,
        request=_request(root),
    )


def _request(root: ET.Element) -> str | None:
    """Return where requests with parameters go; a `Get` that does not say how it is encoded takes them."""
    for get in root.iterfind(".//o:Operation[@name='GetTile']/o:DCP/o:HTTP/o:Get", _NAMES):
        encodings = {text.upper() for text in _texts(get, "o:Constraint[@name='GetEncoding']/o:AllowedValues/o:Value")}
        if not encodings or "KVP" in encodings:
            return get.get(_HREF)
    return None


def _text(node: ET.Element, path: str) -> str:
    return (node.findtext(path, "", _NAMES) or "").strip()


def _texts(node: ET.Element, path: str) -> tuple[str, ...]:
    return tuple((found.text or "").strip() for found in node.iterfind(path, _NAMES))


def _layers(root: ET.Element, known: Mapping[str, MatrixSet]) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers by identifier, and the reasons of those that cannot be read: one odd layer does not spoil a service."""
    found: dict[str, Layer] = {}
    odd: dict[str, str] = {}
    for node in root.iterfind("w:Contents/w:Layer", _NAMES):
        identifier = _text(node, "o:Identifier")
        try:
            found[identifier] = _layer(node, known)
        except ValueError as error:
            odd[identifier] = str(error)
    return found, odd


def _layer(node: ET.Element, known: Mapping[str, MatrixSet]) -> Layer:
    west, south = _pair(_text(node, "o:WGS84BoundingBox/o:LowerCorner") or "-180 -90")
    east, north = _pair(_text(node, "o:WGS84BoundingBox/o:UpperCorner") or "180 90")
    styles = sorted(node.iterfind("w:Style", _NAMES), key=lambda style: style.get("isDefault") != "true")
    dimensions = {_text(found, "o:Identifier"): found for found in node.iterfind("w:Dimension", _NAMES)}
    times = next((_texts(found, "w:Value") for name, found in dimensions.items() if name.lower() == _TIME), ())
    tiles = [found for found in node.iterfind("w:ResourceURL", _NAMES) if found.get("resourceType") == "tile"]
    return Layer(
        identifier=_text(node, "o:Identifier"),
        title=_text(node, "o:Title"),
        bounds=(west, south, east, north),
        formats=_texts(node, "w:Format"),
        styles=tuple(_text(style, "o:Identifier") for style in styles),
        matrix_sets=tuple(name for name in _texts(node, "w:TileMatrixSetLink/w:TileMatrixSet") if name in known),
        dimensions={name: _text(found, "w:Default") for name, found in dimensions.items()},
        times=tuple(part.strip() for text in times for part in text.split(",") if part.strip()),
        templates=tuple((found.get("format", ""), found.get("template", "")) for found in tiles),
    )


def _pair(text: str) -> tuple[float, float]:
    first, second = map(float, text.split())
    if not math.isfinite(first) or not math.isfinite(second):
        raise ValueError(f"{text!r} is no place")
    return first, second


def _matrix_set(node: ET.Element) -> MatrixSet | None:
    """Return a matrix set; None where nobody knows its CRS."""
    urn = _URN.fullmatch(_text(node, "o:SupportedCRS"))
    name = "EPSG:4326" if urn and urn[2] == "CRS84" else f"{urn[1]}:{urn[2]}" if urn else _text(node, "o:SupportedCRS")
    try:
        crs = pyproj.CRS.from_user_input(name)
    except pyproj.exceptions.CRSError:
        return None
    corners = [_pair(_text(found, "w:TopLeftCorner")) for found in node.iterfind("w:TileMatrix", _NAMES)]
    turned = _is_up_first(crs, corners, by_order=urn is not None and urn[2] != "CRS84")
    unit_m = _METRES_PER_DEGREE if crs.is_geographic else crs.axis_info[0].unit_conversion_factor
    levels = [_level(found, unit_m, up_first=turned) for found in node.iterfind("w:TileMatrix", _NAMES)]
    levels.sort(key=lambda level: -level.resolution_m)
    return MatrixSet(identifier=_text(node, "o:Identifier"), crs=name, levels=tuple(levels)) if levels else None


def _is_up_first(crs: pyproj.CRS, corners: Sequence[tuple[float, float]], *, by_order: bool) -> bool:
    """Whether corners are written latitude (or northing) first, as the CRS has it by its URN; many services write degrees otherwise."""
    if crs.is_geographic and any(abs(second) > 90 for _, second in corners):  # noqa: PLR2004  degrees: it is no latitude
        return True
    if crs.is_geographic and any(abs(first) > 90 for first, _ in corners):  # noqa: PLR2004  likewise
        return False
    return by_order and any(word in crs.axis_info[0].name.lower() for word in ("latitude", "northing"))


def _level(node: ET.Element, unit_m: float, *, up_first: bool) -> TileMatrix:
    left, top = _pair(_text(node, "w:TopLeftCorner"))
    if up_first:
        left, top = top, left
    resolution_m = float(_text(node, "w:ScaleDenominator")) * _PIXEL_M
    pixel = float(f"{resolution_m / unit_m:.14g}")  # beyond that stands what multiplying has left
    sides = {name: int(_text(node, f"w:{name}")) for name in ("TileWidth", "TileHeight", "MatrixWidth", "MatrixHeight")}
    if not 0 < pixel < math.inf or min(sides.values()) < 1:
        raise ValueError(f"the level {_text(node, 'o:Identifier')!r} has pixels of {pixel} and {sides}")
    return TileMatrix(
        identifier=_text(node, "o:Identifier"),
        left=left,
        top=top,
        pixel_width=pixel,
        pixel_height=pixel,
        tile_width=sides["TileWidth"],
        tile_height=sides["TileHeight"],
        columns=sides["MatrixWidth"],
        rows=sides["MatrixHeight"],
        resolution_m=resolution_m,
    )


def nearest_level(matrix_set: MatrixSet, resolution_m: float | None) -> TileMatrix:
    """Return the level whose pixels are most nearly so large; the finest one for None."""
    if resolution_m is None:
        return matrix_set.levels[-1]
    return min(matrix_set.levels, key=lambda level: abs(math.log(level.resolution_m / resolution_m)))


def template(capabilities: Capabilities, layer: Layer, *, matrix_set: str, level: str, style: str, form: str, time: str | None) -> str:
    """Return the address of a tile of one level, date and format, with `{row}` and `{col}`.

    Args:
        capabilities: of the service.
        layer: of it.
        matrix_set: identifier.
        level: identifier of the matrix.
        style: identifier.
        form: MIME type.
        time: value of the time dimension; None: the layer's default.

    Raises:
        ConfigError: the service names no way to ask for tiles, or for those of a time, or one that is not of the web.
    """
    if time is not None and layer.time is None:
        raise ConfigError(f"the layer {layer.identifier} of {capabilities.url} has no dates; leave `dates` out")
    fixed = {name: value for name, value in layer.dimensions.items() if value}
    if layer.time is not None and time is not None:
        fixed[layer.time] = time
    known = {"style": style, "tilematrixset": matrix_set, "tilematrix": level, "tilerow": "{row}", "tilecol": "{col}"}
    known |= {name.lower(): value for name, value in fixed.items()}
    # a service may offer addresses with and without the date: the one that says most is meant, and never one that leaves a date out
    for address in sorted((text for kind, text in layer.templates if kind == form), key=lambda text: -text.count("{")):
        places = {name.lower() for name in _PLACE.findall(address)}
        if places <= known.keys() and (time is None or _TIME in places):
            return _on_the_web(capabilities, layer, _PLACE.sub(lambda match: known[match[1].lower()], address))
    if capabilities.request is None:
        raise ConfigError(_no_address(capabilities, layer, form, time))
    asked = {
        "SERVICE": "WMTS", "REQUEST": "GetTile", "VERSION": "1.0.0", "LAYER": layer.identifier, "STYLE": style, "FORMAT": form,
        "TILEMATRIXSET": matrix_set, "TILEMATRIX": level, **fixed,
    }  # fmt: skip
    base = _on_the_web(capabilities, layer, capabilities.request).rstrip("?&")
    joint = "&" if urllib.parse.urlsplit(base).query else "?"
    return f"{base}{joint}{urllib.parse.urlencode(asked)}&TILEROW={{row}}&TILECOL={{col}}"


def _no_address(capabilities: Capabilities, layer: Layer, form: str, time: str | None) -> str:
    """Say what to do where a service names no address of a layer's tiles."""
    none = f"{capabilities.url} names no address of tiles of {layer.identifier} as {form}"
    if time is not None and any(kind == form for kind, _ in layer.templates):
        return f"{none} that holds a date; leave `dates` out"
    if layer.time is not None and not layer.dimensions[layer.time] and any("{time}" in text.lower() for _, text in layer.templates):
        return f"{none} without a date, nor a date to show by default; give the source `dates`"
    return f"{none}; use a source of kind xyz"


def _on_the_web(capabilities: Capabilities, layer: Layer, address: str) -> str:
    """Return an address in full; one of another scheme would have GDAL read files of this machine.

    Raises:
        ConfigError: its scheme is another one.
    """
    found = urllib.parse.urljoin(capabilities.url, address)
    if urllib.parse.urlsplit(found).scheme not in {"http", "https"}:
        raise ConfigError(
            f"{capabilities.url} gives {address!r} for the tiles of {layer.identifier}, which is not of http(s); do not use it"
        )
    return found


def moments(asked: Sequence[str], listed: Sequence[str]) -> list[str]:
    """Return the dates that some dates and intervals mean.

    Args:
        asked: single dates, which are taken as they are, and intervals `start/end`, of which the listed dates are taken.
        listed: dates and intervals `start/end/period` that a service has; none: an interval means every day.

    Returns:
        Texts as they are asked for or listed, each once, in their order; within `start/end/period` days, or whole seconds in UTC.

    Raises:
        ValueError: a date cannot be read, or an interval is open or holds no date or too many; fit to be shown.
    """
    found: dict[str, None] = {}
    for text in asked:
        span = dates.interval(text)
        if "/" not in text:
            found[text.strip()] = None
            continue
        if span.start is None or span.end is None:
            raise ValueError(f"the interval {text!r} is open; write where it starts and ends")
        days = f"{span.start:%Y-%m-%d}/{span.end:%Y-%m-%d}/P1D"
        every = (moment for entry in listed or (days,) for moment in _steps(entry, span))
        inside = list(itertools.islice(every, _MOST_MOMENTS + 1))
        if len(inside) > _MOST_MOMENTS:
            raise ValueError(f"the interval {text!r} holds more than {_MOST_MOMENTS:,} dates; write a shorter one, or single dates")
        if not inside:
            last = first_few(list(listed[::-1]), between=", ")
            raise ValueError(
                f"the service lists no date within {text!r}; it lists {last}; dates that it does not list are named one by one"
            )
        found |= dict.fromkeys(inside)
    return list(found)


def unlisted(asked: Sequence[str], listed: Sequence[str]) -> frozenset[str]:
    """Return the single dates of which a service lists neither these nor a part, such as an hour; none where it lists none.

    Args:
        asked: dates and intervals, as `moments` takes them; of an interval only what is listed is taken.
        listed: dates and intervals that a service has.
    """
    single = {text.strip() for text in asked if listed and "/" not in text}
    return frozenset(text for text in single - set(listed) if not _is_within(text, listed))


def _is_within(moment: str, listed: Sequence[str]) -> bool:
    """Whether a list has a date; so it counts where the list cannot be read."""
    span = dates.interval(moment)
    try:
        return any(True for entry in listed for _ in _steps(entry, span))
    except ValueError:
        return True


def _steps(entry: str, span: dates.Interval) -> Iterator[str]:
    """Yield the dates of a listed entry that lie within a span: a single one as it is listed.

    Raises:
        ValueError: it cannot be read.
    """
    first, slash, rest = entry.partition("/")
    if not slash:
        if span.holds(dates.instant(entry)):
            yield entry
        return
    last, _, period = rest.partition("/")
    begin, end = dates.instant(first), dates.interval(last or first).end
    written = "%Y-%m-%dT%H:%M:%SZ" if "T" in first or "T" in period else "%Y-%m-%d"
    try:
        months, ahead = _period(period or "P1D")
        longest = ahead + months * datetime.timedelta(days=31)
    except (ValueError, OverflowError):
        raise ValueError(f"the service lists {entry!r}, of which {period!r} is no period") from None
    number = (span.start - begin) // longest if span.start is not None and span.start > begin else 0
    # each is reckoned from the first: from one to the next, the 31st would become the 28th for good
    moment = _later(begin, number, months, ahead)
    while moment is not None and end is not None and moment <= end and (span.end is None or moment <= span.end):
        if span.holds(moment):
            yield moment.strftime(written)
        number += 1
        moment = _later(begin, number, months, ahead)


def _period(text: str) -> tuple[int, datetime.timedelta]:
    """Return the months of a period of ISO 8601, and what it has beside them.

    Raises:
        ValueError: it is none, or of no length.
        OverflowError: it is longer than can be reckoned with.
    """
    found = _PERIOD.fullmatch(text)
    years, months, days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else [0] * 6
    ahead = datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if not (years or months or ahead):
        raise ValueError(text)
    return 12 * years + months, ahead


def _later(begin: datetime.datetime, number: int, months: int, ahead: datetime.timedelta) -> datetime.datetime | None:
    """Return the moment so many periods later, on a month's last day where it has no such day; None beyond the calendar's end."""
    whole = begin.month - 1 + number * months
    year, month = begin.year + whole // 12, whole % 12 + 1
    try:
        day = min(begin.day, calendar.monthrange(year, month)[1])
        return begin.replace(year=year, month=month, day=day) + number * ahead
    except (ValueError, OverflowError):
        return None


def chosen_set(capabilities: Capabilities, layer: Layer, wanted: str | None) -> MatrixSet:
    """Return a layer's matrix set: the one wanted, or its first.

    Raises:
        BandError: the layer has none, or not that one.
    """
    if not layer.matrix_sets or (wanted is not None and wanted not in layer.matrix_sets):
        raise BandError(
            f"the layer {layer.identifier} of {capabilities.url} has no matrix set {wanted or ''!r}; it has "
            f"{', '.join(layer.matrix_sets) or 'none'}"
        )
    return capabilities.matrix_sets[wanted or layer.matrix_sets[0]]


def chosen_format(layer: Layer, wanted: str | None) -> str:
    """Return the MIME type of a layer's tiles: the one wanted (`png` for `image/png`), else PNG, which loses nothing, else the first.

    Raises:
        BandError: its tiles are no pictures.
        ConfigError: the layer does not have the one wanted.
    """
    pictures = [form for form in layer.formats if form.startswith("image/")]
    if not pictures:
        raise BandError(f"the layer {layer.identifier} has no pictures, but {', '.join(layer.formats) or 'nothing'}; take another")
    fitting = [form for form in pictures if wanted is None or form in {wanted, f"image/{wanted}"}]
    if not fitting:
        raise ConfigError(
            f"the layer {layer.identifier} has no tiles as {wanted}; write `format` as one of {', '.join(pictures)}, or leave it out"
        )
    return next((form for form in fitting if form.startswith("image/png")), fitting[0])


def chosen_style(layer: Layer, wanted: str | None) -> str:
    """Return the style of a layer's tiles: the one wanted, else the layer's default.

    Raises:
        ConfigError: the layer does not have the one wanted.
    """
    if wanted is not None and layer.styles and wanted not in layer.styles:
        raise ConfigError(
            f"the layer {layer.identifier} has no style {wanted!r}; write `style` as one of {', '.join(layer.styles)}, or leave it out"
        )
    return wanted if wanted is not None else (layer.styles or ("default",))[0]
