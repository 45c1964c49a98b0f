"""The files of the pages: ours out of this package, Leaflet out of the installed one. A fixed list: no request's path reaches the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import xstatic.pkg.leaflet

_OURS = Path(__file__).parent / "static"
_LEAFLET = Path(xstatic.pkg.leaflet.BASE_DIR)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """One file, held in memory."""

    content: bytes
    media_type: str
    etag: str
    """Of the content, in quotes, as HTTP wants it."""


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content=content, media_type=_MEDIA_TYPES[path.suffix], etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"')


FILES = {
    **{path.name: _read(path) for path in sorted(_OURS.iterdir()) if path.suffix in _MEDIA_TYPES},
    "leaflet.css": _read(_LEAFLET / "leaflet.css"),
    "leaflet.js": _read(_LEAFLET / "leaflet-src.esm.js"),
}
"""By the last part of their path, `/page/NAME`."""

INDEX = "index.html"
"""What `/` answers."""

LABEL = "label.html"
"""What `/label` answers."""

PUBLIC_PATHS = frozenset({"/", "/label", *(f"/page/{name}" for name in FILES)})
"""Paths that need no token: they hold nothing but the program, which itself asks for the token."""
