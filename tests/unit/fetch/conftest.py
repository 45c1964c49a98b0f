"""`rayjobs fetch` in this process, from a real map server behind a proxy that fails as it is told to."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rayjobs.config import build
from rayjobs.console import Console
from rayjobs.experiment import Experiment
from rayjobs.fetch import job
from rayjobs.rasters.web import LocalPace
from tests import faulty_s3, map_server
from tests.map_server import SIDE, MapServer

DATES = ("2024-01-01", "2024-01-02", "2024-01-05")
LEVEL, ROW, COL, ROWS, COLS = 6, 10, 12, 3, 4
"""Of the tiles that have pixels."""
PIXEL = map_server.LEVELS["geo"][LEVEL]
WEST, NORTH = -180 + COL * SIDE * PIXEL, 90 - ROW * SIDE * PIXEL
BBOX = [WEST + PIXEL, NORTH - (ROWS * SIDE - 1) * PIXEL, WEST + (COLS * SIDE - 1) * PIXEL, NORTH - PIXEL]
"""A little less than those tiles, in degrees."""


@dataclass
class Service:
    """A map server, the pictures that it hands out, and the proxy before it."""

    server: MapServer
    proxy: faulty_s3.FaultyS3
    pictures: dict[str, np.ndarray]
    """(h, w, 3) by date."""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    """Path and fault of each request for a tile, since `fail` was called last."""

    def fail(self, rule: Callable[[str], Any] = lambda _: None) -> None:
        """Have requests for tiles fail by a rule of their paths, and count anew."""
        self.asked.clear()

        def noted(_: str, path: str) -> Any:
            fault = rule(path) if "Capabilities" not in path else None
            if "Capabilities" not in path:
                self.asked.append((path, fault))
            return fault

        self.proxy.rule = noted

    @property
    def whole(self) -> Counter[str]:
        """How often each tile was sent without a fault."""
        return Counter(path for path, fault in self.asked if fault is None)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    layers = {
        "MODIS_Terra_TrueColor": {
            "title": "Corrected Reflectance (True Color, Terra / MODIS)",
            "format": "image/png",
            "times": list(DATES),
        },
        "VIIRS_SNPP_TrueColor": {"title": "Corrected Reflectance (True Color, Suomi NPP)", "format": "image/jpeg", "times": list(DATES)},
    }
    random = np.random.default_rng(0)
    pictures = {date: random.integers(1, 255, (ROWS * SIDE, COLS * SIDE, 3)).astype(np.uint8) for date in DATES}
    pictures[DATES[0]][:, 100:150] = 0  # a gap between swaths
    pictures[DATES[1]][20:30, 60:70] = 7  # another, of another colour
    with map_server.serve(tmp_path_factory.mktemp("maps"), layers) as server:
        for date, picture in pictures.items():
            server.publish("MODIS_Terra_TrueColor", "geo", date, LEVEL, (ROW, COL), picture)
        with faulty_s3.before(server.endpoint) as proxy:
            yield Service(server, proxy, pictures)


@pytest.fixture
def service(served):
    """The service, whole."""
    served.fail()
    yield served
    served.fail()


class _Rows:
    """Of Ray Data what the job asks for."""

    def __init__(self, rows):
        self.rows = rows

    def map(self, function, **_):
        return _Rows(map(function, self.rows))

    def iter_rows(self):
        return iter(self.rows)


@pytest.fixture
def experiment(service, tmp_path) -> Callable[..., Experiment]:
    """Make an experiment that fetches, with keys of `fetch`."""

    def make(dates=("2024-01-01/2024-01-03",), channels=3, nodata=0, **keys) -> Experiment:
        source = {
            "kind": "gibs", "layer": "MODIS_Terra_TrueColor", "dates": list(dates), "matrix_set": "geo",
            "channels": channels, "nodata": nodata,
            "url": f"{service.proxy.endpoint}/wmts/1.0.0/WMTSCapabilities.xml", "resolution_m": PIXEL * 111_320,
        }  # fmt: skip
        polite = {"requests_per_second": 5000, "backoff_s": 0.002, "timeout_s": 30, "tiles_per_piece": 5}
        workspace = {"uri": str(tmp_path / "workspace")}
        return build(
            Experiment, {"name": "x", "workspace": workspace, "rasters": {"sources": [source], "aoi": BBOX}, "fetch": polite | keys}
        )

    return make


@pytest.fixture
def in_this_process(monkeypatch):
    """What Ray would do on a cluster is done here, one piece after the other."""
    monkeypatch.setattr("ray.data.from_items", lambda items, **_: _Rows(items))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(job, "joined", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(job, "_pace", lambda section: LocalPace(section.requests_per_second, section.give_up_after))


@pytest.fixture
def fetch(in_this_process) -> Callable[[Experiment], job.Result]:
    """Run `rayjobs fetch` on an experiment."""
    return lambda made: job.run(made, Console(io.StringIO(), io.StringIO()))
