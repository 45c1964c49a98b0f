"""A real web map tile service on loopback: MapProxy, handing out tiles that were cut from known pictures."""

from __future__ import annotations

import contextlib
import io
import logging
import socketserver
import threading
import warnings
import wsgiref.simple_server
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import yaml

SIDE = 64
"""Pixels of a tile."""
LEVELS = {
    "geo": [4.5 / 2**level for level in range(8)],
    "fine": [4.5 / 2**level for level in range(7, 15)],
    "mercator": [2 * 20037508.342789244 / SIDE / 2**level for level in range(8)],
}
"""Resolutions, in degrees and metres. Those in degrees make tiles as large as GIBS's, whose matrices end beyond where the Earth does."""
_GRIDS = {
    "geo": {"srs": "EPSG:4326", "bbox": [-180, -90, 180, 90], "res": LEVELS["geo"], "tile_size": [SIDE, SIDE], "origin": "nw"},
    "fine": {"srs": "EPSG:4326", "bbox": [-180, -90, 180, 90], "res": LEVELS["fine"], "tile_size": [SIDE, SIDE], "origin": "nw"},
    "mercator": {
        "srs": "EPSG:3857",
        "bbox": [-20037508.342789244, -20037508.342789244, 20037508.342789244, 20037508.342789244],
        "res": LEVELS["mercator"],
        "tile_size": [SIDE, SIDE],
        "origin": "nw",
    },
}
_SUFFIX = {"image/png": "png", "image/jpeg": "jpeg"}


@dataclass
class MapServer:
    """Where the server listens, and what it hands out."""

    folder: Path
    endpoint: str = ""
    tiles: dict[tuple[str, str, str, int, int, int], bytes] = field(default_factory=dict)
    """Bytes by layer, grid, date, level, row and column."""

    @property
    def rest(self) -> str:
        """Where the capabilities with addresses of tiles lie."""
        return f"{self.endpoint}/wmts/1.0.0/WMTSCapabilities.xml"

    @property
    def kvp(self) -> str:
        """Where the capabilities of requests with parameters lie."""
        return f"{self.endpoint}/service?SERVICE=WMTS&REQUEST=GetCapabilities"

    def publish(
        self, layer: str, grid: str, date: str, level: int, at: tuple[int, int], values: np.ndarray, form: str = "image/png"
    ) -> None:
        """Cut a picture (h, w, bands), whose sides are whole tiles, into tiles; the first lies at row and column `at`."""
        for row in range(values.shape[0] // SIDE):
            for col in range(values.shape[1] // SIDE):
                piece = values[row * SIDE : (row + 1) * SIDE, col * SIDE : (col + 1) * SIDE]
                data = io.BytesIO()
                PIL.Image.fromarray(piece.squeeze()).save(data, "PNG" if form == "image/png" else "JPEG")
                place = at[0] + row, at[1] + col
                self.tiles[layer, grid, date, level, *place] = data.getvalue()
                path = (
                    self.folder
                    / f"{layer}_{grid}"
                    / (f"time-{date}" if date else "")
                    / str(level)
                    / str(place[1])
                    / f"{place[0]}.{_SUFFIX[form]}"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data.getvalue())


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of those who hang up."""


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path, layers: dict[str, dict[str, Any]], grids: Sequence[str] = ("geo", "mercator")) -> Iterator[MapServer]:
    """Run MapProxy in a thread until the block ends.

    Args:
        folder: empty; for tiles and the configuration.
        layers: by name `title`, `format` and `times` (values of the time dimension). Where one has any, MapProxy 7.0 answers no requests
            with parameters, but those for addresses that hold the date (`rest`); where none has, the reverse (`kvp`).
        grids: on which all layers are.
    """
    template = "/{Layer}/default/{time}/{TileMatrixSet}/{TileMatrix}/{TileRow}/{TileCol}.{Format}"
    config = {
        "services": {"wmts": {"kvp": True, "restful": True, "restful_template": template}},
        "layers": [
            {
                "name": name,
                "title": layer["title"],
                "tile_sources": [f"{name}_{grid}" for grid in grids],
                **({"dimensions": {"time": {"values": layer["times"], "default": layer["times"][-1]}}} if layer["times"] else {}),
            }
            for name, layer in layers.items()
        ],
        "caches": {
            f"{name}_{grid}": {
                "grids": [grid],
                "sources": [],
                "format": layer["format"],
                "cache": {"type": "file", "directory": str(folder / f"{name}_{grid}"), "directory_layout": "tms"},
            }
            for name, layer in layers.items()
            for grid in grids
        },
        "grids": {grid: _GRIDS[grid] for grid in grids},
        "globals": {"image": {"paletted": False}},
    }
    path = folder / "mapproxy.yaml"
    path.write_text(yaml.safe_dump(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own making
        from mapproxy.wsgiapp import make_wsgi_app

        logging.getLogger("mapproxy").setLevel(logging.CRITICAL)
        app = make_wsgi_app(str(path), ignore_config_warnings=True)
    server = wsgiref.simple_server.make_server("127.0.0.1", 0, app, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield MapServer(folder=folder, endpoint=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
