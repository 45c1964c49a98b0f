"""Searching the layers of a service by words: what they are called, how fine they are, in which formats, and of which dates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayjobs.errors import EmptySearchError
from rayjobs.rasters.capabilities import read_capabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayjobs.console import Console
    from rayjobs.rasters.capabilities import Capabilities, Layer

_DATES = 3
"""Entries of a layer's dates that a line shows; the last ones."""


def listed(url: str, words: Sequence[str], console: Console, *, table: bool) -> dict[str, Any]:
    """Return the layers of a service that have all words in identifier or title, in any case, and show them as lines for people.

    Raises:
        EmptySearchError: there is none.
        StorageError: the service does not answer.
    """
    capabilities = read_capabilities(url)
    names = capabilities.matching(words)
    if not names:
        raise EmptySearchError(f"none of the {len(capabilities.layers):,} layers of {url} has all of {' '.join(words)}; use fewer words")
    found = [_described(capabilities, capabilities.layers[name]) for name in names]
    if not table:
        return {"url": url, "layers": found}
    for layer in found:
        finest = "levels unknown" if layer["finest_m"] is None else f"{layer['finest_m']:.4g} m"
        console.result(f"{layer['layer']}  {finest}  {', '.join(layer['formats'])}  {_dates(layer['dates'])}")
        console.result(f"    {layer['title']}")
    return {"layers": len(found)}


def _described(capabilities: Capabilities, layer: Layer) -> dict[str, Any]:
    resolutions = capabilities.resolutions_m(layer)
    return {
        "layer": layer.identifier,
        "title": layer.title,
        "finest_m": min((levels[-1] for levels in resolutions.values()), default=None),
        "resolutions_m": {name: list(levels) for name, levels in resolutions.items()},
        "formats": list(layer.formats),
        "dates": list(layer.times),
    }


def _dates(entries: Sequence[str]) -> str:
    if not entries:
        return "no dates"
    return ("... " if len(entries) > _DATES else "") + ", ".join(entries[-_DATES:])
