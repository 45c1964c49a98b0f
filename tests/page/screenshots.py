"""Pictures of the pages for `docs/`: `python -m tests.page.screenshots --workspace URI --index NAME`; by default those of the demo.

Serves the index in this process, searches from a place on the map, and marks hits as a person would. The demo's imagery is in the public
domain. `--only NAME` makes one of them.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
from pathlib import Path

import httpx
import PIL.Image
import PIL.ImageColor
from playwright.sync_api import sync_playwright

from rayjobs.storage import Artefact, open_store
from tests.page.conftest import CHROMIUM
from tests.page.loaded_extension import loaded, worldview_page
from tests.page.small_index import served

_SEEN = """Promise.all([...document.images]
    .filter(one => one.src && one.checkVisibility() && one.getBoundingClientRect().top < innerHeight).map(one => one.decode()))"""
FOLDER = Path(__file__).parents[2] / "docs" / "images"
DESKTOP, PHONE = (1160, 725), (390, 844)
_APART = "#apart=2000"
"""Metres: tiles overlap, and hits shall be places of their own."""
_WAIT_MS = 120_000
_A_LOOK_MS = 1500
_COLOURS = 128
"""A palette keeps each picture below 300 kB."""
_RARE = ("#ffd75e", "#ffffff", "#0063a0", "#74bdf0", "#006b4b", "#52cf9f", "#5fe0b0", "#a33600", "#ff9c6b")
"""Outlines and controls, whose colours a palette made by frequency would lose."""


def main():
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", default="demo/workspace", help="URI of the workspace (demo/workspace)")
    parser.add_argument("--index", default="landsat-tile2vec", help="name of the index (landsat-tile2vec)")
    parser.add_argument("--at", type=float, nargs=2, default=(0.32, 0.42), help="where to click, as shares of the map's width and height")
    parser.add_argument("--only", choices=sorted(PICTURES), nargs="+", default=list(PICTURES), help="which of them (all)")
    options = parser.parse_args()
    version = Artefact(open_store(options.workspace), "indexes", options.index).require("run `make demo` first")
    with served(version) as address, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name in options.only:
            PICTURES[name](browser, address, options.at)
        browser.close()


def _light(browser, address, at):
    """Hits of one place, two of them marked."""
    page = _opened(browser, address, DESKTOP)
    _search(page, at)
    for number, sign in ((0, "right"), (4, "wrong")):
        page.locator(".hit").nth(number).get_by_role("button", name=sign).click()
    page.locator(".hit").nth(0).locator(".face").focus()
    _save(page, "page-light")


def _dark(browser, address, at):
    """How alike the ground is to the place."""
    page = _opened(browser, address, DESKTOP, dark=True)
    _search(page, at)
    with page.expect_response(re.compile("/page/heat$")):
        page.get_by_role("button", name="Heat").click()
    page.wait_for_selector("#map img.heat")
    _save(page, "page-dark")


def _phone(browser, address, at):
    """The same on a phone."""
    page = _opened(browser, address, PHONE, scale=1.5)
    _search(page, at)
    _save(page, "page-phone")


def _extension(browser, address, _):
    """What the extension finds for a view in Worldview, one hit taken among the examples."""
    with (
        tempfile.TemporaryDirectory() as folder,
        worldview_page() as worldview,
        loaded(browser, Path(folder), [address, worldview]) as (context, worker),
    ):
        west, south, east, north = httpx.get(f"{address}/v1/info").json()["bounds"]
        page = context.new_page()
        page.goto(f"{worldview}/?v={west},{south},{east},{north}&t=2018-07-16&l=VIIRS_SNPP_CorrectedReflectance_TrueColor")
        worker.evaluate("values => chrome.storage.local.set(values)", {"service": address, "worldview": worldview})
        tab = worker.evaluate("async () => (await chrome.tabs.query({ active: true }))[0].id")
        panel = context.new_page()
        panel.set_viewport_size({"width": 400, "height": 760})
        panel.goto(f"{worker.url.rpartition('/')[0]}/panel.html?tab={tab}")
        panel.get_by_role("button", name="Search", exact=True).click()
        panel.get_by_role("button", name="Hit 1 is right").click()
        panel.get_by_role("button", name="Hit 2 is wrong").click()
        panel.locator("#examples .negatives").wait_for()
        panel.get_by_role("button", name="Search again").click()
        panel.wait_for_selector("#results[aria-busy=false]")
        _save(panel, "worldview")


def _label_desktop(browser, address, _):
    """Several classes on a desktop, in dark colours."""
    page = _labelling(browser, address, DESKTOP, "land", dark=True)
    for key in "12132":
        _say(page, key)
    _save(page, "label-desktop")


def _label_grid(browser, address, _):
    """Many look-alikes, two of them taken out."""
    page = _labelling(browser, address, DESKTOP, "land")
    page.keyboard.press("g")
    page.wait_for_selector("#grid-items li:nth-child(24)")
    for number in (5, 11):
        page.locator("#grid-items button").nth(number).click()
    page.get_by_label("They are").select_option("water")
    _save(page, "label-grid")


def _label_phone(browser, address, _):
    """Two classes on a phone, a swipe on its way."""
    page = _labelling(browser, address, PHONE, "ponds", scale=1.5)
    for key in ("ArrowRight", "ArrowLeft", "ArrowDown"):
        _say(page, key)
    box = page.locator("#frame").bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 250, box["y"] + 160, steps=3)
    _save(page, "label-phone")


CLASSES = {
    "land": [{"name": name, "description": said} for name, said in (("field", "sown or mown"), ("water", ""), ("road", ""), ("trees", ""))],
    "ponds": [{"name": "positive", "key": "p"}, {"name": "negative", "key": "n"}],
}


def _labelling(browser, address, size, taxonomy, **look):
    """Open the labelling page, on a taxonomy that is made if need be: in the workspace that is served, where it stays."""
    httpx.post(f"{address}/v1/labels", json={"name": taxonomy, "classes": CLASSES[taxonomy]}).raise_for_status()
    page = _page(browser, size, **look)
    page.goto(f"{address}/label?taxonomy={taxonomy}")
    page.locator("#person-value").fill("anna")
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("#frame:not([hidden]) img")
    return page


def _say(page, key):
    """Say what a picture shows, at a person's pace."""
    page.wait_for_timeout(_A_LOOK_MS)
    page.keyboard.press(key)
    page.wait_for_selector("#frame:not([hidden]) img")


PICTURES = {
    "page-light": _light,
    "page-dark": _dark,
    "page-phone": _phone,
    "label-desktop": _label_desktop,
    "label-grid": _label_grid,
    "label-phone": _label_phone,
    "worldview": _extension,
}
"""What makes each picture; each takes the browser, the service's address and where on the map to click."""


def _opened(browser, address, size, **look):
    page = _page(browser, size, **look)
    page.goto(f"{address}/{_APART}")
    page.wait_for_selector("#map .scene")
    return page


def _page(browser, size, *, dark=False, scale=1):
    viewport = {"width": size[0], "height": size[1]}
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport=viewport, device_scale_factor=scale, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(_WAIT_MS)
    return page


def _search(page, at):
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"])
    page.wait_for_selector("#results[aria-busy=false] .hit[data-id]")
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] - 60)


def _save(page, name):
    """Save what is seen, once all pictures in it are there."""
    page.wait_for_load_state("networkidle")
    page.evaluate("document.getElementById('panel')?.scrollTo(0, 0)")
    page.evaluate(_SEEN)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    FOLDER.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    palette = image.quantize(_COLOURS)
    rare = [value for colour in _RARE for value in PIL.ImageColor.getrgb(colour)]
    palette.putpalette([*rare, *palette.getpalette()[: 3 * _COLOURS]])
    image.quantize(palette=palette, dither=PIL.Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)
    page.close()


if __name__ == "__main__":
    main()
