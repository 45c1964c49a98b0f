"""A browser, and services in front of small real indexes. Without Chromium these tests skip; `RAYJOBS_REQUIRE_DATA=1` makes them fail."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

import pytest

from tests.conftest import _absent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve warns of itself when it is imported
    import ray.serve  # noqa: F401  for what importing it leaves behind

CHROMIUM = Path(os.environ.get("RAYJOBS_CHROMIUM", "/usr/bin/chromium"))
WAIT_MS = 20_000


def eventually(page, condition):
    """Wait until a condition holds. Playwright's own way to wait for one evaluates text in the page, which its policy forbids."""
    look = f"const look = () => ({condition}) ? done() : requestAnimationFrame(look); look();"
    page.evaluate(f"new Promise((done, fail) => {{ {look} setTimeout(() => fail(new Error('it never was')), {WAIT_MS}); }})")


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        _absent(f"there is no browser at {CHROMIUM} (RAYJOBS_CHROMIUM names it)")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def naip(data, tmp_path_factory):
    """An index of one place in North Dakota on four dates: 616 tiles of 64 pixels."""
    from tests.page import small_index

    source = {
        "kind": "files",
        "uris": [str(data("naip_nd") / "*.tif")],
        "bands": ["red", "green", "blue", "nir"],
        "pattern": r"(?P<scene>m_\w+?_(?P<date>\d{8}))\.tif$",
    }
    rasters = {"sources": [source], "bands": ["red", "green", "blue"]}
    tiles = {"size": 64, "sampler": {"kind": "grid", "stride": 64}, "splits": {"train": 1, "val": 0, "test": 0}}
    experiment = small_index.experiment_of("naip", f"file:{tmp_path_factory.mktemp('naip')}", rasters, tiles)
    made = small_index.sampled(experiment)
    return small_index.indexed(made, small_index.random_encoder(made))


@pytest.fixture(scope="session")
def service(naip):
    """The address of the service in front of it."""
    from tests.page import small_index

    with small_index.served(naip) as address:
        yield address


@pytest.fixture
def opened(browser, service):
    """Open the page: `opened("#like=...", width=390)`. At the end nothing may have gone wrong that the browser knows of."""
    with contextlib.ExitStack() as stack:
        pages = []

        def opened(path="", *, address=service, width=1280, height=800, dark=False, quiet=True, **options):
            scheme = "dark" if dark else "light"
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce", **options
            )
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)
            page.complaints, page.asked = [], []
            page.on("console", lambda message: message.type in {"error", "warning"} and page.complaints.append(message.text))
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("request", lambda request: page.asked.append(request.url))
            page.goto(f"{address}/{path}")
            if quiet:
                pages.append(page)
            return page

        yield opened
        assert [complaint for page in pages for complaint in page.complaints] == []
        elsewhere = [url for page in pages for url in page.asked if not url.startswith((service, "blob:", "data:"))]
        assert elsewhere == []
