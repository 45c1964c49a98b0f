"""Scenes of STAC items (1.0 and 1.1): files, folders and collections of items, local or remote, or what a STAC API finds."""

from __future__ import annotations

import datetime
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import shapely.geometry

from rayjobs.errors import BandError, ConfigError, EmptySearchError
from rayjobs.rasters import dates
from rayjobs.rasters.candidates import BandFile, Candidate, Meaning, QualityRef
from rayjobs.rasters.search import Search
from rayjobs.rasters.section import StacApiSource, StacSource
from rayjobs.rasters.web import fetched
from rayjobs.storage import expand, read_uri

_RASTER_TYPES = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")


def list_items(source: StacSource, _: Search) -> list[Candidate]:
    """Return the scenes that items describe.

    Raises:
        ConfigError: a file is not an item or a collection of items.
        BandError: an item lacks an asset.
        EmptySearchError: there is no item.
    """
    found = [_candidate(item, uri, source) for named in source.items for uri in _documents(named) for item in _items(uri)]
    if not found:
        raise EmptySearchError(f"no STAC item is in {', '.join(source.items)}")
    return found


def _documents(named: str) -> list[str]:
    found = expand(named)
    return found if len(found) == 1 else [uri for uri in found if uri.lower().endswith((".json", ".geojson"))]


def _items(uri: str) -> Iterator[Mapping[str, Any]]:
    try:
        document = json.loads(_fetch(uri))
    except ValueError as error:
        raise ConfigError(f"{uri} is not JSON: {error}") from error
    kind = document.get("type") if isinstance(document, dict) else None
    if kind == "FeatureCollection":
        yield from _features(document, uri)
    elif kind == "Feature":
        yield document
    elif kind not in {"Collection", "Catalog"}:  # those lie beside their items in a folder
        raise ConfigError(f"{uri} is neither a STAC Item nor an ItemCollection; name those files only")


def _features(document: Any, uri: str) -> list[Mapping[str, Any]]:
    found = document.get("features") if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConfigError(f"{uri} gives no list of STAC items as `features`; correct it, or the source's `url`")
    return found


def _is_web(uri: str) -> bool:
    return urllib.parse.urlsplit(uri).scheme in {"http", "https"}


def _fetch(uri: str) -> bytes:
    return fetched(uri) if _is_web(uri) else read_uri(uri)


def list_found(source: StacApiSource, search: Search) -> list[Candidate]:
    """Return the scenes that a STAC API finds in the area and the span (STAC API 1.0, Item Search by POST).

    Raises:
        ConfigError: it finds more than `max_items`, or answers something else than items.
        BandError: an item lacks an asset.
        EmptySearchError: it finds nothing.
        StorageError: it does not answer.
    """
    url = source.url if source.url.rstrip("/").endswith("/search") else f"{source.url.rstrip('/')}/search"
    asked: dict[str, Any] = {"collections": list(source.collections), "limit": min(source.page_size, source.max_items + 1)}
    if search.area is not None:
        asked["intersects"] = shapely.geometry.mapping(search.area)
    if search.span is not None:
        asked["datetime"] = "/".join(".." if moment is None else dates.written(moment) for moment in search.span)
    found: dict[tuple[str, str], Candidate] = {}
    for items, at in _pages(url, asked, most=source.max_items + 1):
        for item in items:
            # an item that changes while it is searched for may stand on two pages
            found[str(item.get("collection")), str(item.get("id"))] = _candidate(item, at, source)
        if len(found) > source.max_items:
            raise ConfigError(f"{url} finds more than {source.max_items} items; narrow area or dates, or raise `max_items`")
    if not found:
        raise EmptySearchError(f"{url} finds no item of {', '.join(source.collections)} in the area and the dates; widen them")
    return list(found.values())


def _pages(url: str, asked: Mapping[str, Any], *, most: int) -> Iterator[tuple[list[Mapping[str, Any]], str]]:
    """Yield the items of each answer and where it came from, following the links `next`.

    Raises:
        ConfigError: an answer is none of a STAC API, or the pages have no end: one leads back, or there are more than `most`.
    """
    following: Mapping[str, Any] | None = {"href": url, "method": "POST", "body": asked}
    at, before = url, set[str]()
    while following is not None:
        try:
            at = urllib.parse.urljoin(at, str(following["href"]))
            posted = str(following.get("method", "GET")).upper() == "POST"
            body = {**(asked if following.get("merge") else {}), **(following.get("body") or {})} if posted else None
            request = json.dumps([at, body], sort_keys=True)
            if request in before or len(before) == most:
                raise ConfigError(f"{url} answers page after page without end: {at} was named as the next one; tell who runs the service")
            before.add(request)
            page = json.loads(fetched(at, json=body))
            items = _features(page, at)
            following = next((link for link in page.get("links") or () if link.get("rel") == "next"), None)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"{at} does not answer as a STAC API: {error!r}; correct the source's `url`") from error
        yield items, at


def _self(item: Mapping[str, Any]) -> str | None:
    """Return where an item says that it lies, to which its assets' addresses are relative."""
    return next((link.get("href") for link in item.get("links") or () if link.get("rel") == "self"), None)


def _candidate(item: Mapping[str, Any], at: str, source: StacSource | StacApiSource) -> Candidate:
    """Return the scene of an item that was found at an address."""
    try:
        scene_id, properties, assets = str(item["id"]), item["properties"], item["assets"]
        uri = str(_self(item) or at) if isinstance(source, StacApiSource) else at
        files = _chosen(scene_id, assets, source.assets, uri) if source.assets else _data_files(assets, uri)
        found = Candidate(
            scene_id=scene_id,
            files=tuple(files),
            datetime=_datetime(scene_id, properties),
            platform=properties.get("platform") or properties.get("constellation"),
            quality=_quality(scene_id, assets, source, uri),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ConfigError(f"{at} holds an item that is not valid STAC: {error!r}; correct it or leave it out") from error
    if not files:
        raise BandError(f"STAC item {scene_id} has no raster asset; name them with `assets`; it has {', '.join(assets) or 'none'}")
    if _is_web(at):
        _check_remote(found)
    return found


def _check_remote(candidate: Candidate) -> None:
    """Refuse an item from the web that names files of this machine.

    Raises:
        ConfigError: it does.
    """
    named = [*(file.uri for file in candidate.files), *([candidate.quality.uri] if candidate.quality and candidate.quality.uri else [])]
    for uri in named:
        if not uri.startswith(("http://", "https://", "s3://")):
            raise ConfigError(
                f"STAC item {candidate.scene_id} comes from the web, but names the file {uri}, not http(s):// or s3://; leave it out"
            )


def _datetime(scene_id: str, properties: Mapping[str, Any]) -> datetime.datetime | None:
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        found = dates.instant(text) if text else None
    except ValueError as error:
        raise ConfigError(f"STAC item {scene_id}: {error}") from None
    return None if found == dates.ANY_TIME[0] else found


def _asset(scene_id: str, assets: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if key not in assets:
        raise BandError(f"STAC item {scene_id} has no asset {key!r}; it has {', '.join(map(repr, assets)) or 'none'}")
    found: Mapping[str, Any] = assets[key]
    return found


def _chosen(scene_id: str, assets: Mapping[str, Any], wanted: Mapping[str, str], uri: str) -> list[BandFile]:
    """Return a file for each named band; `key:2` is the second band of an asset."""
    files = []
    for name, text in wanted.items():
        key, colon, number = text.rpartition(":")
        key, index = (key, int(number)) if colon and number.isdigit() and text not in assets else (text, 1)
        asset = _asset(scene_id, assets, key)
        if not colon:
            names = _band_names(key, asset)
            index = names.index(name) + 1 if name in names else 1
        files.append(BandFile(uri=_href(asset, uri), bands={name: index}, meaning={name: _meaning(asset, index)}))
    return files


def _data_files(assets: Mapping[str, Any], uri: str) -> list[BandFile]:
    """Return a file for each asset of data, with all its bands."""
    files = []
    for key, asset in assets.items():
        roles = asset.get("roles") or []
        raster = str(asset.get("type", "")).startswith(_RASTER_TYPES)
        if ("data" in roles or not roles) and raster and not {"overview", "thumbnail", "metadata"} & set(roles):
            bands = {name: index for index, name in enumerate(_band_names(key, asset), start=1)}
            files.append(BandFile(uri=_href(asset, uri), bands=bands, meaning={name: _meaning(asset, bands[name]) for name in bands}))
    return files


def _band_names(key: str, asset: Mapping[str, Any]) -> list[str]:
    bands = asset.get("bands") or asset.get("eo:bands") or []
    if len(bands) <= 1:
        return [key]
    keys = ("eo:common_name", "common_name", "name")
    return [next((str(band[k]) for k in keys if band.get(k)), f"{key}_{index}") for index, band in enumerate(bands, start=1)]


def _meaning(asset: Mapping[str, Any], index: int) -> Meaning:
    """Return what STAC 1.1 (`bands`, or the asset itself) or the raster extension (`raster:bands`) say of a band's values."""
    entries = [asset, *(bands[index - 1] for bands in (asset.get("bands"), asset.get("raster:bands")) if bands and len(bands) >= index)]
    found: dict[str, float | None] = {"scale": None, "offset": None, "nodata": None}
    for entry in entries:
        for name in found:
            value = entry.get(f"raster:{name}", entry.get(name))
            if value is not None:
                found[name] = float(value)  # nodata may be the text "nan"
    return Meaning(**found)


def _href(asset: Mapping[str, Any], uri: str) -> str:
    """Return an asset's address; a relative one is relative to its item."""
    href = str(asset["href"])
    if urllib.parse.urlsplit(href).scheme in {"s3", "http", "https", "file"} or href.startswith("/"):
        return href
    scheme, _, rest = uri.rpartition("://")
    folder = rest.rpartition("/")[0]
    parts: list[str] = []
    for part in f"{folder}/{href}".split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in {".", ".."}:
            parts.append(part)
    return (f"{scheme}://" if scheme else "") + "/".join(parts)


def _quality(scene_id: str, assets: Mapping[str, Any], source: StacSource | StacApiSource, uri: str) -> QualityRef | None:
    wanted = source.quality
    if wanted is None:
        return None
    href = _href(_asset(scene_id, assets, wanted.asset), uri)
    return QualityRef(uri=href, band=wanted.band, bits=wanted.bits, classes=wanted.classes)
