"""The labelling page as people use it, in Chromium, in front of a real index, a real label store, and a service that may be killed."""

from __future__ import annotations

import collections
import contextlib
import functools
import http.server
import json
import re
import threading
import urllib.request

import pytest

from rayjobs.labels.events import check_person
from rayjobs.serve.label_routes import PERSON_HEADER
from tests.page.conftest import WAIT_MS, eventually
from tests.page.test_page import CONTRAST, NAMELESS, click_map, hits, searched

pytestmark = pytest.mark.slow

LAND = [{"name": "field"}, {"name": "water"}, {"name": "road"}]
BINARY = [{"name": "positive", "key": "p"}, {"name": "negative", "key": "n"}]


def asked(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, headers={"content-type": "application/json", PERSON_HEADER: "test"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def events(address, taxonomy):
    return asked(address, f"/v1/labels/{taxonomy}/events?limit=10000")["events"]


@pytest.fixture
def taxonomy(service, request):
    """A taxonomy of the test's own; `indirect` gives its classes."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60]
    asked(service, "/v1/labels", {"name": name, "classes": getattr(request, "param", BINARY)})
    return name


@pytest.fixture
def labelling(opened, service, taxonomy):
    """Open the page for a person: `labelling("anna")`."""

    def labelling(person="anna", **options):
        page = opened(f"label?taxonomy={taxonomy}", **options)
        page.get_by_role("dialog", name="Who labels?").get_by_label("Name").fill(person)
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector("#frame:not([hidden]) img")
        return page

    return labelling


def shown(page):
    return page.locator("#frame").get_attribute("data-id")


def said(page, do):
    """Do something that says what the picture shows, and return the tile that was shown, once another is."""
    tile = shown(page)
    do()
    eventually(page, f"!['', '{tile}'].includes(document.querySelector('#frame').dataset.id)")
    return tile


def sent(page):
    """Wait until the service has all that was said."""
    eventually(page, "!Object.keys(localStorage).some(key => key.startsWith('rayjobs-event/'))")


def pulled(page, across, down, steps=4):
    """Swipe the picture."""
    box = page.locator("#frame").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across, y + down, steps=steps)
    page.mouse.up()


def test_keys_buttons_and_swipes_say_what_a_picture_shows(labelling, service, taxonomy):
    page = labelling()
    expected = [
        (said(page, lambda: page.keyboard.press("ArrowRight")), "label", "positive"),
        (said(page, lambda: page.keyboard.press("ArrowLeft")), "label", "negative"),
        (said(page, lambda: page.keyboard.press("ArrowDown")), "unsure", None),
        (said(page, lambda: page.keyboard.press("n")), "label", "negative"),
        (said(page, lambda: page.locator("#classes").get_by_role("button", name="positive").click()), "label", "positive"),
        (said(page, page.get_by_role("button", name="Unsure").click), "unsure", None),
        (said(page, lambda: pulled(page, 140, 10)), "label", "positive"),
        (said(page, lambda: pulled(page, -140, 10)), "label", "negative"),
        (said(page, lambda: pulled(page, 10, 140)), "unsure", None),
    ]
    tile = shown(page)
    pulled(page, 30, 10)  # too little
    assert shown(page) == tile
    assert said(page, lambda: page.keyboard.press("ArrowUp")) == tile  # later
    sent(page)
    found = events(service, taxonomy)
    assert [(one["tile_id"], one["kind"], one["label"]) for one in found] == expected
    assert {(one["person"], one["origin"]) for one in found} == {("anna", "page")}
    eventually(page, "document.querySelector('#done').value === 9")
    assert page.locator("#done-said").inner_text().startswith("6 of 616 labelled · 3 unsure · 9 of 25 in this batch")


def test_undo_brings_the_picture_back(labelling, service, taxonomy):
    page = labelling()
    assert page.get_by_role("button", name="Undo").is_disabled()
    first = said(page, lambda: page.keyboard.press("ArrowRight"))
    second = said(page, lambda: page.keyboard.press("ArrowRight"))
    said(page, lambda: page.keyboard.press("z"))
    assert shown(page) == second
    said(page, page.get_by_role("button", name="Undo").click)
    assert shown(page) == first
    assert page.get_by_role("button", name="Undo").is_disabled()
    said(page, lambda: page.keyboard.press("ArrowLeft"))
    sent(page)
    assert [one["kind"] for one in events(service, taxonomy)] == ["label", "label", "undo", "undo", "label"]
    progress = asked(service, f"/v1/labels/{taxonomy}/progress")
    assert progress["by_class"] == {"positive": 0, "negative": 1}


@pytest.mark.parametrize("taxonomy", [LAND], indirect=True)
def test_of_several_classes_right_is_the_last_one(labelling, service, taxonomy):
    page = labelling()
    tile = shown(page)
    page.keyboard.press("ArrowRight")  # nothing was given yet
    page.keyboard.press("ArrowLeft")
    assert shown(page) == tile
    said(page, lambda: page.keyboard.press("2"))
    said(page, lambda: page.keyboard.press("ArrowRight"))
    sent(page)
    assert [one["label"] for one in events(service, taxonomy)] == ["water", "water"]


@pytest.mark.parametrize("taxonomy", [LAND], indirect=True)
def test_many_look_alikes_at_once(labelling, service, taxonomy):
    page = labelling()
    seed = shown(page)
    page.keyboard.press("g")
    page.wait_for_selector("#grid-items li:nth-child(24)")
    tiles = page.eval_on_selector_all("#grid-items button", "all => all.map(one => one.dataset.id)")
    found = asked(service, "/v1/search", {"positives": [{"tile_id": seed}], "limit": 40})["features"]
    ranks = [[feature["id"] for feature in found].index(tile) for tile in tiles[1:]]
    assert tiles[0] == seed
    assert ranks == sorted(ranks)  # those that are most like it, but for those in hand already
    for number in (3, 7):
        page.locator("#grid-items button").nth(number).click()
    page.get_by_label("They are").select_option("water")
    page.get_by_role("button", name="Accept 22 as water").click()
    page.wait_for_selector("#frame:not([hidden]) img")
    sent(page)
    expected = {tile for number, tile in enumerate(tiles) if number not in {3, 7}}
    assert {(one["tile_id"], one["label"], one["origin"]) for one in events(service, taxonomy)} == {(t, "water", "grid") for t in expected}
    page.keyboard.press("z")  # all of it
    page.wait_for_selector("#grid-items li:nth-child(22)")
    sent(page)
    assert asked(service, f"/v1/labels/{taxonomy}/progress")["labelled"] == 0
    page.get_by_role("button", name="Back").click()
    page.wait_for_selector("#frame:not([hidden]) img")
    assert shown(page) == seed


def test_a_page_that_is_loaded_anew_goes_on_where_it_was(labelling, service, taxonomy):
    page = labelling()
    said(page, lambda: page.keyboard.press("ArrowRight"))
    before = shown(page)
    leased = asked(service, f"/v1/labels/{taxonomy}/progress")["leased"]
    sent(page)
    page.reload()
    page.wait_for_selector("#frame:not([hidden]) img")
    assert shown(page) == before
    assert asked(service, f"/v1/labels/{taxonomy}/progress")["leased"] <= leased + 1  # nothing is left in the hands of nobody
    with page.expect_response(re.compile("/release$")):
        page.get_by_role("button", name="Stop").click()
    assert asked(service, f"/v1/labels/{taxonomy}/progress")["leased"] == 0
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("#frame:not([hidden]) img")


def handed_over(page, person):
    page.locator("#who").click()
    page.locator("#person-value").fill(person)
    page.get_by_role("button", name="Begin").click()
    eventually(page, f"document.querySelector('#who').textContent === '{person}'")
    page.wait_for_selector("#frame:not([hidden]) img")


def test_one_browser_is_handed_over(labelling, service, taxonomy):
    page = labelling("anna")
    first = said(page, lambda: page.keyboard.press("ArrowRight"))
    sent(page)
    page.keyboard.press("g")
    page.wait_for_selector("#grid-items li:nth-child(24)")
    event = {"event_id": "00000000-0000-4000-8000-00000000000b", "tile_id": first, "kind": "unsure", "origin": "page"}
    kept = json.dumps({"taxonomy": taxonomy, "person": "anna", "event": event})
    page.evaluate("kept => localStorage.setItem('rayjobs-event/0', kept)", kept)
    handed_over(page, "ben")
    assert page.get_by_role("button", name="Undo").is_disabled()  # what anna said is not his to take back
    assert asked(service, f"/v1/labels/{taxonomy}/progress")["leased"] <= 8
    second = said(page, lambda: page.keyboard.press("ArrowLeft"))
    eventually(page, "Object.keys(localStorage).filter(key => key.startsWith('rayjobs-event/')).length === 1")
    assert [(one["tile_id"], one["person"]) for one in events(service, taxonomy)] == [(first, "anna"), (second, "ben")]
    handed_over(page, "anna")
    sent(page)
    assert [(one["kind"], one["person"]) for one in events(service, taxonomy)][2:] == [("unsure", "anna")]


def listeners(page):
    """Which events the dialog of the name, or anything in it, is listened for."""
    browser = page.context.new_cdp_session(page)
    dialog = browser.send("Runtime.evaluate", {"expression": "document.querySelector('#person')"})["result"]["objectId"]
    found = browser.send("DOMDebugger.getEventListeners", {"objectId": dialog, "depth": -1})["listeners"]
    return sorted(one["type"] for one in found)


def test_whoever_leaves_the_question_for_the_name_keeps_it(labelling):
    page = labelling("anna")
    before = listeners(page)
    for _ in range(3):
        page.locator("#who").click()
        page.locator("#person-value").fill("ben")
        page.keyboard.press("Escape")
        eventually(page, "!document.querySelector('#person').open")
    assert page.locator("#who").inner_text() == "anna"
    assert listeners(page) == before
    handed_over(page, "carl")
    assert listeners(page) == before


def test_who_labels_is_asked_until_there_is_a_name(opened, taxonomy):
    page = opened(f"label?taxonomy={taxonomy}")
    page.get_by_role("dialog", name="Who labels?").wait_for()
    for _ in range(3):  # browsers let nobody be held by a dialog: they close it at the second
        page.keyboard.press("Escape")
        page.wait_for_timeout(100)
        page.get_by_role("dialog", name="Who labels?").wait_for()
    page.locator("#person-value").fill("anna")
    page.keyboard.press("Enter")
    page.wait_for_selector("#frame:not([hidden]) img")
    assert page.locator("#who").inner_text() == "anna"


def test_a_storage_that_is_full_keeps_all_or_none(labelling):
    page = labelling()
    page.keyboard.press("g")
    page.wait_for_selector("#grid-items li:nth-child(24)")
    page.evaluate("""() => {
        for (let size = 2 ** 22; size >= 1; size /= 2) {
            try { localStorage.setItem(`filler-${size}`, "x".repeat(size)); } catch { /* a smaller one */ }
        }
        localStorage.removeItem("filler-1024");
        localStorage.setItem("filler-last", "");
    }""")
    page.get_by_role("button", name="Accept 24 as positive").click()
    page.get_by_role("alert").filter(has_text="nothing was taken down").wait_for()
    sent(page)
    assert page.locator("#grid-items li").count() == 24


@pytest.mark.parametrize("path", ["", "label"])
def test_the_page_takes_the_names_that_the_service_takes(opened, path):
    page = opened(path)
    names = ["Anna", "Zoë Ä", "李雷", "7", "a.b_c@d-e'f", "Anna (field)", "_a", "-a", "a/b", "x" * 64, "x" * 65]
    takes = "name => Object.assign(document.querySelector('#person-value'), { value: name }).validity.valid"
    found = [page.evaluate(takes, name) for name in names]
    assert found == [may_be(name) for name in names]


def may_be(name):
    try:
        return check_person(name) == name
    except ValueError:
        return False


def test_two_people_label_at_once(labelling, service, taxonomy):
    pages = [labelling("anna"), labelling("Zoë Ä")]
    for page in pages:
        page.get_by_label("Batches of").select_option("no end")
    tiles = collections.Counter(said(page, functools.partial(page.keyboard.press, "ArrowRight")) for _ in range(25) for page in pages)
    for page in pages:
        sent(page)
    assert set(tiles.values()) == {1}
    found = events(service, taxonomy)
    assert collections.Counter(one["tile_id"] for one in found) == tiles
    assert collections.Counter(one["person"] for one in found) == {"anna": 25, "Zoë Ä": 25}
    pages[0].locator("#people summary").click()
    pages[0].get_by_role("row", name="Zoë Ä 25").wait_for()


@contextlib.contextmanager
def without_routes(port):
    """A proxy whose application is not up yet: 404 for whatever is asked. Yields an event that is set once labels were sent there."""
    told = threading.Event()

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_error(404)
            if self.path.endswith("/events"):
                told.set()

        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


def test_what_was_said_outlives_a_service_that_is_killed_and_starts_slowly(naip, opened):
    from tests.page import small_index

    with small_index.served(naip) as address:
        asked(address, "/v1/labels", {"name": "killed", "classes": BINARY})
        page = opened("label?taxonomy=killed", address=address, quiet=False)
        page.locator("#person-value").fill("anna")
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector("#frame:not([hidden]) img")
        tiles = [said(page, lambda: page.keyboard.press("ArrowRight"))]
        sent(page)
    tiles += [said(page, lambda: page.keyboard.press("ArrowRight")) for _ in range(3)]
    page.get_by_role("alert").filter(has_text="does not answer").wait_for()
    page.keyboard.press("z")  # while nobody listens
    eventually(page, f"document.querySelector('#frame').dataset.id === '{tiles[-1]}'")
    port = int(address.rpartition(":")[2])
    with without_routes(port) as told:
        assert told.wait(WAIT_MS / 1000)
        page.get_by_role("alert").filter(has_text="answered 404").wait_for()
    with small_index.served(naip, port=port):
        sent(page)
        assert [(one["tile_id"], one["kind"]) for one in events(address, "killed")] == [
            *((tile, "label") for tile in tiles),
            (tiles[-1], "undo"),
        ]
        page.reload()
        page.wait_for_selector("#frame:not([hidden]) img")
        assert shown(page) not in tiles[:-1]


def test_a_picture_that_somebody_else_was_first_at_is_told(labelling, service, taxonomy):
    page = labelling()
    tile = shown(page)
    first = {"event_id": "00000000-0000-4000-8000-00000000000a", "tile_id": tile, "kind": "label", "label": "negative"}
    asked(service, f"/v1/labels/{taxonomy}/events", {"events": [first]})
    page.complaints_before = len(page.complaints)
    said(page, lambda: page.keyboard.press("ArrowRight"))
    page.get_by_role("alert").filter(has_text="somebody else labelled it first").wait_for()
    second = said(page, lambda: page.keyboard.press("ArrowRight"))
    sent(page)
    assert [one["tile_id"] for one in events(service, taxonomy)] == [tile, second]
    page.complaints.clear()  # the browser logs the refusal


def test_batches_end_and_go_on(labelling, taxonomy):
    page = labelling()
    page.get_by_label("Batches of").select_option("10")
    for _ in range(9):
        said(page, lambda: page.keyboard.press("ArrowRight"))
    page.keyboard.press("ArrowRight")
    page.get_by_text("10 done").wait_for()
    assert not page.locator("#frame").is_visible()
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector("#frame:not([hidden]) img")
    assert "0 of 10 in this batch" in page.locator("#done-said").inner_text()


def test_zoom_and_pan_do_not_swipe(labelling):
    page = labelling()
    tile = shown(page)
    scale = "new DOMMatrix(getComputedStyle(document.querySelector('#frame img')).transform)"
    page.get_by_role("button", name="Closer").click()
    page.keyboard.press("+")
    assert page.evaluate(f"{scale}.a") == pytest.approx(2.25)
    before = page.evaluate(f"{scale}.e")
    pulled(page, 120, 0)
    assert page.evaluate(f"{scale}.e") > before + 50
    assert shown(page) == tile
    page.keyboard.press("Escape")
    assert page.evaluate(f"[{scale}.a, {scale}.e]") == [1, 0]
    page.locator("#frame").dblclick()
    assert page.evaluate(f"{scale}.a") == pytest.approx(3)
    assert page.evaluate("getComputedStyle(document.querySelector('#frame img')).imageRendering") == "pixelated"


def new_taxonomy(page):
    """Open the dialog that makes one, whether there is another already or not."""
    page.wait_for_selector("#frame:not([hidden]) img, #make-first:not([hidden])")
    if page.locator("#make-first").is_visible():
        page.locator("#make-first").click()
        return
    page.locator("#people summary").click()
    page.get_by_role("button", name="New taxonomy").click()


def test_a_taxonomy_is_made_and_changed_in_the_page(opened, service):
    page = opened("label", quiet=False)
    page.locator("#person-value").fill("anna")
    page.get_by_role("button", name="Begin").click()
    new_taxonomy(page)
    dialog = page.get_by_role("dialog", name="New taxonomy")
    dialog.locator("#taxonomy-name").fill("made-in-the-page")
    for number, name in enumerate(("field", "water", "road")):
        if number == 2:
            dialog.get_by_role("button", name="Add a class").click()
        dialog.get_by_label("Name").nth(number + 1).fill(name)
        dialog.get_by_label("Key").nth(number).fill(name[0])
    dialog.get_by_label("Key").nth(1).fill("f")
    dialog.get_by_role("button", name="Save").click()
    dialog.get_by_text("two classes have the key 'f'").wait_for()
    dialog.get_by_label("Key").nth(1).fill("w")
    dialog.get_by_role("button", name="Save").click()
    page.wait_for_selector("#classes [data-label=water]:enabled")
    said(page, lambda: page.keyboard.press("w"))
    page.get_by_role("button", name="Change the classes").click()
    page.get_by_role("dialog").get_by_label("Name").nth(2).fill("lake")
    page.get_by_role("button", name="Save").click()
    page.locator("#classes").get_by_role("button", name="lake").wait_for()
    sent(page)
    assert asked(service, "/v1/labels/made-in-the-page/progress")["by_class"] == {"field": 0, "lake": 1, "road": 0}


def test_a_token_names_the_person(naip, opened):
    from tests.page import small_index

    with small_index.served(naip, token="of the house", label_tokens="ben:secret of ben") as address:
        request = urllib.request.Request(
            f"{address}/v1/labels",
            data=json.dumps({"name": "named", "classes": BINARY}).encode(),
            headers={"content-type": "application/json", "authorization": "Bearer of the house"},
        )
        urllib.request.urlopen(request).close()
        page = opened("label?taxonomy=named", address=address, quiet=False)
        page.locator("#token-value").fill("secret of ben")
        page.get_by_role("button", name="Enter").click()
        page.wait_for_selector("#frame:not([hidden]) img[src^='blob:']")
        assert page.locator("#who").inner_text() == "ben"
        assert not any("secret" in url for url in page.asked)


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_can_be_read_and_reached(labelling, dark):
    page = labelling(dark=dark)
    page.locator("#people summary").click()
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(NAMELESS) == []
    seen = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(one => one.id || one.dataset.label)(document.activeElement)"))
    assert {"taxonomy", "make", "who", "closer", "positive", "negative", "unsure", "later", "open-grid", "batch", "stop"} <= seen
    page.keyboard.press("g")
    page.wait_for_selector("#grid-items li:nth-child(24)")
    assert page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Back").click()
    page.get_by_role("button", name="New taxonomy").click()
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(NAMELESS) == []


@pytest.mark.parametrize("width", [320, 390])
def test_phones(labelling, service, taxonomy, width):
    page = labelling(width=width, height=700, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#frame").bounding_box()["height"] > 200
    for name in ("positive", "negative"):
        box = page.locator("#classes").get_by_role("button", name=name).bounding_box()
        assert box["y"] + box["height"] <= 700
        assert box["height"] >= 44
    tile = shown(page)
    box = page.locator("#frame").bounding_box()
    client = page.context.new_cdp_session(page)
    for kind, across in (("touchStart", 0), ("touchMove", 60), ("touchMove", 130), ("touchEnd", None)):
        points = [] if across is None else [{"x": box["x"] + 60 + across, "y": box["y"] + 100}]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    eventually(page, f"document.querySelector('#frame').dataset.id !== '{tile}'")
    sent(page)
    assert [(one["tile_id"], one["label"]) for one in events(service, taxonomy)] == [(tile, "positive")]


OVERLAPS = """() => {
    const box = (name) => document.querySelector(name).getBoundingClientRect();
    const named = ["header.bar", ".far", "#frame", "#zoom", "#controls"].map(name => ({ name, box: box(name) }));
    const across = ({ box: one }, { box: other }) => Math.min(one.right, other.right) - Math.max(one.left, other.left);
    const down = ({ box: one }, { box: other }) => Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
    const overlap = (one, other) => across(one, other) > 1 && down(one, other) > 1;
    return named.flatMap((one, at) => named.slice(at + 1).filter(other => overlap(one, other)).map(({ name }) => `${one.name} ${name}`));
}"""
EIGHT = [{"name": f"class number {number}"} for number in range(8)]
LONG = "MODIS_Terra_CorrectedReflectance_TrueColor@2018-07-16_250m_EPSG4326_8_120_75"


def named_at_length(route):
    """Pictures of a scene whose name is as long as those of GIBS are."""
    answer = route.fetch()
    told = answer.json()
    route.fulfill(response=answer, json={**told, "items": [{**item, "scene_id": LONG} for item in told["items"]]})


@pytest.mark.parametrize("taxonomy", [LAND, EIGHT], indirect=True, ids=["three", "eight"])
def test_nothing_overlaps_in_any_window(opened, taxonomy):
    page = opened(width=844, height=390)
    page.route("**/next", named_at_length)
    page.goto(f"{page.url}label?taxonomy={taxonomy}")
    page.locator("#person-value").fill("anna")
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("#frame:not([hidden]) img")
    for width, height, least in (
        (844, 390, 250),
        (667, 375, 200),
        (800, 600, 380),
        (390, 844, 250),
        (320, 568, 120),
        (1280, 500, 350),
        (1280, 800, 550),
    ):
        page.set_viewport_size({"width": width, "height": height})
        eventually(page, f"innerWidth === {width} && innerHeight === {height}")
        assert page.evaluate(OVERLAPS) == [], (width, height)
        assert page.evaluate(
            "[document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight - innerHeight]"
        ) == [0, 0]
        assert page.locator("#frame").bounding_box()["width"] >= least
        last = page.locator("#classes button").last
        last.scroll_into_view_if_needed()
        box = last.bounding_box()
        assert box["y"] + box["height"] <= height
    assert page.locator("#about-item").bounding_box()["height"] < 30
    assert LONG in page.locator("#about-item").get_attribute("title")


def test_a_taxonomy_that_there_is_not_opens_no_other(opened, taxonomy):
    page = opened("label?taxonomy=nosuch")
    page.locator("#person-value").fill("anna")
    page.get_by_role("button", name="Begin").click()
    page.get_by_text("There is no taxonomy nosuch. Choose one above, or make one.").wait_for()
    assert not page.locator("#controls").is_visible()
    assert not any(url.endswith("/next") for url in page.asked)
    assert page.get_by_role("button", name="Make a taxonomy").is_visible()
    page.locator("#taxonomy").select_option(taxonomy)
    page.wait_for_selector("#frame:not([hidden]) img")
    assert any(url.endswith(f"/{taxonomy}/next") for url in page.asked)


def test_what_a_search_was_taught_becomes_labels(opened, service, taxonomy):
    page = opened()
    page.wait_for_selector("#map .scene")
    searched(page, lambda: click_map(page))
    [example] = re.findall(r"like=([0-9a-f]{20})", page.url)
    first, second = hits(page)[:2]
    page.locator(".hit").nth(0).get_by_role("button", name="right").click()
    page.locator(".hit").nth(1).get_by_role("button", name="wrong").click()
    page.get_by_role("button", name="Save right and wrong as labels").click()
    page.locator("#person-value").fill("anna")
    page.get_by_role("button", name="Begin").click()
    page.get_by_label("Taxonomy").select_option(taxonomy)
    assert page.locator("#labels-right").input_value() == "positive"
    assert page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("alert").filter(has_text="3 labels").wait_for()
    sent(page)
    expected = {(example, "positive"), (first, "positive"), (second, "negative")}
    assert {(one["tile_id"], one["label"]) for one in events(service, taxonomy)} == expected
    assert {(one["origin"], one["person"]) for one in events(service, taxonomy)} == {("search", "anna")}
    page.get_by_role("button", name="Save right and wrong as labels").click()
    page.get_by_label("Taxonomy").select_option(taxonomy)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("saved already").wait_for()
    sent(page)
    assert len(events(service, taxonomy)) == 3
    for label in ("negative", "positive"):  # there and back: the last word counts
        page.get_by_role("button", name="Save right and wrong as labels").click()
        page.get_by_label("Taxonomy").select_option(taxonomy)
        page.locator("#labels-right").select_option(label)
        page.get_by_role("button", name="Save", exact=True).click()
        sent(page)
    assert [one["label"] for one in events(service, taxonomy)][3:] == ["negative"] * 2 + ["positive"] * 2
